"""fedrift's partitions for any data set of Hugging Face: a partitioner with the interface of ``flwr-datasets``, and a report.

Neither ``datasets`` nor ``flwr-datasets`` is imported: a data set is used through ``select``, its columns and ``add_column``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import numpy as np

from .core.errors import UserError, quote_value, unknown_name_error
from .core.random import numpy_stream
from .data.corpus import TRAIN, Corpus
from .data.rows import read_labels
from .partition.base import Partition, Partitioner, document_id, partition_corpus
from .partition.heterogeneity import NUM_RESPLITS, Heterogeneity, measure_heterogeneity


class DocumentPartitioner:
    """A partition of one data set, with the interface of ``flwr_datasets.partitioner.Partitioner``. ``partitioner`` makes it.

    Args:
        partition: How the documents are assigned, for example ``fedrift.TopicMix(num_clients=10, severity=0.8)``.
        text_column: The column of the texts.
        label_column: The column of the topics, which partitions by topic need.
        seed: The seed of the assignment.
    """

    def __init__(self, partition: Partitioner, text_column: str = "text", label_column: str | None = None, seed: int = 0) -> None:
        self.partition, self.text_column, self.label_column, self.seed = partition, text_column, label_column, seed
        self._dataset: Any = None

    @property
    def dataset(self) -> Any:
        """The data set. It can be set once; ``flwr_datasets.FederatedDataset`` sets it.

        Raises:
            UserError: It is not set yet, or is set a second time.
        """
        if self._dataset is None:
            raise UserError("the partitioner has no data set yet: assign one to its attribute dataset")
        return self._dataset

    @dataset.setter
    def dataset(self, value: Any) -> None:
        if self._dataset is not None:
            raise UserError("the partitioner has a data set already: make a new partitioner for another one")
        for column in filter(None, (self.text_column, self.label_column)):
            if column not in value.column_names:
                raise unknown_name_error("column", column, value.column_names)
        self._dataset = value

    def is_dataset_assigned(self) -> bool:
        """Whether the data set is set."""
        return self._dataset is not None

    @property
    def num_partitions(self) -> int:
        """The number of clients."""
        return self.partition.num_clients

    @property
    def severity(self) -> float:
        """How non-IID the partition is, from 0 (IID) to 1."""
        return self.partition.severity

    @cached_property
    def corpus(self) -> Corpus:
        """The data set as fedrift's partitions read it, one document per row."""
        return make_corpus(*read_columns(self.dataset, self.text_column, self.label_column))

    @cached_property
    def assignment(self) -> Partition:
        """Which rows each client holds, and how it rewrites them.

        Raises:
            UserError: The partition cannot be made of this data set, or would be IID although its severity is above 0.
        """
        return partition_corpus(self.partition, self.corpus, partial(numpy_stream, self.seed, "partition"))

    @property
    def indices(self) -> list[list[int]]:
        """The rows of each client, ascending."""
        return [rows.tolist() for rows in self.assignment.rows]

    def load_partition(self, partition_id: int) -> Any:
        """Return the data set of one client, with its texts as the client writes them.

        Args:
            partition_id: The client's number, from 0 on.

        Returns:
            A ``datasets.Dataset`` with the columns of the whole one.

        Raises:
            UserError: There is no such client.
        """
        if not 0 <= int(partition_id) < self.num_partitions:
            raise UserError(f"there is no partition {partition_id}: the partitions are 0 to {self.num_partitions - 1}")
        rows = self.assignment.rows[partition_id]
        subset = self.dataset.select(rows.tolist())
        rewrite = self.assignment.rewrites[partition_id] if self.assignment.rewrites else None
        if rewrite is None:
            return subset
        texts = [rewrite(text, document_id(text)) for text in self.corpus.text[rows]]
        return replace_column(subset, self.text_column, texts)

    def heterogeneity(self, resplits: int = NUM_RESPLITS) -> Heterogeneity:
        """Measure the partition, and compare each number with random partitions of the same sizes.

        Args:
            resplits: The number of random partitions to compare with.

        Returns:
            The report, as that of `fedrift.heterogeneity`.
        """
        return measure_heterogeneity(self.corpus, self.assignment, numpy_stream(self.seed, "heterogeneity"), resplits=resplits)


