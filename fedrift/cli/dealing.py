"""Commands that look at a partition before any training: show, export, tables. Without ``--gradients`` none loads torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Data, File, Json, Overrides, print_json

if TYPE_CHECKING:
    from ..corpus.encode import Encoder
    from ..report.sheet import Sheet

MOST = 20  # clients on a terminal; the page shows more
app = typer.Typer(name="partition", no_args_is_help=True, help="See who holds what, before any training.")


@app.command()
def show(
    file: File, overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the HTML page goes: a folder, or an .html file. "
                                             "[default: partition.html, none with --json]", show_default=False)] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", show_default=False, help=(
        "In whose vectors the clients' documents are compared: lsa, wordllama or none. [default: the corpus's, else lsa]"
    ))] = None,
    gradients: Annotated[bool, typer.Option("--gradients", help=(
        "Compare the clients' gradients at the first weights too; this loads the model."))] = False,
    data: Data = None, as_json: Json = False,
) -> None:
    """How different the clients are, each number beside what chance gives; and an HTML page with the figures.

    `fedrift partition show experiments/demo.yaml partition.severity=0.5`
    """
    from functools import partial

    from ..report.partition_page import write_partition_page
    from ..report.sheet import sheet
    from ..seeds import numpy_stream
    from .deals import carry_out, read_deal, slopes_of, vectors_of

    dealt = carry_out(read_deal(file, overrides or ()), data)
    chosen = encoder_said(encoder) if encoder else dealt.deal.corpus.encoder or "lsa"
    shown = sheet(dealt.corpus, dealt.partition, dealt.deal.written(), partial(numpy_stream, dealt.deal.seed),
                  unit=dealt.unit, note=dealt.note, vectors=vectors_of(dealt, chosen) if chosen else None,
                  encoder=chosen or "", slopes=slopes_of(file, overrides or (), data) if gradients else ())
    page = None if as_json and out is None else write_partition_page(shown, out or Path("partition.html"))
    if as_json:
        print_json(shown.plain())
    else:
        on_screen(shown)
        typer.echo(f"\npage {page.resolve()}" if page else "")


@app.command()
def export(file: File, overrides: Overrides = None,
           out: Annotated[Path, typer.Option("--out", help="A new folder.")] = Path("clients"),
           data: Data = None) -> None:
    """Write what each client holds as a data set of its own, with `partition.json`.

    `datasets.load_dataset("clients", "client0")` reads the first client back.
    """
    from ..partition.export import export as write
    from .deals import carry_out, read_deal

    dealt = carry_out(read_deal(file, overrides or ()), data)
    listed = write(dealt.corpus, dealt.partition, out, {"experiment": dealt.deal.written(), "unit": dealt.unit})
    typer.echo(f"{len(dealt.partition)} clients in {out.resolve()}, listed in {listed.name}")
    if dealt.note:
        typer.echo(dealt.note, err=True)


@app.command()
def tables(seed: Annotated[int, typer.Option("--seed", min=0, max=2**53 - 1, help="Of the draws.")] = 0,
           draws: Annotated[int, typer.Option("--draws", min=10, max=1_000_000, help="Of each Dirichlet distribution.")] = 2000,
           as_json: Json = False) -> None:
    """Deal synthetic pools and set what is measured beside what the books say; exit code 1 if they disagree."""
    from rich.console import Console
    from rich.table import Table

    from ..partition.tables import reproduce

    rows = reproduce(seed, draws)
    if as_json:
        print_json([{**asdict(row), "agrees": row.agrees} for row in rows])
    else:
        shown = Table(title="What a dial should measure and what it does")
        for name in ("table", "setting", "quantity", "expected", "found", "allowed", ""):
            shown.add_column(name, justify="right" if name in ("expected", "found", "allowed") else "left")
        for row in rows:
            shown.add_row(row.table, row.setting, row.quantity, f"{row.expected:.4g}", f"{row.found:.4f}",
                          f"± {row.error:.4f}", "" if row.agrees else "[red]differs[/]")
        screen = Console(highlight=False)
        screen.print(shown)
        screen.print(f"{sum(row.agrees for row in rows)} of {len(rows)} agree within sampling error")
    if not all(row.agrees for row in rows):
        raise typer.Exit(1)


def encoder_said(name: str) -> Encoder | None:
    """The encoder of that name, none for ``none``."""
    from typing import get_args

    from ..corpus.encode import Encoder
    from ..errors import unknown

    known: dict[str, Encoder | None] = {**{one: one for one in get_args(Encoder)}, "none": None}
    if name not in known:
        raise unknown("encoder", name, known)
    return known[name]


def on_screen(shown: Sheet) -> None:
    """The numbers, who holds what, who differs from whom, words and a sample of each client."""
    from rich.console import Console
    from rich.table import Table

    from ..report.sheet import TITLES, beginning, line, plain_number, verdict

    screen, measured = Console(highlight=False), shown.measured
    screen.print(f"[bold]{shown.title}[/]")
    screen.print(verdict(measured))
    if shown.note:
        screen.print(f"[dim]{shown.note}[/]")

    numbers = Table(title="How different the clients are (chance: 20 IID re-splits)")
    for name in ("number", "here", "by chance", "z"):
        numbers.add_column(name, justify="left" if name == "number" else "right")
    for number in measured.numbers:
        title, _, *rest = line(number)
        numbers.add_row(title, *rest, style="bold" if number.beyond else "")
    screen.print(numbers)

    if shown.slopes:
        slopes = Table(title="How differently they pull at the first weights (chance: 5 IID deals)")
        for name in ("number", "weights", "here", "dealt IID"):
            slopes.add_column(name, justify="left" if name == "number" else "right")
        for slope in shown.slopes:
            slopes.add_row(TITLES[slope.name][0], slope.parts, plain_number(slope.value),
                           f"{plain_number(slope.twin)} ± {plain_number(slope.deviation)}")
        screen.print(slopes)

    clients = range(min(measured.clients, MOST))
    held = Table(title=f"{shown.unit.capitalize()} by client and domain")
    domains = range(len(measured.domains)) if len(measured.domains) <= 8 else []
    for name in ("client", "documents", shown.unit, *(measured.domains[d] for d in domains)):
        held.add_column(name, justify="right", overflow="fold")
    for k in clients:
        held.add_row(str(k), f"{measured.documents[k]:,}", f"{measured.budgets[k]:,.0f}",
                     *(f"{measured.table[k, d]:,.0f}" for d in domains))
    screen.print(held)

    if 1 < measured.clients <= 12:
        apart = Table(title="Divergence of two clients' words, bits")
        apart.add_column("")
        for k in clients:
            apart.add_column(str(k), justify="right")
        for k in clients:
            apart.add_row(str(k), *("" if k == j else f"{measured.pairwise[k, j]:.2f}" for j in clients))
        screen.print(apart)

    texts = Table(title="What tells each client from the others, and how one of its documents begins", show_lines=True)
    for name in ("client", "words", "text"):
        texts.add_column(name, overflow="fold")
    for k in clients:
        texts.add_row(str(k), ", ".join(word for word, _ in shown.words[k][:6]),
                      beginning(shown.samples[k][0].text, 160) if shown.samples[k] else "")
    screen.print(texts)
    if measured.clients > MOST:
        screen.print(f"[dim]the first {MOST} of {measured.clients} clients; --json has them all[/]")
