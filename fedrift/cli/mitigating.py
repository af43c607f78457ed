"""The command about mitigations: mitigate."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ROOT, Data, Device, File, Fresh, Json, Overrides, Root, Threads, print_json, runtime

if TYPE_CHECKING:
    from ..arms.page import Part
    from ..stock import Stock
    from ..study import Book, Study

Seeds = Annotated[int, typer.Option("--seeds", min=1, max=1000, help="How many paired seeds, from --first-seed on.")]
First = Annotated[int, typer.Option("--first-seed", min=0, max=2**53 - 1001, help="The first seed.")]
Only = Annotated[str, typer.Option("--arms", help="Some arms, e.g. `text,random,oracle`; `all` for the optional ones too.")]
Clusters = Annotated[int | None, typer.Option(
    "--clusters", min=1, max=100_000, help="How many clusters; counted from the text if not said.")]
Restarts = Annotated[int, typer.Option("--restarts", min=1, max=1000, help="Starts of IFCA in every seed, all of them paid for.")]
Draws = Annotated[int, typer.Option("--draws", min=1, max=1000, help="Draws of the random clusters in every seed.")]
Encoder = Annotated[str, typer.Option("--encoder", help="wordllama, minilm, states, hashing or lsa.")]
Workers = Annotated[int, typer.Option("--workers", min=1, max=1024, help="Runs at once, each in a process of one thread.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write the tables here too: .md, .html or .json.")]
Map = Annotated[bool, typer.Option("--map", help="Over regimes and severities: where can clustering help, where not?")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Only list the runs and what they cost.")]


def mitigate(file: File, overrides: Overrides = None, map: Map = False, seeds: Seeds = 6, first_seed: First = 0, arms: Only = "",
             encoder: Encoder = "wordllama", clusters: Clusters = None, restarts: Restarts = 5, draws: Draws = 1,
             dry_run: Dry = False, out: Out = None, workers: Workers = 1, root: Root = ROOT, data: Data = None,
             device: Device = "auto", threads: Threads = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """Does it help to cluster the clients? All arms of one experiment, at equal training, over paired seeds.

    `fedrift mitigate experiments/mitigation.yaml --seeds 6 --out table.md`

    Arms: vanilla; k-means on text embeddings; random clusters of the same sizes; the true domains; clusters of the first
    updates; IFCA; everybody alone; vanilla and text clusters with local steps; centralised; the IID deal. `cfl` and `soft` are
    there for the asking. Each is compared with random clusters and with vanilla, seed by seed. Five seeds or fewer can
    never reach p < .05. Stopped at any moment it goes on when the same command is given again.

    `fedrift mitigate experiments/mitigation.yaml --map --seeds 3` goes through topic, style, token and quantity skew and
    severities: what text clusters gain over random ones, beside what the descriptors know of the clients.
    """
    from ..arms import contest
    from ..arms.maps import Map, mapped
    from ..arms.parts import map_parts, parts, plain, records
    from ..arms.table import found
    from ..config import load_yaml
    from ..stock import Stock

    stock = Stock(runtime(root, data, device, threads))
    asked = contest(load_yaml(file), overrides or (), arms=named(arms), seeds=range(first_seed, first_seed + seeds),
                    encoder=encoder, clusters=clusters, restarts=restarts, draws=draws, stock=stock)
    study = Map(asked).study() if map else asked.study()
    if dry_run:
        foresee(study, stock, as_json)
        return
    book = carried(study, stock, workers, fresh)
    command = "fedrift " + " ".join(shlex.quote(word) for word in sys.argv[1:])
    if map:
        gains, starved = mapped(book)
        told = map_parts(gains, starved)
        said = {"study": study.name, "command": command, "map": records(gains), "starved": records(starved)}
    else:
        came = found(book)
        told, said = parts(came), plain(came, command)
    show(told, said, command, out, as_json)
    if not as_json:
        typer.echo(book.folder)


def carried(study: Study, stock: Stock, workers: int, fresh: bool = False) -> Book:
    """Run what is missing; ``fresh``: everything."""
    from ..study.conduct import conduct
    from ..study.executors import Local, Processes
    from .progress import Watching

    with Watching() as watching:
        try:
            return conduct(study, stock, Local() if workers == 1 else Processes(workers), watching.begin, fresh)
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from here", err=True)
            raise


def foresee(study: Study, stock: Stock, as_json: bool) -> None:
    """What would be run."""
    from ..study.conduct import foreseen
    from ..study.cost import cost

    plan, _ = foreseen(study, stock)
    price = cost(plan.experiments.values(), stock, False)
    if as_json:
        print_json({"study": study.name, "runs": [vars(entry) for entry in plan.entries]})
        return
    ids: dict[str, list[str]] = {}
    for entry in plan.entries:
        ids.setdefault(", ".join(str(level) for level in entry.factors.values() if level is not None), []).append(entry.run[:6])
    for label, every in ids.items():
        typer.echo(f"{label:24} {' '.join(every)}")
    typer.echo(f"study {study.name}: {price.runs} runs, {price.done} of them done; {price.tokens:,.0f} tokens to train on")


def show(told: list[Part], said: dict[str, Any], command: str, out: Path | None, as_json: bool) -> None:
    """The tables on the screen, and in a file."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ..arms.page import html, markdown
    from ..store.lines import write_value

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(markdown(told, command) if out.suffix == ".md" else html(told, command) if out.suffix == ".html" else
                       write_value(said, 1) + "\n")
    if as_json:
        print_json(said)
        return
    screen = Console(highlight=False, markup=False)
    for part in told:
        screen.print(f"\n{part.heading}", style="bold")
        screen.print(part.words)
        if part.rows:
            table = Table(box=SIMPLE)
            for place, name in enumerate(part.columns):
                table.add_column(name, justify="right" if place else "left")
            for row in part.rows:
                table.add_row(*row)
            screen.print(table)


def named(arms: str) -> list[str]:
    """The arms that were asked for."""
    from ..arms import ARMS

    return list(ARMS) if arms == "all" else [name.strip() for name in arms.split(",") if name.strip()]


COMMANDS = [mitigate]