def partitioner(
    partition: Partitioner, dataset: Any = None, text_column: str = "text", label_column: str | None = None, seed: int = 0
) -> DocumentPartitioner:
    """Make a partitioner of any of fedrift's partitions for ``datasets`` and ``flwr-datasets``.

    Args:
        partition: How the documents are assigned. ``severity`` is its degree of heterogeneity: 0 is the IID baseline.
        dataset: A ``datasets.Dataset``. Default: it is set later, as ``flwr_datasets.FederatedDataset`` does.
        text_column: The column of the texts.
        label_column: The column of the topics, which partitions by topic need.
        seed: The seed of the assignment.

    Returns:
        A partitioner: ``num_partitions``, ``load_partition(i)``, ``indices`` and ``heterogeneity()``.

    Raises:
        UserError: The dataset has no such column.

    Example:
        >>> from datasets import Dataset
        >>> dataset = Dataset.from_dict({"text": ["goal", "match", "chip", "code"], "label": ["sport", "sport", "tech", "tech"]})
        >>> skewed = fedrift.partitioner(fedrift.TopicMix(num_clients=2, severity=1.0), dataset, label_column="label")
        >>> sorted(skewed.load_partition(0)["text"])
        ['goal', 'match']
    """
    if not callable(partition) or not hasattr(partition, "num_clients"):
        raise UserError(f"the partition is {quote_value(partition)}; give one such as fedrift.TopicMix(num_clients=10, severity=0.8)")
    made = DocumentPartitioner(partition, text_column, label_column, seed)
    register_with_flower(may_import=dataset is None)  # a data set that comes later is one of flwr-datasets
    if dataset is not None:
        made.dataset = dataset
    return made


def heterogeneity(
    partitions: Any,
    texts: Sequence[str] | None = None,
    labels: Sequence[Any] | None = None,
    *,
    text_column: str = "text",
    label_column: str | None = None,
    seed: int = 0,
    resplits: int = NUM_RESPLITS,
) -> Heterogeneity:
    """Measure how much the clients' data differ, and compare each number with random partitions of the same sizes.

    Args:
        partitions: Each client's row numbers or mask of rows, with ``texts``; or each client's data set; both as a list or as a mapping
            whose values they are. Or a partitioner with ``num_partitions`` and ``load_partition(i)``, such as those of ``flwr-datasets``.
        texts: The texts that the row numbers are of.
        labels: Their topics.
        text_column: The column of the texts in the data sets.
        label_column: The column of the topics in the data sets.
        seed: The seed of the random partitions.
        resplits: The number of random partitions to compare with. With 0 there is no comparison.

    Returns:
        The report. ``report["token.jsd"].value`` is the Jensen-Shannon divergence of the clients' words in bits, ``null_mean`` and
        ``null_std`` are the mean and standard deviation over the random partitions, ``z`` is the distance in standard deviations, and
        ``is_beyond_chance`` says whether it is larger than chance explains. ``to_dict()`` has all numbers.

    Raises:
        UserError: A client holds nothing, rows are not row numbers or out of range, a text is not text, there are not as many labels as
            texts, labels are structures or class numbers without a name, or the data set has no such column.

    Example:
        >>> report = fedrift.heterogeneity([[0, 2], [1, 3]], texts=["a b", "c d", "a a", "d d"], resplits=5)
        >>> report.num_clients
        2
    """
    partitions = list(partitions.values()) if isinstance(partitions, Mapping) else partitions
    if texts is not None:
        texts = check_texts("the text", texts)
        labels = None if labels is None else list(labels)
        if labels is not None and len(labels) != len(texts):
            raise UserError(
                f"there are {len(labels):,} labels for {len(texts):,} texts: give one label for each text, or None where it has none"
            )
        if not isinstance(partitions, Iterable):
            raise UserError(f"the partitions are {quote_value(partitions)}: give a list of row numbers for each client, or leave texts out")
        topics = name_labels(labels, None, "the labels", len(texts))
        clients = [read_rows(rows, texts, topics) for rows in partitions]
    elif labels is not None:
        raise UserError("labels are given without texts: give the texts too, or name the column of the data sets with label_column")
    else:
        clients = [read_columns(each, text_column, label_column) for each in load_all(partitions)]
    empty = [number for number, (own, _) in enumerate(clients) if not own]
    if empty or not clients:
        raise UserError(f"client {empty[0]} holds no document" if empty else "there are no clients: give a list of row numbers for each")
    topics = [topic for _, own in clients for topic in own]
    corpus = make_corpus([text for own, _ in clients for text in own], topics)
    ends = np.cumsum([len(own) for own, _ in clients])
    rows = tuple(np.arange(end - len(own), end) for end, (own, _) in zip(ends, clients, strict=True))
    return measure_heterogeneity(corpus, Partition(rows), numpy_stream(seed, "heterogeneity"), resplits=resplits)


# From columns to a corpus.

Columns = tuple[list[str], list[str | None]]
"""Texts and their topics; None if there is none."""


def load_all(partitions: Any) -> list[Any]:
    """The data sets of a partitioner, or those of a list."""
    if hasattr(partitions, "load_partition"):
        return [partitions.load_partition(number) for number in range(partitions.num_partitions)]
    found = list(partitions)
    if not all(hasattr(each, "column_names") for each in found):
        raise UserError("give texts beside lists of row numbers, or one data set for each client")
    return found


