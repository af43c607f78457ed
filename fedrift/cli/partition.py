"""Commands that look at a partition before any training: show, export, tables. Without ``--gradients`` none loads torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DataDir, ExperimentFile, Json, Overrides, print_json

if TYPE_CHECKING:
    from ..data.encoders import Encoder
    from ..report.partition_page import PartitionReport

MAX_CLIENTS = 20  # clients on a terminal; the page shows more
app = typer.Typer(name="partition", no_args_is_help=True, help="See who holds what, before any training.")


@app.command()
def show(
    file: ExperimentFile,
    overrides: Overrides = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write the page to this HTML file. [default: partition.html, none with --json]", show_default=False),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            show_default=False,
            help=("In whose vectors the clients' documents are compared: lsa, wordllama or none. [default: the corpus's, else lsa]"),
        ),
    ] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients", help=("Compare the clients' gradients at the first weights too; this loads the model."))
    ] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """How different the clients are, each number beside what chance gives; and an HTML page with the figures.

    `fedrift partition show experiments/demo.yaml partition.severity=0.5`
    """
    from functools import partial

    from ..core.random import numpy_stream
    from ..report.partition_page import build_partition_report, write_partition_page
    from .partition_data import embed_documents, gradient_statistics, load_data_config, partition_dataset

    dealt = partition_dataset(load_data_config(file, overrides or ()), data_dir)
    chosen = parse_encoder(encoder) if encoder else dealt.config.dataset.encoder or "lsa"
    shown = build_partition_report(
        dealt.corpus,
        dealt.partition,
        dealt.config.to_dict(),
        partial(numpy_stream, dealt.config.seed),
        unit=dealt.unit,
        note=dealt.note,
        vectors=embed_documents(dealt, chosen) if chosen else None,
        encoder=chosen or "",
        gradients=gradient_statistics(file, overrides or (), data_dir) if gradients else (),
    )
    page = None if as_json and html is None else write_partition_page(shown, html or Path("partition.html"))
    if as_json:
        print_json(shown.to_json())
    else:
        print_partition(shown)
        typer.echo(f"\npage {page.resolve()}" if page else "")


@app.command()
def export(
    file: ExperimentFile,
    overrides: Overrides = None,
    output_dir: Annotated[Path, typer.Option("--output", help="A new folder.")] = Path("clients"),
    data_dir: DataDir = None,
) -> None:
    """Write what each client holds as a data set of its own, with `partition.json`.

    `datasets.load_dataset("clients", "client0")` reads the first client back.
    """
    from ..partition.export import export_partition as write
    from .partition_data import load_data_config, partition_dataset

    dealt = partition_dataset(load_data_config(file, overrides or ()), data_dir)
    listed = write(dealt.corpus, dealt.partition, output_dir, {"experiment": dealt.config.to_dict(), "unit": dealt.unit})
    typer.echo(f"{len(dealt.partition)} clients in {output_dir.resolve()}, listed in {listed.name}")
    if dealt.note:
        typer.echo(dealt.note, err=True)


@app.command()
def tables(
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**53 - 1, help="Of the draws.")] = 0,
    draws: Annotated[int, typer.Option("--draws", min=10, max=1_000_000, help="Of each Dirichlet distribution.")] = 2000,
    as_json: Json = False,
) -> None:
    """Deal synthetic pools and set what is measured beside what the books say; exit code 1 if they disagree."""
    from rich.console import Console
    from rich.table import Table

    from ..partition.reference_tables import reproduce_tables

    rows = reproduce_tables(seed, draws)
    if as_json:
        print_json([{**asdict(row), "agrees": row.is_within_tolerance} for row in rows])
    else:
        shown = Table(title="What a dial should measure and what it does")
        for name in ("table", "setting", "quantity", "expected", "found", "allowed", ""):
            shown.add_column(name, justify="right" if name in ("expected", "found", "allowed") else "left")
        for row in rows:
            shown.add_row(
                row.table,
                row.setting,
                row.quantity,
                f"{row.expected:.4g}",
                f"{row.measured:.4f}",
                f"± {row.tolerance:.4f}",
                "" if row.is_within_tolerance else "[red]differs[/]",
            )
        screen = Console(highlight=False)
        screen.print(shown)
        screen.print(f"{sum(row.is_within_tolerance for row in rows)} of {len(rows)} agree within sampling error")
    if not all(row.is_within_tolerance for row in rows):
        raise typer.Exit(1)


def parse_encoder(name: str) -> Encoder | None:
    """The encoder of that name, none for ``none``."""
    from typing import get_args

    from ..core.errors import unknown_name_error
    from ..data.encoders import Encoder

    known: dict[str, Encoder | None] = {**{one: one for one in get_args(Encoder)}, "none": None}
    if name not in known:
        raise unknown_name_error("encoder", name, known)
    return known[name]


def print_partition(report: PartitionReport) -> None:
    """The numbers, who holds what, who differs from whom, words and a sample of each client."""
    from rich.console import Console
    from rich.table import Table

    from ..report.partition_page import METRIC_TITLES, format_number, format_row, summarize, truncate_text

    screen, measured = Console(highlight=False), report.heterogeneity
    screen.print(f"[bold]{report.title}[/]")
    screen.print(summarize(measured))
    if report.note:
        screen.print(f"[dim]{report.note}[/]")

    numbers = Table(title="How different the clients are (chance: 20 IID re-splits)")
    for name in ("number", "here", "by chance", "z"):
        numbers.add_column(name, justify="left" if name == "number" else "right")
    for number in measured.measurements:
        title, _, *rest = format_row(number)
        numbers.add_row(title, *rest, style="bold" if number.is_beyond_chance else "")
    screen.print(numbers)

    if report.gradients:
        slopes = Table(title="How differently they pull at the first weights (chance: 5 IID deals)")
        for name in ("number", "weights", "here", "dealt IID"):
            slopes.add_column(name, justify="left" if name == "number" else "right")
        for slope in report.gradients:
            slopes.add_row(
                METRIC_TITLES[slope.name][0],
                slope.weights,
                format_number(slope.value),
                f"{format_number(slope.iid_mean)} ± {format_number(slope.deviation)}",
            )
        screen.print(slopes)

    clients = range(min(measured.num_clients, MAX_CLIENTS))
    held = Table(title=f"{report.unit.capitalize()} by client and domain")
    domains = range(len(measured.domains)) if len(measured.domains) <= 8 else []
    for name in ("client", "documents", report.unit, *(measured.domains[d] for d in domains)):
        held.add_column(name, justify="right", overflow="fold")
    for k in clients:
        held.add_row(
            str(k),
            f"{measured.documents[k]:,}",
            f"{measured.budgets[k]:,.0f}",
            *(f"{measured.tokens_by_domain[k, d]:,.0f}" for d in domains),
        )
    screen.print(held)

    if 1 < measured.num_clients <= 12:
        apart = Table(title="Divergence of two clients' words, bits")
        apart.add_column("")
        for k in clients:
            apart.add_column(str(k), justify="right")
        for k in clients:
            apart.add_row(str(k), *("" if k == j else f"{measured.word_jsd[k, j]:.2f}" for j in clients))
        screen.print(apart)

    texts = Table(title="What tells each client from the others, and how one of its documents begins", show_lines=True)
    for name in ("client", "words", "text"):
        texts.add_column(name, overflow="fold")
    for k in clients:
        texts.add_row(
            str(k),
            ", ".join(word for word, _ in report.distinctive_words[k][:6]),
            truncate_text(report.samples[k][0].text, 160) if report.samples[k] else "",
        )
    screen.print(texts)
    if measured.num_clients > MAX_CLIENTS:
        screen.print(f"[dim]the first {MAX_CLIENTS} of {measured.num_clients} clients; --json has them all[/]")
