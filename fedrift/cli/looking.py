"""Commands that look at runs: runs, show, report. None of them needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import ROOT, VERBOSE, Json, Root, print_json, tell_unreadable


def runs(root: Root = ROOT, as_json: Json = False) -> None:
    """List the runs, the oldest first."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ..store import list_runs, list_unreadable, read_each
    from ..store.run import Run
    from .screen import title

    def row(run: Run) -> tuple[str, ...]:
        said, reached = run.experiment, int(run.trajectory().rounds.max(initial=0))
        return (run.id, title(run), said["corpus"]["name"], said["model"], str(said["seed"]),
                f"{reached}/{said['plan']['rounds']}", run.status)

    found, bad = read_each(list_runs(root), row)
    bad += list_unreadable(root)
    if as_json:
        print_json([{"id": run.id, "status": run.status, "name": title(run), "experiment": run.experiment}
                    for run, _ in found] + [{"id": each.id, "status": "unreadable", "reason": each.reason} for each in bad])
        return
    if not (found or bad):
        typer.echo(f"no runs in {root.resolve()}; `fedrift demo` makes six")
        return
    table = Table(box=SIMPLE)
    for name in ("id", "run", "corpus", "model", "seed", "rounds", "status"):
        table.add_column(name, no_wrap=name in ("id", "run", "status"))
    for _, cells in found:
        table.add_row(*cells)
    if found:
        Console().print(table)
    tell_unreadable(bad)


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
        print_json({"id": run.id, "status": run.status, "experiment": run.experiment, "records": trajectory.frame(),
                    "events": run.events()})
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
    if run.status == "failed":
        why = run.read_json("failed")
        typer.echo(f"failed after round {why['round']}: {why['message']}")
        if VERBOSE.get():
            typer.echo(why.get("traceback", "no traceback was stored"))


def report(
    names: Annotated[list[str], typer.Argument(help="A study's name or YAML file; or ids of runs, or folders.",
                                               metavar="STUDY | RUN...")],
    html: Annotated[bool, typer.Option("--html", help="A study as one page; what is made if nothing is asked.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="A study as a paper, and its figures as SVG.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="A study's tables as LaTeX (booktabs).")] = False,
    out: Annotated[Path, typer.Option("--out", help="A folder, or an .html file.")] = Path("report"), root: Root = ROOT,
) -> None:
    """Write a study's report, or one self-contained HTML page about some runs, each beside its IID twin if that was run too.

    `fedrift report small --html --pdf --latex --out small-report`, or `fedrift report 5c35 77e0`

    A study may be empty, unfinished or failed: the report says so. Nothing is fetched from anywhere.
    """
    from ..errors import UserError
    from ..store import Run, find_runs, list_runs, list_unreadable, read_each
    from ..study import studies

    if len(names) == 1 and names_a_study(names[0], root):
        for path in study_report(names[0], out, root, html or not (pdf or latex), pdf, latex):
            typer.echo(path.resolve())
        return
    if pdf or latex:
        known = f"; there are {', '.join(studies(root))}" if studies(root) else f"; {root.resolve()} holds none"
        raise UserError(f"--pdf and --latex are of a study, and {' '.join(names)!r} names none{known}. Runs have an HTML page")
    from ..report import write_report
    from .screen import exhibit

    twins = {dealt_iid(run.experiment): run for run in list_runs(root) if is_iid(run.experiment) and "fork" not in run.experiment}
    chosen, faulty = find_runs(root, names)
    runs, bad = read_each(chosen, Run.trajectory)
    others = {run.id: None if is_iid(run.experiment) else twins.get(dealt_iid(run.experiment)) for run, _ in runs}
    baselines, missing = read_each([twin for twin in others.values() if twin], Run.trajectory)
    tell_unreadable(dict.fromkeys([*faulty, *bad, *missing, *list_unreadable(root)]))
    if not runs:
        raise UserError("none of these runs can be read")
    readable = {run.id for run, _ in baselines}
    pairs = [(run, twin if (twin := others[run.id]) and twin.id in readable else None) for run, _ in runs]
    page = write_report([exhibit(run, twin) for run, twin in pairs], out)
    typer.echo(page.resolve())


def names_a_study(name: str, root: Path) -> bool:
    from ..study import studies

    return name in studies(root) or name.endswith((".yaml", ".yml")) or (Path(name) / "study.json").is_file()


def study_report(name: str, out: Path, root: Path, html: bool, pdf: bool, latex: bool) -> list[Path]:
    """Write a study's report, telling what is being made; the files to look at."""
    from rich.console import Console

    from ..report.study import write_study_report
    from ..study import find_study

    with Console(stderr=True).status("reading") as status:
        made = write_study_report(find_study(root, name), out, html=html, pdf=pdf, latex=latex, say=status.update)
    return [path for path in made if path.suffix in (".html", ".pdf") or path.name == "all.tex"]


def dealt_iid(experiment: dict) -> str:  # type: ignore[type-arg]
    """The stored experiment as its IID twin would be stored, to find that by."""
    kept = {key: value for key, value in experiment.items() if key not in ("id", "partition_table", "fork")}
    return json.dumps({**kept, "partition": {**kept["partition"], "severity": 0.0}}, sort_keys=True)


def is_iid(experiment: dict) -> bool:  # type: ignore[type-arg]
    return bool(experiment["partition"].get("severity") == 0)  # and so is a fork of such a run


COMMANDS = [runs, show, report]
