"""The data side of an experiment: which corpus is dealt how. Read from the same YAML, but without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen

from .. import partition as regimes
from ..config.loader import Registry, apply_overrides, dump_value, load_yaml, parse_value
from ..core.errors import default_cache_dir, unknown_name_error
from ..core.random import Seed, derive_seed, numpy_stream
from ..data import TRAIN, Corpus, DatasetConfig, load_corpus
from ..data.catalog import NAMED_DATASETS
from ..data.encoders import Encoder, embed_texts
from ..data.readers import find_local_path
from ..models import presets
from ..models.presets import PRESETS, Preset, resolve_model
from ..partition import Calibrated, Partition, Partitioner, TopicMix
from ..partition.base import partition_corpus, partition_notes, rewritten_texts
from ..report.partition_page import GradientStat

PARTITION_REGISTRY = Registry({Partitioner: regimes})
OTHER_KEYS = ("trainable", "algorithm", "training", "evaluation", "clustering", "model_fingerprint", "fork")  # they deal nothing
TOKENIZER_BATCH = 1000
MAX_EMBEDDED = 5000  # documents whose embeddings are compared
NUM_CHANCE_PARTITIONS = 5  # IID deals behind the band of a gradient's number: each is a pass over every client's text


@dataclass(frozen=True)
class DataConfig:
    """What decides who holds what; the fields are those of an experiment. ``model`` for its tokenizer."""

    dataset: DatasetConfig
    model: Annotated[str, MinLen(1)] = "pocket"
    partition: Partitioner = TopicMix()
    seed: Seed = 0

    def to_dict(self) -> dict[str, Any]:
        """Everything that has a say, as plain YAML, defaults included."""
        return {**dump_value(self, PARTITION_REGISTRY), "dataset": self.dataset.to_dict()}


@dataclass(frozen=True, eq=False)
class PartitionedData:
    """A deal carried out: ``corpus`` are the training documents, sized in ``unit``."""

    config: DataConfig
    corpus: Corpus
    partition: Partition
    unit: str  # "tokens", or "words" where the model's tokenizer is not at hand
    note: str  # what to know of the unit and of how the corpus was read; "" if nothing


def load_data_config(path: Path, overrides: Iterable[str] = ()) -> DataConfig:
    """The data side of the experiment in a YAML file; other keys are left to ``fedrift validate``."""
    said = apply_overrides(load_yaml(path), overrides)
    own = [field.name for field in fields(DataConfig)]
    for key in said:
        if key not in own and key not in OTHER_KEYS:
            raise unknown_name_error("key of an experiment", str(key), [*own, *OTHER_KEYS])
    deal: DataConfig = parse_value(DataConfig, {key: value for key, value in said.items() if key in own}, PARTITION_REGISTRY)
    return deal


def partition_dataset(config: DataConfig, data_dir: Path | None = None) -> PartitionedData:
    """Load and deal the training documents, as a run of the experiment would."""
    corpus = load_corpus(config.dataset, data_dir=data_dir, half=dataset_half(config.model), cache_dir=default_cache_dir() / "vectors")
    corpus = corpus.take(np.flatnonzero(corpus.split == TRAIN))
    file, note = find_tokenizer(config.model)
    if file is not None:
        corpus = corpus.with_sizes(count_tokens(corpus, file))
    dealt = partition_corpus(config.partition, corpus, partial(numpy_stream, config.seed, "partition"))
    notes = "\n".join(filter(None, [note, *corpus.notes, *partition_notes(config.partition)]))
    return PartitionedData(config, corpus, dealt, "words" if file is None else "tokens", notes)


def check_local_dataset(dataset: DatasetConfig, model: str, partition: Partitioner, seed: int) -> None:
    """Read and deal a corpus that is a local file, in words; UserError if that cannot be done. Any other is left alone."""
    path = find_local_path(dataset.name)
    if dataset.name in NAMED_DATASETS or not path or path.is_dir():
        return
    corpus = load_corpus(dataset, half=dataset_half(model), cache_dir=default_cache_dir() / "vectors").train
    if not isinstance(partition, Calibrated):  # which measures tokens
        partition(corpus, numpy_stream(seed, "partition"))


def dataset_half(model: str) -> str:
    """Which half of a corpus that ``pocket`` was pretrained on a model trains on."""
    return "unseen" if model == PRESETS["pocket"].name else "all"


def embed_documents(data: PartitionedData, encoder: Encoder) -> np.ndarray:
    """The documents as their owners write them in the encoder's vectors, [D, E]; NaN beyond 5,000, chosen by chance."""
    owner = data.partition.document_owners(len(data.corpus))
    rows = numpy_stream(data.config.seed, "heterogeneity", "embedded").permutation(np.flatnonzero(owner >= 0))[:MAX_EMBEDDED]
    rows = np.sort(rows)
    texts = rewritten_texts(data.corpus.take(rows), data.partition, owner[rows])
    found = embed_texts(texts, encoder, cache_dir=default_cache_dir() / "vectors")
    vectors = np.full((len(data.corpus), found.shape[1]), np.nan)
    vectors[rows] = found
    return vectors


