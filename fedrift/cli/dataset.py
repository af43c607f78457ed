"""The command ``fedrift dataset show``, which shows what is read from a dataset, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DataDir, Json, Overrides, print_json

if TYPE_CHECKING:
    from rich.console import Console

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
    from ..data.chat_tokens import template_notes
    from ..data.overview import is_experiment_file, show_examples, summarize_corpus, summarize_tokens
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
