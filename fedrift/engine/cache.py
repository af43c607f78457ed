"""A cache of resources that several runs share, so that datasets, models and tokens are loaded only once.

It also resolves the hashes of datasets and local models, on which the id of a run depends; this needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.loader.parsing import hash_source
from ..config.runtime import Dtype, Runtime
from ..config.schema import PROBE_GROUPS, ExperimentConfig
from ..core.cache import BoundedCache
from ..core.errors import UserError
from ..core.registry import find_extension
from ..data import Corpus, DatasetConfig, TokenizedCorpus, load_corpus, tokenize_corpus
from ..data.dataset import load_general_corpus
from ..models.presets import PRESETS, fingerprint_model
from ..partition.base import depends_on_sources

if TYPE_CHECKING:
    from ..models.arithmetic import ArithmeticChoice
    from ..models.batched_model import BatchCoordinator
    from ..models.load import LanguageModel
    from ..models.stacked_model import StackedModel
    from ..models.trainable import Trainable


MAX_TOKEN_BYTES = 300_000_000  # limit of the memory for tokens of rewritten texts
MAX_LOSS_BYTES = 100_000_000  # limit of the memory for losses of trained models


@dataclass(frozen=True)
class ResourceCache:
    """Loaded datasets, models and tokens.

    Each choice of trained parameters needs its own network, but all networks of a model share the tensors of the base weights. The
    frozen weights are therefore in memory only once.

    Args:
        runtime: The runtime options.
        coordinator: Batches the forward passes of several runs that train at the same time, each in its own thread. None: each run
            computes its own passes.

    Example:
        >>> resources = ResourceCache(Runtime(device="cpu"))
        >>> [fedrift.run(each, runs_dir=folder, resources=resources).status for each in (config, config.iid_baseline())]
        ['finished', 'finished']
    """

    runtime: Runtime = field(default_factory=Runtime)
    _items: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)
    coordinator: BatchCoordinator | None = None

    def get_corpus(self, dataset: DatasetConfig, model_name: str) -> Corpus:
        """Return the documents of a dataset, for the model ``pocket`` without the documents of its pretraining.

        Args:
            dataset: The dataset.
            model_name: The name of the model in the configuration.

        Raises:
            UserError: The dataset does not exist or cannot be read.
        """
        subset = "unseen" if model_name == PRESETS["pocket"].name else "all"
        dataset = replace(dataset, source_fingerprint="")  # `resolve_fingerprints` compares it
        return self._get_or_create(
            ("corpus", dataset, subset),
            lambda: load_corpus(dataset, data_dir=self.runtime.data_dir, subset=subset, cache_dir=self.runtime.cache_dir / "vectors"),
        )

    def get_general_corpus(self, config: ExperimentConfig, corpus: Corpus) -> Corpus | None:
        """Return the text of the probe group ``general``; None if there is none.

        Args:
            config: The experiment.
            corpus: Its documents, which are left out.

        Raises:
            UserError: The dataset does not exist, cannot be read, or has no other documents.
        """
        name, is_pocket = config.evaluation.general_dataset, config.model == PRESETS["pocket"].name
        return self._get_or_create(  # type: ignore[no-any-return]
            ("general", corpus.fingerprint, corpus.name, name, is_pocket),
            lambda: load_general_corpus(corpus, name, is_pocket_model=is_pocket, data_dir=self.runtime.data_dir),
        )

    @property
    def numeric_options(self) -> dict[str, Any]:
        """The numeric options of the runtime. They are computed once, because some depend on a speed measurement."""
        return self._get_or_create(("engine", self.runtime.dtype), self.runtime.numeric_options)  # type: ignore[no-any-return]

    @property
    def dtype(self) -> str:
        """The data type of the frozen base weights."""
        return str(self.numeric_options.get("dtype", "float32"))

    def with_dtype(self, dtype: Dtype) -> ResourceCache:
        """Return resources that compute in another data type and share everything that does not depend on it."""
        return replace(self, runtime=replace(self.runtime, dtype=dtype))

    def share_arithmetic(self, choose: Callable[[], ArithmeticChoice]) -> ArithmeticChoice:
        """Return the arithmetic for which ``fastest`` stands in all new runs that share these resources.

        One choice serves all of them, so that a run and its IID baseline are computed in the same arithmetic.

        Args:
            choose: Chooses the arithmetic; called only if there is no choice yet.
        """
        return self._get_or_create(("fastest",), choose)  # type: ignore[no-any-return]

    def discard_models(self) -> None:
        """Remove the networks in the data type of these resources from the cache."""
        for key in [key for key in self._items if key[0] in ("base", "model", "stacked") and key[1] == self.dtype]:
            del self._items[key]

    @property
    def pretrained_losses(self) -> dict[Any, Any]:
        """A cache of losses of the pretrained models, which runs with the same model and texts share."""
        return self._get_or_create(("zero-shot", self.dtype), dict)  # type: ignore[no-any-return]

    @property
    def evaluated_losses(self) -> BoundedCache:
        """A cache of losses of trained models, which runs share whose models are equal. Sizes are in bytes."""
        return self._get_or_create(("evaluated", self.dtype), lambda: BoundedCache(MAX_LOSS_BYTES))  # type: ignore[no-any-return]

    def get_language_model(self, name: str, trainable: Trainable, random_seed: int | None = None) -> LanguageModel:
        """Return the network and tokenizer of a model for one choice of trained parameters.

        The base weights are shared with the networks for other choices.

        Args:
            name: The name of the model in the configuration.
            trainable: Which parameters are trained.
            random_seed: The seed of random weights. None: the pretrained weights.
        """

        from ..models.load import load_model

        def load() -> LanguageModel:
            model = load_model(
                name,
                cache_dir=self.runtime.cache_dir,
                dtype=self.dtype,
                quantization=trainable.quantization,
                on_message=self.runtime.on_message,
                random_seed=random_seed,
            )
            device = self.runtime.resolve_device()
            # 4-bit weights are already packed on the CPU, so they must stay unchanged if the device is the CPU.
            if trainable.quantization != "nf4" or device.type != "cpu":
                model.network.to(device)  # type: ignore[arg-type]  # must precede the sharing, because it can create new parameters
            return model

        return self._get_or_create(
            ("model", self.dtype, name, trainable, random_seed),
            lambda: self._get_or_create(("base", self.dtype, name, trainable.quantization, random_seed), load).with_shared_weights(),
        )

    def get_stacked_model(self, name: str, trainable: Trainable, random_seed: int | None = None) -> StackedModel:
        """Return the model that computes the forward passes of many clients at once, each with its own trained parameters.

        Args:
            name: The name of the model in the configuration.
            trainable: Which parameters are trained.
            random_seed: The seed of random weights. None: the pretrained weights.
        """

        from ..models.stacked_model import StackedModel

        def create() -> StackedModel:
            compiled = self.runtime.compiled  # the compiler fuses modules itself, so it gets the unfused model
            model = StackedModel(
                self.get_language_model(name, trainable, random_seed).network,
                trainable,
                fused=not compiled,
                use_prefix_cache=False if compiled else None,
            )
            if self.runtime.compiled:
                model.compile()
            return model

        model = self._get_or_create(("stacked", self.dtype, name, trainable, random_seed), create)
        if self.coordinator is None:
            return model
        from ..models.batched_model import BatchedModel

        return BatchedModel(model, self.coordinator)

    def get_tokens(self, corpus: Corpus, name: str, trainable: Trainable, random_seed: int | None = None) -> TokenizedCorpus:
        """Return the documents of a corpus as tokens of a model.

        Args:
            corpus: The documents.
            name: The name of the model in the configuration.
            trainable: Which parameters are trained.
            random_seed: The seed of random weights. None: the pretrained weights. The tokens are the same.
        """
        tokenizer = self.get_language_model(name, trainable, random_seed).tokenizer
        cache_dir: Path = self.runtime.cache_dir / "tokens"
        key = "tokens", corpus.fingerprint, corpus.train_on, corpus.chat_template, name
        return self._get_or_create(key, lambda: tokenize_corpus(corpus, tokenizer, cache_dir=cache_dir))

    def get_rewritten_tokens(
        self, corpus: Corpus, name: str, trainable: Trainable, random_seed: int | None = None, on_disk: bool = True
    ) -> TokenizedCorpus:
        """Return the tokens of a corpus with rewritten texts, which are identified by the texts themselves.

        Runs with equal rewritten texts share the tokens, for example the algorithms that a study compares on one partition.

        Args:
            corpus: The rewritten documents.
            name: The name of the model in the configuration.
            trainable: Which parameters are trained.
            random_seed: The seed of random weights. None: the pretrained weights. The tokens are the same.
            on_disk: Whether the tokens are also stored in the cache folder.
        """
        tokenizer = self.get_language_model(name, trainable, random_seed).tokenizer
        digest = blake2b(digest_size=16)
        for text in corpus.text:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8) + encoded)
        tokens: BoundedCache = self._get_or_create(("rewritten tokens",), lambda: BoundedCache(MAX_TOKEN_BYTES))
        return tokens.get_or_create(  # type: ignore[no-any-return]
            (digest.digest(), corpus.train_on, corpus.chat_template, name),
            lambda: tokenize_corpus(corpus, tokenizer, cache_dir=self.runtime.cache_dir / "tokens" if on_disk else None),
            lambda tokenized: tokenized.ids.nbytes + tokenized.offsets.nbytes,
        )

    def _get_or_create(self, key: tuple[Any, ...], create: Any) -> Any:
        if key not in self._items:
            self._items[key] = create()
        return self._items[key]


def create_coordinator(num_runs: int, max_clients: int) -> BatchCoordinator:
    """Return a coordinator that combines the forward passes of ``num_runs`` runs into passes of at most ``max_clients`` clients."""
    from ..models.batched_model import BatchCoordinator

    return BatchCoordinator(num_runs, max_clients)


def resolve_fingerprints(config: ExperimentConfig, resources: ResourceCache) -> ExperimentConfig:
    """Add the hashes of the dataset, of a local model and of what the evaluation reads, so that changed files give another id.

    Raises:
        UserError: The configuration contains a hash of the dataset already, and the dataset has changed.
    """
    corpus = resources.get_corpus(replace(config.dataset, fingerprint=""), config.model)
    if config.dataset.fingerprint not in ("", corpus.fingerprint):
        raise UserError(
            f"the dataset {config.dataset.name!r} has changed: its hash is {corpus.fingerprint[:12]}, but the configuration "
            f"requires {config.dataset.fingerprint[:12]}. Restore the old files, or remove dataset.fingerprint for a new experiment"
        )
    sources = corpus.source_fingerprint if depends_on_sources(config.partition) else ""
    if sources and config.dataset.source_fingerprint not in ("", sources):
        raise UserError(
            f"the sources of the dataset {config.dataset.name!r} have changed: their hash is {sources[:12]}, but the configuration "
            f"requires {config.dataset.source_fingerprint[:12]}. Restore the old files, or remove dataset.source_fingerprint for a new "
            "experiment"
        )
    return replace(
        config,
        dataset=replace(config.dataset, fingerprint=corpus.fingerprint, source_fingerprint=sources),
        model_fingerprint=fingerprint_model(config.model, corpus.examples is not None),
        evaluation=replace(config.evaluation, fingerprint=fingerprint_evaluation(config, corpus, resources)),
    )


def fingerprint_evaluation(config: ExperimentConfig, corpus: Corpus, resources: ResourceCache) -> str:
    """Return the sha256 of the general text and of the source of probes from outside fedrift; "" if the evaluation uses neither."""
    names = config.evaluation.probes
    general = resources.get_general_corpus(config, corpus) if "general" in names else None
    own = {name: hash_source(find_extension("probe", name)) for name in names if name not in PROBE_GROUPS}
    if general is None and not own:
        return ""
    return sha256(json.dumps([general and general.fingerprint, own], sort_keys=True).encode()).hexdigest()