def read_rows(rows: Any, texts: Sequence[str], topics: Sequence[str | None]) -> Columns:
    """One client's texts and topics by row numbers, or by a mask with a truth value for each text."""
    if not isinstance(rows, Iterable) or isinstance(rows, (str, bytes)):
        raise UserError(f"the rows of a client are {quote_value(rows)}: give a list of row numbers for each client")
    numbers: list[Any] = rows.tolist() if hasattr(rows, "tolist") else list(rows)
    if numbers and all(isinstance(row, (bool, np.bool_)) for row in numbers):
        if len(numbers) != len(texts):
            raise UserError(
                f"a mask of rows has {len(numbers):,} values for {len(texts):,} texts: give one value for each text, or row numbers"
            )
        numbers = [row for row, is_own in enumerate(numbers) if is_own]
    for row in numbers:
        if isinstance(row, bool) or not isinstance(row, (int, np.integer)):
            raise UserError(
                f"row {quote_value(row)} is no row number: give whole numbers from 0 to {len(texts) - 1}, or a mask of all rows"
            )
        if not 0 <= row < len(texts):
            raise UserError(f"row {row} is out of range: there are {len(texts)} texts")
    return [texts[row] for row in numbers], [topics[row] for row in numbers]


def check_texts(where: str, values: Iterable[Any]) -> list[str]:
    """The texts as a list.

    Raises:
        UserError: One of them is not text.
    """
    if isinstance(values, str):
        raise UserError(f"{where} is {quote_value(values)}: give a list of texts")
    texts = list(values)
    odd = next((number for number, text in enumerate(texts) if not isinstance(text, str)), None)
    if odd is not None:
        raise UserError(f"row {odd} of {where} is {quote_value(texts[odd])}, and has to be text")
    return texts


def read_columns(dataset: Any, text_column: str, label_column: str | None) -> Columns:
    """The texts and topics of a data set, whose class numbers stand for its own class names."""
    for column in filter(None, (text_column, label_column)):
        if column not in dataset.column_names:
            raise unknown_name_error("column", column, dataset.column_names)
    texts = check_texts(f"the column {text_column!r}", dataset[text_column])
    labels, feature = (None, None) if label_column is None else (dataset[label_column], dataset.features[label_column])
    return texts, name_labels(labels, feature, f"the column {label_column!r}", len(texts))


def name_labels(labels: Iterable[Any] | None, feature: Any, where: str, count: int) -> list[str | None]:
    """The topics of ``count`` texts, named as those of a corpus are (``data.rows.read_labels``), with its notes as warnings.

    Whole numbers below 0 without a class name, and the missing values of pandas, are no topics.

    Raises:
        UserError: Labels are structures or bytes, or a class number has no name.
    """
    if labels is None:
        return [None] * count
    cells = [label.item() if getattr(label, "ndim", None) == 0 else label for label in labels]
    is_missing = [(isinstance(cell, int) and cell < 0) or str(cell) in ("NaT", "<NA>") for cell in cells]
    topics, notes = read_labels([None if missing else cell for cell, missing in zip(cells, is_missing, strict=True)], feature, where)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return topics


def make_corpus(texts: Sequence[str], topics: Sequence[str | None]) -> Corpus:
    """A corpus of training documents in the given order, with the topic of each; sizes are in whitespace words."""
    domains = tuple(sorted({topic for topic in topics if topic is not None}))
    number = {domain: place for place, domain in enumerate(domains)}
    written, source = np.empty(len(texts), dtype=object), np.empty(len(texts), dtype=object)
    written[:], source[:] = list(texts), ""
    return Corpus(
        "this data set",
        written,
        np.array([-1 if topic is None else number[topic] for topic in topics], dtype=np.int64),
        domains,
        source,
        np.full(len(texts), TRAIN, dtype=np.int8),
        np.array([len(text.split()) for text in texts], dtype=np.int64),
        has_source=False,
    )


def replace_column(dataset: Any, column: str, values: Sequence[str]) -> Any:
    """A data set with other texts in one column; order and types of the columns stay."""
    order, feature = list(dataset.column_names), dataset.features[column]
    return dataset.remove_columns(column).add_column(column, list(values), feature=feature).select_columns(order)


def register_with_flower(may_import: bool) -> None:
    """Let ``flwr_datasets`` accept a ``DocumentPartitioner`` as one of its partitioners, where it is loaded or may be."""
    if may_import and find_spec("flwr_datasets") is not None:
        import_module("flwr_datasets.partitioner")
    module = sys.modules.get("flwr_datasets.partitioner")
    if module is not None:
        cast(Callable[[type], type], module.Partitioner.register)(DocumentPartitioner)


__all__ = ["DocumentPartitioner", "heterogeneity", "partitioner"]
