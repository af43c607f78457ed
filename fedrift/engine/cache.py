"""What runs share: corpora, models and tokens are loaded once and lent to every run that needs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.runtime import Runtime
from ..data import Corpus, DatasetConfig, TokenizedCorpus, load_corpus, tokenize_corpus
from ..models.batched_model import BatchCoordinator, BatchedModel
from ..models.load import LanguageModel, load_model
from ..models.presets import PRESETS
from ..models.stacked_model import StackedModel
from ..models.trainable import Trainable


@dataclass(frozen=True)
class ResourceCache:
    """Loaded things by name. One network can wear one kind of trained parts; another kind has a network of its own, whose
    parameters are the same tensors: the frozen weights are in memory once, whatever is trained.

    ``meeting``: where the runs that share this stock train together, each in a thread of its own.
    """

    runtime: Runtime = field(default_factory=Runtime)
    _items: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)
    coordinator: BatchCoordinator | None = None

    def get_corpus(self, dataset: DatasetConfig, model_name: str) -> Corpus:
        """The documents; for ``pocket`` without those that it was pretrained on."""
        half = "unseen" if model_name == PRESETS["pocket"].name else "all"
        return self._get_or_create(
            ("corpus", dataset, half),
            lambda: load_corpus(dataset, data_dir=self.runtime.data_dir, half=half, cache_dir=self.runtime.cache_dir / "vectors"),
        )

    @property
    def numeric_options(self) -> dict[str, Any]:
        """The runtime's choices of arithmetic; made once, as some are made by trying."""
        return self._get_or_create(("engine",), self.runtime.numeric_options)  # type: ignore[no-any-return]

    @property
    def pretrained_losses(self) -> dict[Any, Any]:
        """Losses of pretrained models on texts that some run has asked for (``probes.zero_shot``)."""
        return self._get_or_create(("zero-shot",), dict)  # type: ignore[no-any-return]

    def get_language_model(self, name: str, trainable: Trainable) -> LanguageModel:
        """The model for one kind of trained parts; its parameters are those of every other kind on the same base."""

        def load() -> LanguageModel:
            loaded = load_model(
                name,
                cache_dir=self.runtime.cache_dir,
                dtype=self.numeric_options.get("dtype", "float32"),
                quantization=trainable.quantization,
                on_message=self.runtime.on_message,
            )
            device = self.runtime.resolve_device()
            # four-bit weights are packed on the CPU: there they stay as they are
            if trainable.quantization != "nf4" or device.type != "cpu":
                loaded.network.to(device)  # type: ignore[arg-type]  # before it is shared: a move may make new parameters
            return loaded

        return self._get_or_create(
            ("model", name, trainable), lambda: self._get_or_create(("base", name, trainable.quantization), load).with_shared_weights()
        )

    def get_stacked_model(self, name: str, trainable: Trainable) -> StackedModel:
        """The model, ready to be worn by many clients."""

        def make() -> StackedModel:
            compiled = self.runtime.compiled  # the compiler fuses plain modules itself
            model = StackedModel(
                self.get_language_model(name, trainable).network,
                trainable,
                fused=not compiled,
                use_prefix_cache=False if compiled else None,
            )
            if self.runtime.compiled:
                model.compile()
            return model

        model = self._get_or_create(("stacked", name, trainable), make)
        return BatchedModel(model, self.coordinator) if self.coordinator else model

    def get_tokens(self, corpus: Corpus, name: str, trainable: Trainable) -> TokenizedCorpus:
        """The corpus in the model's tokens."""
        tokenizer = self.get_language_model(name, trainable).tokenizer
        cache: Path = self.runtime.cache_dir / "tokens"
        return self._get_or_create(("tokens", corpus.fingerprint, name), lambda: tokenize_corpus(corpus, tokenizer, cache_dir=cache))

    def _get_or_create(self, key: tuple[Any, ...], create: Any) -> Any:
        if key not in self._items:
            self._items[key] = create()
        return self._items[key]


__all__ = ["BatchCoordinator", "ResourceCache"]
