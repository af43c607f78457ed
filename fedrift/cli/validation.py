"""Check without torch whether an experiment can be run, for ``fedrift validate``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from ..config.schema import ExperimentConfig
from ..core.errors import UserError, default_cache_dir, quote_value
from ..core.random import numpy_stream
from ..data import TEST, TRAIN, VALIDATION, Corpus, DatasetConfig, load_corpus, tokenize_corpus
from ..data.catalog import NAMED_DATASETS
from ..data.corpus import UNLABELED
from ..data.dataset import check_available, load_general_corpus
from ..data.readers import find_local_path, list_files
from ..engine.checks import check_block_length, check_combination, check_context_length, check_measured_domains, no_held_out_error
from ..models.presets import PRESETS, find_context_length, find_weights, resolve_model
from ..models.trainable import All, LastBlocks, Lora, check_quantization_installed
from ..partition import Calibrated
from ..partition.base import call_partitioner, partition_corpus
from .partition_data import count_tokens, dataset_subset, find_tokenizer

SPLIT_CODES = {"validation": VALIDATION, "test": TEST}
MAX_BYTES = 100_000_000  # a larger dataset is not read, because that takes longer than a user waits for a check
MAX_COUNTED_CHARS = 1_000_000  # the tokens of longer texts are not counted, for the same reason
MAX_COUNTED_CHAT_CHARS = 200_000  # chat templates are slower
# The last parts of the names of trained parameters, which decide whether an aggregator fits.
PARAM_NAMES: dict[type, tuple[str, ...]] = {Lora: ("block.A", "block.B"), LastBlocks: ("block.weight",), All: ("block.weight",)}


def check_experiment(config: ExperimentConfig, data_dir: Path | None = None) -> list[str]:
    """Check what a run would refuse, as far as that is quick.

    Args:
        config: The experiment.
        data_dir: The folder of local datasets.

    Returns:
        What was not checked, as phrases.

    Raises:
        UserError: A run of the experiment would be refused.
    """
    check_model(config)
    subset = dataset_subset(config.model)
    check_available(config.dataset, data_dir=data_dir, subset=subset)
    general = config.evaluation.general_dataset if "general" in config.evaluation.probes else ""
    if general:
        check_available(DatasetConfig(general), data_dir=data_dir)
    unchecked = [f"the weights of the model {config.model!r}"]
    names = [name for name in (config.dataset.name, general) if name]
    unread = [name for name in names if not is_quick_to_read(name)]
    if unread:
        unchecked.append(f"the documents of {' and '.join(map(quote_value, unread))}")
    if config.dataset.name in unread:
        return unchecked
    corpus = load_corpus(config.dataset, data_dir=data_dir, subset=subset, cache_dir=default_cache_dir() / "vectors")
    if general and general not in unread:
        load_general_corpus(corpus, general, is_pocket_model=config.model == PRESETS["pocket"].name, data_dir=data_dir)
    return unchecked + check_documents(config, corpus)


def check_model(config: ExperimentConfig) -> None:
    """Check the model's name and files, and that what is trained fits the algorithm; no weights are read.

    Raises:
        UserError: The model cannot be used, or the settings cannot be combined.
    """
    source = resolve_model(config.model)
    if isinstance(source, Path):
        find_weights(source)
        check_model_config(source / "config.json")
    check_quantization_installed(getattr(config.trainable, "quantization", "none"))
    context_length = find_context_length(config.model)
    if context_length is not None:
        check_context_length(config, context_length)
    num_clients = config.partition.num_clients
    config.clustering.check_num_clients(num_clients)
    names = PARAM_NAMES.get(type(config.trainable))
    if names is not None:  # the names of a user's own trainable are known with the model only
        placeholders = [np.zeros(1, dtype=np.int64)] * num_clients
        client_rows, _, _ = config.algorithm.configure_clients(
            placeholders, config.training.cohort_size(num_clients), config.training.local_steps
        )
        check_combination(config, names, len(client_rows))


def check_model_config(path: Path) -> None:
    """Raise UserError if the configuration of a model is missing or no JSON object."""
    try:
        is_object = isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        is_object = False
    if not is_object:
        problem = "is not a JSON object" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}: copy the model's config.json there, or name another folder as model")


def is_quick_to_read(name: str) -> bool:
    """Return whether a dataset is a file or folder of the user and not large."""
    path = None if name in NAMED_DATASETS else find_local_path(name)
    if path is None:
        return False
    files = [path] if path.is_file() else [file for file in list_files(path) if file.is_file()]
    return sum(file.stat().st_size for file in files) <= MAX_BYTES


def check_documents(config: ExperimentConfig, corpus: Corpus) -> list[str]:
    """Check that the documents can be partitioned, and that the loss of every client can be measured.

    Returns:
        What was not checked, as phrases.

    Raises:
        UserError: A run would be refused.
    """
    evaluation = config.evaluation
    is_held_out = corpus.split == SPLIT_CODES[evaluation.split]
    if not is_held_out.any():
        raise no_held_out_error(corpus.name, evaluation.split)
    if "classification" in evaluation.probes and (len(corpus.domains) < 2 or not (is_held_out & (corpus.label >= 0)).any()):
        raise UserError(
            f"evaluation.probes: the group 'classification' needs held-out documents with at least two labels, but dataset {corpus.name!r} "
            f"has {len(corpus.domains)} labels and {int((is_held_out & (corpus.label >= 0)).sum()):,} such documents: set "
            "dataset.label_column, or remove the group"
        )
    file, _ = find_tokenizer(config.model)
    num_chars, has_examples = sum(map(len, corpus.text)), corpus.examples is not None
    is_counted = file is not None and num_chars <= (MAX_COUNTED_CHAT_CHARS if has_examples else MAX_COUNTED_CHARS)
    train = np.flatnonzero(corpus.split == TRAIN)
    sizes, has_loss = corpus.size, np.ones(len(corpus), dtype=bool)
    if is_counted and file is not None and has_examples:
        from ..models.presets import load_tokenizer

        tokens = tokenize_corpus(corpus, load_tokenizer(file.parent), cache_dir=None)
        check_block_length(config, corpus, tokens)
        sizes = tokens.trained_sizes(config.training.max_seq_length)
        has_loss = sizes > 0
        if not (is_held_out & has_loss).any():
            raise no_held_out_error(corpus.name, evaluation.split)
    elif is_counted and file is not None:
        sizes = sizes.copy()
        sizes[train] = count_tokens(corpus.take(train), file)
    training_corpus = corpus.with_sizes(sizes).take(train)
    make_rng = partial(numpy_stream, config.seed, "partition")
    if isinstance(config.partition, Calibrated):  # it measures many partitions
        return ["the partition"]
    if not is_counted:  # the clients of a run may hold other documents, because it measures documents in tokens
        call_partitioner(config.partition, training_corpus, make_rng())
        return ["whether each client's loss can be measured, because the tokens were not counted"]
    partition = partition_corpus(config.partition, training_corpus, make_rng)
    label = np.where(corpus.label < 0, len(corpus.domains), corpus.label)
    client_rows, _, _ = config.algorithm.configure_clients(
        [train[rows] for rows in partition.rows], config.training.cohort_size(len(partition)), config.training.local_steps
    )
    num_domains = len(corpus.domains) + 1
    is_trained = np.stack([np.bincount(label[rows], sizes[rows], num_domains) > 0 for rows in client_rows])
    is_measured = np.bincount(label[is_held_out & has_loss], minlength=num_domains) > 0
    check_measured_domains(is_trained, is_measured, (*corpus.domains, UNLABELED), evaluation.split, corpus.name)
    return []
