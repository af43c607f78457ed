"""The command ``init``, which writes a commented experiment for the user's data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..data.inspection import ColumnChoice

DEFAULT_NUM_CLUSTERS = 5
DEFAULT_TEST_FRACTION = 0.1

TEMPLATE = """\
# An experiment for fedrift, written by `fedrift init`.
#   fedrift validate {file}             checks it and prints every key with its value
#   fedrift estimate {file}             memory and disk space before a run
#   fedrift run {file} --iid-baseline   runs it and its matched IID baseline, and compares the two
# A key that is left out has its default value. docs/reference/config.md lists all keys.

dataset:
{dataset}
model: pocket            # or smollm2-135m, a Hugging Face model id, or a folder with a model; `fedrift models` lists the named ones
trainable:
  type: Lora             # adapters; or LastBlocks, All
  r: 8                   # the rank of the adapters

partition:               # which client holds which documents
  type: TopicMix         # topics differ between clients; `fedrift partition show {file}` measures the result
  num_clients: {num_clients}
  severity: 1.0          # 0: IID, 1: one topic per client

algorithm:
  type: FedAvg           # or FedProx, Scaffold, FedDyn and others; docs/reference/algorithms.md lists all

training:
  num_rounds: 20
  participation_rate: {participation_rate}   # the fraction of the clients that trains in each round
  local_steps: 10
  batch_size: 4             # sequences per step
  max_seq_length: {max_seq_length:<8}  # tokens per sequence; a longer conversation is cut
  client_optimizer: {{type: AdamW, lr: 0.001}}

seed: 0
"""


def init(
    file: Annotated[Path, typer.Argument(help="The YAML file to write.", metavar="[EXPERIMENT.yaml]")] = Path("experiment.yaml"),
    data: Annotated[
        str, typer.Option("--data", help="The dataset: a file, a folder, a named dataset or a Hugging Face dataset id.")
    ] = "bbc",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a commented experiment for your data, ready to run.

    `fedrift init my.yaml --data reviews.csv`

    The command reads the first rows of a local table to fill in the columns of the text and of the topics. Without a column of
    topics, the documents are grouped into topics by their words. The command writes only the YAML file.
    """
    from ..core.errors import UserError
    from ..data.inspection import propose_columns
    from ..storage.files import write_atomically

    if file.exists() and not force:
        raise UserError(f"{file} exists; name another file, or replace it with --force")
    choice = propose_columns(data)
    dataset, num_clients = describe_dataset(data, choice)
    is_chat = choice is not None and not choice.text
    content = TEMPLATE.format(
        file=file,
        dataset=dataset,
        num_clients=num_clients,
        participation_rate=0.4 if num_clients >= 5 else 1.0,  # two clients per round at least, so that updates are averaged
        max_seq_length=128 if is_chat else 64,
    )
    write_atomically(file, content.encode())
    if choice is not None:
        content = f"text column {choice.text!r}" if choice.text else "instruction or chat data"
        typer.echo(f"{content}, label column {choice.label!r}" if choice.label else f"{content}, no labels")
    typer.echo(f"wrote {file}. Next: `fedrift validate {file}`, then `fedrift run {file} --iid-baseline`")


def describe_dataset(data: str, choice: ColumnChoice | None) -> tuple[str, int]:
    """Return the lines below ``dataset:`` and the number of clients.

    Args:
        data: The value of ``dataset.name``.
        choice: The proposed columns; None for a dataset without columns to choose.
    """
    from ..config.loader import dump_yaml

    def entry(key: str, value: object, comment: str) -> str:
        return f"  {dump_yaml({key: value}, width=10_000).strip()}   # {' '.join(comment.split())[:200]}\n"

    if choice is None:
        return entry("name", data, "a file, a folder of texts, a named dataset (`fedrift datasets`) or a Hugging Face dataset id"), 5
    columns = ", ".join(choice.columns[:12]) + (" ..." if len(choice.columns) > 12 else "")
    lines = entry("name", data, f"columns: {columns}")
    keys: dict[str, Any] = {"text_column": choice.text} if choice.text else {}
    if choice.text:
        lines += entry("text_column", choice.text, "the column of running text")
    keys["label_column"] = choice.label
    if choice.label:
        topics = ", ".join(choice.topics[:5]) + (" ..." if len(choice.topics) > 5 else "")
        lines += entry("label_column", choice.label, f"the column of topics: {topics}")
    else:
        lines += entry("label_column", "", "no column looks like topics")
    num_clusters, test_fraction = choose_split(data, keys, choice)
    if num_clusters is not None:
        lines += entry("num_clusters", num_clusters, f"documents are grouped into {num_clusters} topics by their words")
    if test_fraction != DEFAULT_TEST_FRACTION:
        lines += entry("test_fraction", test_fraction, "the share of documents for testing, so that each topic has some")
    return lines, max(2, min(5, num_clusters or len(choice.topics)))


def choose_split(data: str, keys: Mapping[str, Any], choice: ColumnChoice) -> tuple[int | None, float]:
    """Return the number of clusters and the share of held-out documents with which every topic has held-out documents.

    A small dataset is read to find out; for others, the default values are enough.

    Args:
        data: The value of ``dataset.name``.
        keys: The other keys of the dataset.
        choice: The proposed columns.

    Returns:
        The number of clusters, None if there are labels, and the share of documents in the test split. Where no choice gives every
        topic a held-out document, the last choice.
    """
    from ..core.errors import UserError
    from ..data import DatasetConfig, load_corpus

    cluster_numbers = (None,) if choice.label else (DEFAULT_NUM_CLUSTERS, 3, 2)
    choices = [(number, share) for number in cluster_numbers for share in (DEFAULT_TEST_FRACTION, 0.2, 0.3)]
    if not choice.is_small:
        return choices[0]
    for number, share in choices:
        try:
            corpus = load_corpus(DatasetConfig(data, num_clusters=number, test_fraction=share, **keys))
        except UserError:  # too few documents for this choice
            continue
        if set(corpus.label.tolist()) <= set(corpus.test.label.tolist()):
            return number, share
    return choices[-1]
