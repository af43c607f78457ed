"""The commands ``partition show``, ``partition export`` and ``partition tables``, which need no training.

They do not load torch, except for ``partition show --gradients``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DataDir, ExperimentFile, Json, Overrides, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from ..data.encoders import Encoder
    from ..report.partition_page import PartitionReport

MAX_CLIENTS = 20  # clients shown on a terminal; the HTML page shows more
app = typer.Typer(
    name="partition",
    no_args_is_help=True,
    help="Show, export and check partitions, which assign documents to clients. No training is needed.",
)


@app.command()
def show(
    file: ExperimentFile,
    overrides: Overrides = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="The HTML file to write. [default: partition.html; with --json no file]", show_default=False),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            show_default=False,
            help="The text embedding that compares the clients' documents: lsa, wordllama or none. [default: dataset.encoder, else lsa]",
        ),
    ] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Also compare the clients' gradients at the initial weights; this loads the model.")
    ] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show how much the clients of a partition differ, compared with random IID partitions.

    `fedrift partition show experiments/demo.yaml partition.severity=0.5`

    `fedrift partition show my.yaml --gradients --html my-partition.html` also compares the clients' gradients.

    The command prints how far the clients' words, domains and embeddings differ, the documents per client and the distinctive words of
    each client. It writes an HTML page
    with figures.
    """
    from functools import partial

    from ..core.random import numpy_stream
    from ..report.partition_page import Embeddings, build_partition_report, write_partition_page
    from .partition_data import embed_documents, gradient_statistics, load_data_config, partition_dataset

    data = partition_dataset(load_data_config(file, overrides or ()), data_dir)
    encoder_name = parse_encoder(encoder) if encoder else data.config.dataset.encoder or "lsa"
    report = build_partition_report(
        data.corpus,
        data.partition,
        data.config.to_dict(),
        partial(numpy_stream, data.config.seed),
        unit=data.unit,
        note=data.note,
        embeddings=Embeddings(encoder_name, embed_documents(data, encoder_name)) if encoder_name else None,
    )
    if gradients:
        report = report._replace(gradients=gradient_statistics(file, overrides or (), data_dir))
    page = None if as_json and html is None else write_partition_page(report, html or Path("partition.html"))
    if as_json:
        print_json(report.to_json())
    else:
        print_partition(report)
        typer.echo(f"\npage {page.resolve()}" if page else "")


@app.command()
def export(
    file: ExperimentFile,
    overrides: Overrides = None,
    output_dir: Annotated[Path, typer.Option("--output", help="The folder to create.")] = Path("clients"),
    data_dir: DataDir = None,
) -> None:
    """Export the documents of each client as a separate dataset.

    `fedrift partition export experiments/demo.yaml --output clients`

    The command writes one Hugging Face dataset per client and `partition.json` to the `--output` folder.
    `datasets.load_dataset("clients", "client0")` loads the documents of the first client.
    """
    from ..partition.export import export_partition
    from .partition_data import load_data_config, partition_dataset

    data = partition_dataset(load_data_config(file, overrides or ()), data_dir)
    index_path = export_partition(data.corpus, data.partition, output_dir, {"experiment": data.config.to_dict(), "unit": data.unit})
    typer.echo(f"{len(data.partition)} clients in {output_dir.resolve()}, listed in {index_path.name}")
    if data.note:
        typer.echo(data.note, err=True)


@app.command()
def tables(
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**53 - 1, help="The random seed of the simulated partitions.")] = 0,
    draws: Annotated[
        int, typer.Option("--draws", min=10, max=1_000_000, help="The number of draws from each Dirichlet distribution.")
    ] = 2000,
    as_json: Json = False,
) -> None:
    """Check partitions of synthetic documents against reference tables of their divergence.

    `fedrift partition tables --draws 10000`

    The command prints each expected value, the measured value and the allowed difference, and writes no files. The exit code is 1
    if a difference is larger than allowed.
    """
    from rich.console import Console

    from ..partition.reference_tables import reproduce_tables
    from .tables import print_table

    rows = reproduce_tables(seed, draws)
    if as_json:
        print_json([{**asdict(row), "agrees": row.is_within_tolerance} for row in rows])
    else:
        console, numbers = Console(highlight=False), ("expected", "found", "allowed")
        cells = [
            (
                row.table,
                row.setting,
                row.quantity,
                f"{row.expected:.4g}",
                f"{row.measured:.4f}",
                f"± {row.tolerance:.4f}",
                "" if row.is_within_tolerance else "differs",
            )
            for row in rows
        ]
        title = "Measured divergence of synthetic partitions and its expected value"
        print_table(console, ("table", "setting", "quantity", *numbers, ""), cells, numbers, title)
        console.print(f"{sum(row.is_within_tolerance for row in rows)} of {len(rows)} agree within sampling error")
    if not all(row.is_within_tolerance for row in rows):
        raise typer.Exit(1)


