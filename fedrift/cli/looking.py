"""Commands that look at runs: runs, show, report. None of them needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import ROOT, Json, Names, Root


def runs(root: Root = ROOT, as_json: Json = False) -> None:
    """List the runs, the oldest first."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ..store import list_runs
    from .screen import title

    found = list_runs(root)
    if as_json:
        typer.echo(json.dumps([{"id": run.id, "status": run.status, "name": title(run), "experiment": run.experiment}
                               for run in found]))
        return
    if not found:
        typer.echo(f"no runs in {root.resolve()}; `fedrift demo` makes six")
        return
    table = Table(box=SIMPLE)
    for name in ("id", "run", "corpus", "model", "seed", "rounds", "status"):
        table.add_column(name, no_wrap=name in ("id", "run", "status"))
    for run in found:
        said, trajectory = run.experiment, run.trajectory()
        reached = int(trajectory.rounds.max(initial=0))
        table.add_row(run.id, title(run), said["corpus"]["name"], said["model"], str(said["seed"]),
                      f"{reached}/{said['plan']['rounds']}", run.status)
    Console().print(table)


def show(name: Annotated[str, typer.Argument(help="A run's id (its first letters do), or its folder.", metavar="RUN")],
         root: Root = ROOT, as_json: Json = False) -> None:
    """Show one run: verdict, losses by domain, events; `--json` gives the experiment and every record."""
    from rich.console import Console
    from rich.table import Table

    from ..store import find_run
    from .screen import number, summary

    run = find_run(root, name)
    trajectory = run.trajectory()
    if as_json:
        rows = json.loads(trajectory.frame().to_json(orient="records"))
        typer.echo(json.dumps({"id": run.id, "status": run.status, "experiment": run.experiment, "records": rows,
                               "events": run.events()}))
        return
    summary(run)
    domains = trajectory.domains_of("loss") if trajectory.has("loss") else ()
    if domains:
        table = Table(title="loss in nats per token")
        for column in ("domain", "start", "lowest", "end"):
            table.add_column(column, justify="left" if column == "domain" else "right")
        for domain in ("", *domains):
            loss = trajectory.curve("loss", domain)[trajectory.seen("loss", domain)]
            table.add_row(domain or "all", number(loss[0]), number(loss.min()), number(loss[-1]))
        Console().print(table)
    for event in run.events():
        typer.echo(f"round {event['round']}: {event['kind']}: {event['message']}")


def report(names: Names, out: Annotated[Path, typer.Option("--out", help="A folder, or an .html file.")] = Path("report"),
           root: Root = ROOT) -> None:
    """Write one self-contained HTML page about some runs; each is shown beside its IID twin if that was run too."""
    from ..report import write_report
    from ..store import find_run, list_runs
    from .screen import exhibit

    known = {dealt_iid(run.experiment): run for run in list_runs(root) if is_iid(run.experiment)}
    chosen = [find_run(root, name) for name in names]
    pairs = [(run, None if is_iid(run.experiment) else known.get(dealt_iid(run.experiment))) for run in chosen]
    page = write_report([exhibit(run, twin) for run, twin in pairs], out)
    typer.echo(page.resolve())


def dealt_iid(experiment: dict) -> str:  # type: ignore[type-arg]
    """The stored experiment as its IID twin would be stored, to find that by."""
    kept = {key: value for key, value in experiment.items() if key not in ("id", "partition_table")}
    return json.dumps({**kept, "partition": {**kept["partition"], "severity": 0.0}}, sort_keys=True)


def is_iid(experiment: dict) -> bool:  # type: ignore[type-arg]
    return bool(experiment["partition"].get("severity") == 0)


COMMANDS = [runs, show, report]