def gradient_statistics(file: Path, overrides: Iterable[str], data_dir: Path | None) -> tuple[GradientStat, ...]:
    """Gradient dissimilarity at the first weights, here and in five IID deals of the same documents: of what is trained
    and, where adapters that begin at zero are, of the last block's own weights too. The one part of a partition's report
    that loads the model.
    """
    from ..config.runtime import Runtime
    from ..config.schema import iid_baseline, load_config
    from ..engine.build import measure_gradient_dissimilarity
    from ..engine.cache import ResourceCache
    from ..models.trainable import LastBlocks, Lora

    experiment, stock = load_config(file, overrides), ResourceCache(Runtime(data_dir=data_dir))
    told = {"trained": experiment.trainable, **({"last block": LastBlocks()} if isinstance(experiment.trainable, Lora) else {})}
    found: list[GradientStat] = []
    for parts, tune in told.items():
        asked, iid = replace(experiment, trainable=tune), replace(iid_baseline(experiment), trainable=tune)
        here = measure_gradient_dissimilarity(asked, stock)
        seeds = [
            derive_seed(experiment.seed, "gradients", "chance", deal) % 2**53 for deal in range(NUM_CHANCE_PARTITIONS)
        ]  # a seed has 53 bits
        chance = [measure_gradient_dissimilarity(iid, stock, partition_seed=seed) for seed in seeds]
        for name in here:
            null = np.array([float(one[name]) for one in chance])
            found.append(GradientStat(parts, str(name), float(here[name]), float(null.mean()), float(null.std(ddof=1))))
    return tuple(found)


def find_tokenizer(model: str) -> tuple[Path | None, str]:
    """The model's tokenizer.json if it is on this machine; else why budgets are counted in words."""
    found = resolve_model(model)
    file = None
    if isinstance(found, Path):
        file = found / "tokenizer.json"
    elif isinstance(found, Preset) and found.origin == "package":
        file = Path(presets.__file__).with_name("pocket") / "tokenizer.json"
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(found.hub_id if isinstance(found, Preset) else found, "tokenizer.json")
        file = Path(cached) if isinstance(cached, str) else None
    if file is not None and file.is_file():
        return file, ""
    return None, (
        f"Budgets are counted in words, because the tokenizer of {model} cannot be read here without loading "
        "the model. A run counts tokens, and may deal single documents otherwise."
    )


def count_tokens(corpus: Corpus, file: Path) -> np.ndarray:
    """Tokens of each document, [D], its end token included, as ``corpus.tokenise`` counts them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True  # text that spells a special token is text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths: list[int] = []
    for start in range(0, len(corpus), TOKENIZER_BATCH):
        found = tokenizer.encode_batch_fast(corpus.text[start : start + TOKENIZER_BATCH].tolist(), add_special_tokens=False)
        lengths += [len(one.ids) + 1 for one in found]
    return np.array(lengths, dtype=np.int64)
