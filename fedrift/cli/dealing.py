"""Commands that look at a partition before any training: show, export. None of them needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Data, File, Json, Overrides

if TYPE_CHECKING:
    from ..report.sheet import Sheet

MOST = 20  # clients on a terminal; the page shows more
app = typer.Typer(name="partition", no_args_is_help=True, help="See who holds what, before any training.")


@app.command()
def show(
    file: File, overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the HTML page goes: a folder, or an .html file. "
                                             "[default: partition.html, none with --json]", show_default=False)] = None,
    data: Data = None, as_json: Json = False,
) -> None:
    """How different the clients are, each number beside what chance gives; and an HTML page with the figures.

    `fedrift partition show experiments/demo.yaml partition.severity=0.5`
    """
    from functools import partial

    from ..report.partition_page import write_partition_page
    from ..report.sheet import sheet
    from ..seeds import numpy_stream
    from .deals import carry_out, read_deal

    dealt = carry_out(read_deal(file, overrides or ()), data)
    shown = sheet(dealt.corpus, dealt.partition, dealt.deal.written(), partial(numpy_stream, dealt.deal.seed),
                  unit=dealt.unit, note=dealt.note)
    page = None if as_json and out is None else write_partition_page(shown, out or Path("partition.html"))
    if as_json:
        typer.echo(json.dumps(shown.plain(), ensure_ascii=False))
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


def on_screen(shown: Sheet) -> None:
    """The numbers, who holds what, who differs from whom, words and a sample of each client."""
    from rich.console import Console
    from rich.table import Table

    from ..report.sheet import beginning, line, verdict

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
