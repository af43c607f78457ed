"""Commands for your own data: ``init`` writes a commented experiment for it, ``dataset show`` shows what is read, without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DataDir, Json, Overrides, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from ..data.overview import ColumnChoice

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
app = typer.Typer(name="dataset", no_args_is_help=True, help="Show what is read from a dataset. No training is needed.")


@app.callback()
def dataset() -> None:
    """Keep ``show`` a subcommand."""


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A file, folder, named dataset or hub id, or the YAML file of an experiment.", metavar="FILE | EXPERIMENT.yaml"
        ),
    ],
    overrides: Overrides = None,
    num_examples: Annotated[int, typer.Option("--examples", min=0, max=1000, help="The number of training examples to print.")] = 3,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show what is read from a dataset, what is left out, and what the model sees.

    `fedrift dataset show chats.jsonl` reads a file with the defaults and the tokenizer of the model `pocket`.

    `fedrift dataset show my.yaml dataset.train_on=all --examples 5` reads the dataset of an experiment.

    The command prints files, rows, columns, format, topics, sources, the rows that are left out with the reason, token counts, and
    examples. Tokens that count in the loss are in ⟦brackets⟧. It writes no files.
    """
    summary = read_summary(name, overrides or [], num_examples, data_dir)
    if as_json:
        print_json(summary)
        return
    from rich.console import Console

    print_summary(summary, Console())


def read_summary(name: str, overrides: list[str], num_examples: int, data_dir: Path | None) -> dict[str, Any]:
    """Load a dataset and summarize it, as JSON values.

    Args:
        name: A dataset, or the YAML file of an experiment.
        overrides: Overrides of the keys of an experiment.
        num_examples: The number of examples to show.
        data_dir: The folder of local datasets.
    """
    from ..config.loader import parse_value
    from ..config.schema import REGISTRY, TrainingConfig
    from ..core.errors import default_cache_dir
    from ..data import load_corpus, tokenize_corpus
    from ..data.overview import is_experiment_file, show_examples, summarize_corpus, summarize_tokens
    from ..data.tokenization import template_notes
    from .partition_data import dataset_subset, find_tokenizer, parse_data_config, read_data_keys

    content = read_data_keys(Path(name) if is_experiment_file(name) else {"dataset": {"name": name}}, overrides)
    config = parse_data_config(content)
    training: TrainingConfig = parse_value(TrainingConfig, content.get("training", {}), REGISTRY, "training")
    block_length = training.max_seq_length
    corpus = load_corpus(config.dataset, data_dir=data_dir, subset=dataset_subset(config.model), cache_dir=default_cache_dir() / "vectors")
    summary = {**summarize_corpus(config.dataset, corpus), "model": config.model}
    file, note = find_tokenizer(config.model)
    if file is None:
        summary["notes"].append(note)
        return summary
    from ..models.presets import load_tokenizer

    tokenizer = load_tokenizer(file.parent)
    tokens = tokenize_corpus(corpus, tokenizer, cache_dir=None)
    summary["notes"] += template_notes(corpus.examples, tokenizer, corpus.chat_template)
    summary["tokens"] = summarize_tokens(corpus, tokens, block_length)
    summary["examples"] = show_examples(corpus, tokens, tokenizer, num_examples, block_length)
    return summary


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print a summary as text."""
    from textwrap import fill

    from rich.markup import escape

    def line(label: str, value: object) -> None:
        indent = " " * 13
        text = fill(str(value), max(console.width, 40), initial_indent=indent, subsequent_indent=indent, break_long_words=False)
        console.print(f"[bold]{label:<12}[/bold]{escape(text[12:])}", highlight=False, soft_wrap=True)

    line("dataset", f"{summary['dataset']} (format {summary['format']})")
    line("files", list_names(summary["files"]) or "none on this machine")
    line("columns", ", ".join(summary["columns"]) or "none")
    line("rows", f"{summary['rows']:,}")
    line("documents", ", ".join(f"{count:,} {split}" for split, count in summary["documents"].items()))
    line("left out", ", ".join(f"{count:,} {reason}" for reason, count in summary["left_out"].items()) or "nothing")
    line("topics", list_counts(summary["topics"]) or "none")
    if summary["topics"] and summary["without_topic"]:
        line("", f"{summary['without_topic']:,} documents have no topic")
    line("sources", list_counts(summary["sources"]) or "none")
    for split, counts in summary.get("tokens", {}).get("splits", {}).items():
        cut = f", {counts['cut']:,} cut to {summary['tokens']['max_seq_length']}" if counts.get("cut") else ""
        unused = f", {counts['without_answer']:,} without an answer in them" if counts.get("without_answer") else ""
        line(
            "tokens" if split == "train" else "",
            f"{split}: {counts['tokens']:,}, of which {counts['trained_tokens']:,} count in the loss; median length "
            f"{counts['median_length']:,}, longest {counts['longest']:,}{cut}{unused}",
        )
    for note in summary["notes"]:
        line("note", note)
    for number, example in enumerate(summary.get("examples", ()), 1):
        console.print(
            f"\n[bold]example {number}[/bold] ({example['tokens']} tokens, topic {escape(str(example['topic']))})", highlight=False
        )
        parts = (f"[green]⟦{escape(part['text'])}⟧[/green]" if part["trained"] else escape(part["text"]) for part in example["segments"])
        console.print("".join(parts), highlight=False, soft_wrap=True)


def list_names(names: list[str]) -> str:
    """List the first names and the number of the others."""
    from ..data.overview import MAX_LISTED

    return ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else "")


def list_counts(counts: dict[str, int]) -> str:
    """List the most frequent values with their counts."""
    return list_names([f"{name} ({count:,})" for name, count in counts.items()])


# init


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
    from ..data.overview import propose_columns
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
