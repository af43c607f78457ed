"""Load the dataset and the partition of an experiment from its YAML file, without importing torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Interval, MinLen

from .. import partition as partitions
from ..config.loader import Registry, apply_overrides, dump_value, load_yaml, parse_value
from ..core.errors import UserError, default_cache_dir, unknown_name_error
from ..core.random import Seed, derive_seed, numpy_stream
from ..data import TRAIN, Corpus, DatasetConfig, load_corpus
from ..data.encoders import Encoder, embed_texts
from ..models import presets
from ..models.presets import PRESETS, Preset, resolve_model
from ..partition import Partition, Partitioner, TopicMix
from ..partition.base import partition_corpus, partition_notes, rewritten_texts
from ..storage.files import write_atomically

if TYPE_CHECKING:
    from ..report.partition_page import GradientStat

PARTITION_REGISTRY = Registry({Partitioner: partitions}, {Partitioner: "partition"})
OTHER_KEYS = (
    "trainable",
    "algorithm",
    "evaluation",
    "clustering",
    "model_fingerprint",
    "model_init",
    "fork",
)  # keys that do not affect the partition
TOKENIZER_BATCH = 1000
MAX_EMBEDDED = 5000  # documents whose embeddings are compared
NUM_CHANCE_PARTITIONS = 5  # IID partitions that estimate the chance level of gradient measures; each costs a pass over every client's text


@dataclass(frozen=True)
class BlockConfig:
    """The key of ``training`` that determines the partition of conversations, which are cut to the length of a block."""

    max_seq_length: Annotated[int, Interval(ge=8, le=8192)] = 64


@dataclass(frozen=True)
class DataConfig:
    """The part of an experiment that determines its partition; ``model`` provides the tokenizer."""

    dataset: DatasetConfig
    model: Annotated[str, MinLen(1)] = "pocket"
    partition: Partitioner = TopicMix()
    seed: Seed = 0
    training: BlockConfig = BlockConfig()

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain YAML values, including defaults."""
        return {**dump_value(self, PARTITION_REGISTRY), "dataset": self.dataset.to_dict()}


@dataclass(frozen=True, eq=False)
class PartitionedData:
    """A partition and the training documents that it assigns to clients."""

    config: DataConfig
    corpus: Corpus  # the training documents, with their sizes in ``unit``
    partition: Partition
    unit: str  # "tokens", or "words" if the model's tokenizer is not available
    note: str  # remarks on the unit, the corpus and the partition, one per line; "" if there are none


def load_data_config(path: Path, overrides: Iterable[str] = ()) -> DataConfig:
    """Read the dataset, model, partition and seed of an experiment.

    Other keys of an experiment are not checked; ``fedrift validate`` checks them.

    Raises:
        UserError: If the file cannot be read, a key is unknown or a value is invalid.
    """
    return parse_data_config(read_data_keys(path, overrides))