def parse_encoder(name: str) -> Encoder | None:
    """Return the encoder of that name, or None for ``none``.

    Raises:
        UserError: If there is no encoder of that name.
    """
    from typing import get_args

    from ..core.errors import unknown_name_error
    from ..data.encoders import Encoder

    known: dict[str, Encoder | None] = {**{encoder: encoder for encoder in get_args(Encoder)}, "none": None}
    if name not in known:
        raise unknown_name_error("encoder", name, known)
    return known[name]


def print_partition(report: PartitionReport) -> None:
    """Print the measures, the documents per client, the pairwise divergence, and words and a sample text of each client."""
    from rich.console import Console

    from ..report.partition_page import format_row, summarize
    from .tables import print_table

    console, heterogeneity = Console(highlight=False), report.heterogeneity
    console.print(f"[bold]{report.title}[/]")
    console.print(summarize(heterogeneity))
    if report.note:
        console.print(f"[dim]{report.note}[/]")

    rows = []
    for measurement in heterogeneity.measurements:
        title, _, *cells = format_row(measurement)
        rows.append((title, *cells, "differs" if measurement.is_beyond_chance else ""))
    numbers = ("value", "by chance", "z")
    print_table(console, ("measure", *numbers, ""), rows, numbers, "How different the clients are (chance: 20 IID re-splits)")
    if report.gradients:
        print_gradients(console, report)
    print_holdings(console, report)
    print_texts(console, report)
    if heterogeneity.num_clients > MAX_CLIENTS:
        console.print(f"[dim]the first {MAX_CLIENTS} of {heterogeneity.num_clients} clients; --json shows all of them[/]")


def print_gradients(console: Console, report: PartitionReport) -> None:
    """Print the gradient dissimilarity of the clients."""
    from ..report.format import format_compact
    from ..report.partition_page import METRIC_TITLES
    from .tables import print_table

    rows = [
        (
            METRIC_TITLES[stat.name][0],
            stat.weights,
            format_compact(stat.value),
            f"{format_compact(stat.iid_mean)} ± {format_compact(stat.deviation)}",
        )
        for stat in report.gradients
    ]
    title = "Gradient dissimilarity at the initial weights (chance: 5 IID partitions)"
    print_table(console, ("measure", "weights", "value", "IID"), rows, ("weights", "value", "IID"), title)


def print_holdings(console: Console, report: PartitionReport) -> None:
    """Print the documents per client and domain, and the divergence of every two clients if there are few."""
    from .tables import print_table

    heterogeneity = report.heterogeneity
    clients = range(min(heterogeneity.num_clients, MAX_CLIENTS))
    domains = range(len(heterogeneity.domains)) if len(heterogeneity.domains) <= 8 else []
    columns = ("client", "documents", report.unit, *(heterogeneity.domains[d] for d in domains))
    rows = [
        (
            str(k),
            f"{heterogeneity.documents[k]:,}",
            f"{heterogeneity.budgets[k]:,.0f}",
            *(f"{heterogeneity.tokens_by_domain[k, d]:,.0f}" for d in domains),
        )
        for k in clients
    ]
    print_table(console, columns, rows, columns, f"{report.unit.capitalize()} by client and domain")

    if 1 < heterogeneity.num_clients <= 12:
        names = [str(k) for k in clients]
        rows = [(str(k), *("" if k == j else f"{heterogeneity.word_jsd[k, j]:.2f}" for j in clients)) for k in clients]
        print_table(console, ("", *names), rows, names, "Jensen-Shannon divergence of the words of two clients, in bits")


def print_texts(console: Console, report: PartitionReport) -> None:
    """Print the distinctive words of each client and the beginning of one of its documents."""
    from ..report.partition_page import truncate_text
    from .tables import print_table

    rows = [
        (
            str(k),
            ", ".join(word for word, _ in report.distinctive_words[k][:6]),
            truncate_text(report.samples[k][0].text, 160) if report.samples[k] else "",
        )
        for k in range(min(report.heterogeneity.num_clients, MAX_CLIENTS))
    ]
    title = "Distinctive words of each client, and the beginning of one of its documents"
    print_table(console, ("client", "words", "text"), rows, title=title)