def read_data_keys(source: Path | dict[str, Any], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the keys of an experiment as plain values, from a YAML file or from values, with overrides."""
    content: dict[str, Any] = apply_overrides(load_yaml(source) if isinstance(source, Path) else source, overrides)
    return content


def parse_data_config(content: dict[str, Any]) -> DataConfig:
    """Return the dataset, model, partition and seed of an experiment given as plain values.

    Raises:
        UserError: If a key is unknown or a value is invalid.
    """
    names = [field.name for field in fields(DataConfig)]
    for key in content:
        if key not in names and key not in OTHER_KEYS:
            raise unknown_name_error("key of an experiment", str(key), [*names, *OTHER_KEYS])
    values = {key: value for key, value in content.items() if key in names}
    if isinstance(training := content.get("training"), Mapping):
        values["training"] = {key: value for key, value in training.items() if key in ("max_seq_length",)}
    config: DataConfig = parse_value(DataConfig, values, PARTITION_REGISTRY)
    return config


def partition_dataset(config: DataConfig, data_dir: Path | None = None) -> PartitionedData:
    """Load the training documents and partition them as a run of the experiment does."""
    corpus = load_corpus(config.dataset, data_dir=data_dir, subset=dataset_subset(config.model), cache_dir=default_cache_dir() / "vectors")
    corpus = corpus.take(np.flatnonzero(corpus.split == TRAIN))
    file, tokenizer_note = find_tokenizer(config.model)
    if file is not None:
        length = config.training.max_seq_length
        corpus = corpus.with_sizes(
            count_tokens(corpus, file) if corpus.examples is None else count_answer_tokens(corpus, file.parent, length)
        )
    partition = partition_corpus(config.partition, corpus, partial(numpy_stream, config.seed, "partition"))
    notes = "\n".join(filter(None, [tokenizer_note, *corpus.notes, *partition_notes(config.partition)]))
    return PartitionedData(config, corpus, partition, "words" if file is None else "tokens", notes)


def dataset_subset(model: str) -> str:
    """Return which half of a corpus a model may train on; ``pocket`` was pretrained on the other half of some corpora."""
    return "unseen" if model == PRESETS["pocket"].name else "all"


def embed_documents(data: PartitionedData, encoder: Encoder) -> np.ndarray:
    """Embed the documents as their clients see them, after any rewriting.

    Returns:
        Vectors [D, E] for D documents. If there are more than 5,000 documents, a random sample is embedded and the rows of the
        others are NaN.
    """
    owner = data.partition.document_owners(len(data.corpus))
    rows = numpy_stream(data.config.seed, "heterogeneity", "embedded").permutation(np.flatnonzero(owner >= 0))[:MAX_EMBEDDED]
    rows = np.sort(rows)
    texts = rewritten_texts(data.corpus.take(rows), data.partition, owner[rows])
    embedded = embed_texts(texts, encoder, cache_dir=default_cache_dir() / "vectors")
    vectors = np.full((len(data.corpus), embedded.shape[1]), np.nan)
    vectors[rows] = embedded
    return vectors


def gradient_statistics(file: Path, overrides: Iterable[str], data_dir: Path | None) -> tuple[GradientStat, ...]:
    """Measure the gradient dissimilarity at the initial weights, in this partition and in five IID partitions.

    The gradients are those of the trainable parameters. With LoRA, whose adapters start at zero, the gradients of the last
    block's weights are measured too. This function loads the model.
    """
    from ..api import load_config
    from ..config.runtime import Runtime
    from ..config.schema import iid_baseline
    from ..engine.build import measure_gradient_dissimilarity
    from ..engine.cache import ResourceCache
    from ..models.trainable import LastBlocks, Lora
    from ..report.partition_page import GradientStat

    config, cache = load_config(file, overrides), ResourceCache(Runtime(data_dir=data_dir))
    trainables = {"trained": config.trainable, **({"last block": LastBlocks()} if isinstance(config.trainable, Lora) else {})}
    statistics: list[GradientStat] = []
    for weights, trainable in trainables.items():
        skewed, iid = replace(config, trainable=trainable), replace(iid_baseline(config), trainable=trainable)
        measured = measure_gradient_dissimilarity(skewed, cache)
        # Seeds have 53 bits, because they are stored in JSON.
        seeds = [derive_seed(config.seed, "gradients", "chance", index) % 2**53 for index in range(NUM_CHANCE_PARTITIONS)]
        chance_values = [measure_gradient_dissimilarity(iid, cache, partition_seed=seed) for seed in seeds]
        for name in measured:
            values = np.array([float(result[name]) for result in chance_values])
            statistics.append(GradientStat(weights, str(name), float(measured[name]), float(values.mean()), float(values.std(ddof=1))))
    return tuple(statistics)


def find_tokenizer(model: str) -> tuple[Path | None, str]:
    """Return the model's tokenizer.json, or None and a note on why documents are counted in words."""
    model_source = resolve_model(model)
    file = None
    if isinstance(model_source, Path):
        file = model_source / "tokenizer.json"
    elif isinstance(model_source, Preset) and model_source.origin == "package":
        file = Path(presets.__file__).with_name("pocket") / "tokenizer.json"
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model_source.hub_id if isinstance(model_source, Preset) else model_source, "tokenizer.json")
        file = Path(cached) if isinstance(cached, str) else None
    if file is not None and file.is_file():
        return file, ""
    return None, (
        f"Documents are counted in words, because the tokenizer of {model} cannot be read without loading the model. "
        "A run counts tokens and may assign a few documents to other clients."
    )


def count_answer_tokens(corpus: Corpus, folder: Path, block_length: int) -> np.ndarray:
    """Count the tokens of each conversation that count in the loss, [D], as a run with blocks of this length counts them."""
    from ..data import tokenize_corpus
    from ..models.presets import load_tokenizer

    return tokenize_corpus(corpus, load_tokenizer(folder), cache_dir=None).trained_sizes(block_length)


def count_tokens(corpus: Corpus, file: Path) -> np.ndarray:
    """Count the tokens of each document [D], including the end token, as a run counts them.

    The counts are cached by the texts and the tokenizer, because tokenization takes longer than the partition. A cache that cannot be
    read or written is not used.
    """
    digest = sha256(version("tokenizers").encode() + file.read_bytes())
    for text in corpus.text:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    cached = default_cache_dir() / "tokens" / f"lengths-{digest.hexdigest()[:32]}.npy"
    try:
        lengths: np.ndarray = np.load(cached, allow_pickle=False)
        if lengths.shape == (len(corpus),) and lengths.dtype == np.int64:
            return lengths
    except (OSError, ValueError, EOFError):
        pass
    lengths, content = tokenize_lengths(corpus, file), BytesIO()
    np.save(content, lengths)
    with suppress(OSError, UserError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, content.getvalue())
    return lengths


def tokenize_lengths(corpus: Corpus, file: Path) -> np.ndarray:
    """Tokenize each document and return the number of its tokens [D], including the end token."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises this class itself
        raise UserError(
            f"cannot read the tokenizer in {file}: {' '.join(str(error).split())[:200]}. Copy the model's tokenizer.json again"
        ) from error
    tokenizer.encode_special_tokens = True  # text that spells a special token is tokenized as text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths: list[int] = []
    for start in range(0, len(corpus), TOKENIZER_BATCH):
        encodings = tokenizer.encode_batch_fast(corpus.text[start : start + TOKENIZER_BATCH].tolist(), add_special_tokens=False)
        lengths += [len(encoding.ids) + 1 for encoding in encodings]
    return np.array(lengths, dtype=np.int64)
