"""Commands about many runs: study, sql, compare."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ROOT, VERBOSE, Data, Device, Fresh, Json, Root, Threads, print_json, runtime, tell_unreadable

if TYPE_CHECKING:
    from ..stock import Stock
    from ..store import Run
    from ..study import Study

StudyFile = Annotated[Path, typer.Argument(help="The study's YAML file.", metavar="STUDY.yaml")]
Changes = Annotated[list[str] | None, typer.Argument(
    help="`executor=processes`, `executor.workers=4`, and changes to the study: `seeds=3`, `base.plan.rounds=10`.",
    metavar="[a.b=c]...")]
Sinks = Annotated[list[str] | None, typer.Option(
    "--sink", help="Also send every run's numbers to tensorboard, mlflow, wandb or trackio; may be given more than once.")]
States = Annotated[bool, typer.Option("--states", help="Also how alike their final models' hidden states are, by layer.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Only list the runs, their ids, what is confounded, and the cost.")]
Probe = Annotated[bool, typer.Option("--probe/--no-probe", help="With --dry-run: measure this machine's speed in a few rounds.")]


def study(file: StudyFile, overrides: Changes = None, dry_run: Dry = False, probe: Probe = True, root: Root = ROOT,
          data: Data = None, device: Device = "auto", threads: Threads = None, sink: Sinks = None,
          fresh: Fresh = False, as_json: Json = False) -> None:
    """Run a study, or go on with it: every cell, every seed, each beside its IID twin; tuned first where it says so.

    `fedrift study studies/small.yaml --dry-run`, then `fedrift study studies/small.yaml executor=processes`

    Stopped at any moment it goes on when the same command is given again. Executors: `local` (one run after another),
    `processes` (several at once on this machine), `ray`, `slurm`. Started on several machines that share the folder of the
    runs, each run is done once. Runs that another study made are not made again, unless `--fresh` asks for it. `--sink` sends
    a run's numbers there when it is over. The exit code is 1 if a run failed.
    """
    from ..config import Rooms, overridden, read
    from ..sinks import ready
    from ..stock import Stock
    from ..study import executors, load_study
    from ..study.executors import Executor

    said = list(overrides or ())
    where = [text for text in said if text.split("=")[0].split(".")[0] == "executor"]
    asked = load_study(file, [text for text in said if text not in where])
    named = {name.lower(): name for name in executors.__all__}
    place: dict[str, Any] = overridden({"executor": "Local"}, where)
    chosen = {"is": place["executor"]} if isinstance(place["executor"], str) else place["executor"]
    if isinstance(chosen, dict):
        kind = chosen.get("is", "Local")
        chosen = {**chosen, "is": named.get(kind.lower(), kind) if isinstance(kind, str) else kind}
    executor = read(Executor, chosen, Rooms({Executor: executors}), "executor")
    stock = Stock(runtime(root, data, device, threads))
    if dry_run:
        foresee(asked, stock, probe, as_json)
    else:
        ready(sink or (), root)  # what is missing is told before anything is run
        go(asked, stock, executor, as_json, sink or (), fresh)


def foresee(study: Study, stock: Stock, probe: bool, as_json: bool) -> None:
    """What would be run."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ..setting import known_caveats
    from ..study.conduct import foreseen
    from ..study.cost import cost
    from ..study.planning import written

    plan, known = foreseen(study, stock)
    said, price = written(study, plan, known), cost(plan.experiments.values(), stock, probe)
    caveats = Counter(caveat for experiment in plan.experiments.values() for caveat in known_caveats(experiment))
    if as_json:
        print_json({"study": said["study"], "designs": said["designs"], "choices": said["choices"], "ids_final": known,
                    "runs": [vars(entry) for entry in plan.entries], "cost": vars(price),
                    "caveats": [{"caveat": caveat, "runs": runs} for caveat, runs in caveats.items()]})
        return
    screen = Console(highlight=False)
    table = Table(box=SIMPLE)
    for name in ("stage", "role", "arm", "seeds", "ids"):
        table.add_column(name, no_wrap=name in ("stage", "role"), overflow="fold")
    rows: dict[tuple[str, str, str], list[Any]] = {}
    for entry in plan.entries:
        settings = f" [{', '.join(f'{k}={v}' for k, v in entry.settings.items())}]" if entry.settings else ""
        rows.setdefault((entry.stage, entry.role, entry.arm + settings), []).append(entry)
    for (stage, role, arm), entries in rows.items():
        ids = list(dict.fromkeys(entry.run[:6] for entry in entries))
        seeds = ", ".join(map(str, dict.fromkeys(entry.seed for entry in entries)))
        table.add_row(stage, role, arm.replace("[", r"\["), seeds, " ".join(ids[:6]) + (" ..." if len(ids) > 6 else ""))
    screen.print(table)
    for stage, design in said["designs"].items():
        mixed = "; a main effect is read with part of an interaction in it where one exists:" if design["aliases"] else ""
        screen.print(f"{stage}: {design['cells']} cells{mixed}")
        for alias in design["aliases"]:
            screen.print(f"  {alias['factor']}: {alias['share']:.0%} within {' x '.join(alias['pair'])}")
    if not known:
        screen.print("tuning is not done: ids of what is tuned will change with what it chooses")
    choices(said["choices"])
    for caveat, runs in caveats.items():
        typer.echo(f"caveat, {runs} of {price.runs} runs: {caveat}")
    speed = "" if math.isnan(price.tokens_per_second) else f" at {price.tokens_per_second:,.0f} tokens a second, measured here"
    time = "" if math.isnan(price.seconds) else f": about {duration(price.seconds)} one after another"
    screen.print(f"{price.runs} runs, {price.done} of them done; {price.tokens:,.0f} tokens to train on{time}{speed}")


def go(study: Study, stock: Stock, executor: Any, as_json: bool, sinks: Sequence[str] = (), fresh: bool = False) -> None:
    """Run it, and tell how it ended; exit code 1 if a run failed."""
    from ..sinks import told_when_over
    from ..study import judged
    from ..study.conduct import conduct
    from .progress import Watching

    with Watching() as watching:
        try:
            book = conduct(study, stock, executor, told_when_over(watching.begin, sinks, stock.runtime.root), fresh)
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from here", err=True)
            raise
    frame, verdicts = judged(book)
    failed = frame[frame.status == "failed"]
    if VERBOSE.get():
        for run in failed.run:
            print_traceback(book.run(run))
    if as_json:
        print_json(frame)
        raise typer.Exit(1 if len(failed) else 0)
    choices(book.read()["choices"])
    runs = frame[frame.role == "run"]
    shown = runs.groupby(["stage", "arm"], sort=False)[list(study.outcomes)].mean(numeric_only=True)
    typer.echo(shown.to_string(float_format=lambda value: f"{value:.3f}", max_colwidth=60) if len(shown) else "no runs")
    for verdict in verdicts:
        typer.echo(verdict.sentence)
    for row in failed.to_dict("records"):
        typer.echo(f"failed {str(row['run'])[:6]} {row['arm']}, seed {row['seed']}: {str(row['failure']).splitlines()[0]}")
    typer.echo(f"{len(frame)} runs: {(frame.status == 'finished').sum()} finished, {len(failed)} failed, "
               f"{int(frame.diverged.sum())} diverged. Above are means over seeds.")
    typer.echo(f"{book.folder}; `fedrift report {book.name}{where_said(stock)} --html --pdf` shows it")
    if len(failed):
        raise typer.Exit(1)


def print_traceback(run: Run) -> None:
    """The traceback that a failed run has stored, if it has."""
    if (run.folder / "failed.json").exists():
        typer.echo(f"run {run.id}:\n{run.read_json('failed').get('traceback', '')}", err=True)


def where_said(stock: Stock) -> str:
    """The option that names the folder of the runs, where it is not the usual one."""
    return "" if stock.runtime.root == ROOT else f" --runs {stock.runtime.root}"


def choices(every: list[dict[str, Any]]) -> None:
    """What tuning chose, and where a wider grid is wanted."""
    for choice in every:
        settings = ", ".join(f"{path}={value}" for path, value in choice["settings"].items()) or "nothing: no trial ended well"
        edge = f"; at the edge of the grid: {', '.join(choice['edges'])}" if choice["edges"] else ""
        typer.echo(f"tuned {choice['of']}: {settings}{edge} ({len(choice['tried'])} trials)")


def sql(query: Annotated[str, typer.Argument(help="SQL over `runs`, `records` and `findings`.")], root: Root = ROOT,
        as_json: Json = False) -> None:
    """Ask all runs a question in SQL (DuckDB's).

    `fedrift sql "SELECT algorithm, avg(final_loss) FROM runs GROUP BY ALL"`

    `records(run, round, metric, domain, client, value)` has every number; `runs` one row a run, with a column a path of the
    experiment (`"partition.severity"`, in double quotes); `findings` what detectors left. `DESCRIBE runs` lists columns.
    """
    from ..store import list_unreadable, query_rows
    from ..store import sql as ask

    answer = query_rows(root, query) if as_json else ask(root, query)
    tell_unreadable(list_unreadable(root))
    if isinstance(answer, list):
        print_json(answer)
    else:
        typer.echo(answer.to_string(index=False, max_rows=200))


def compare(one: Annotated[str, typer.Argument(help="A run's id (its first letters do), or its folder.", metavar="A")],
            other: Annotated[str, typer.Argument(help="Another.", metavar="B")],
            root: Root = ROOT, states: States = False, data: Data = None, device: Device = "auto", threads: Threads = None,
            as_json: Json = False) -> None:
    """What differs between two runs: in what was asked, and in what came, over the rounds that both have.

    `fedrift compare 5c35 77e0`

    `fedrift compare 5c35 77e0 --states` loads both models too: how alike are their hidden states, layer by layer? Beside the
    run of `algorithm=Centralised` it is what federation makes of the representation.
    """
    from dataclasses import asdict

    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ..store import find_run
    from ..study.comparison import asked, came

    a, b = find_run(root, one), find_run(root, other)
    differs, found, inside = asked(a, b), came(a, b), {}
    if states:
        from ..likeness import likeness
        from ..stock import Stock

        inside = likeness(a, b, Stock(runtime(root, data, device, threads)))
    if as_json:
        print_json({"asked": {path: list(pair) for path, pair in differs.items()},
                    "came": [asdict(each) for each in found], **({"states": inside} if inside else {})})
        return
    screen = Console(highlight=False)
    config = Table(title="asked" if differs else "asked: the same", box=SIMPLE)
    for name in ("", f"A {a.id[:6]}", f"B {b.id[:6]}"):
        config.add_column(name)
    for path, (left, right) in differs.items():
        config.add_row(path, str(left), str(right))
    screen.print(config)
    table = Table(title="came: mean of the last 5 shared evaluations", box=SIMPLE)
    for name in ("metric", "of", "A", "B", "B - A", "largest B - A", "in round"):
        table.add_column(name, justify="left" if name in ("metric", "of") else "right")
    for each in found:
        if each.end or each.largest:
            table.add_row(each.metric, each.domain, f"{each.one:.4g}", f"{each.other:.4g}", f"{each.end:+.4f}",
                          f"{each.largest:+.4f}", str(each.at))
    screen.print(table)
    if inside:
        table = Table(title="hidden states of the final models, beside each other and the pretrained one (0)", box=SIMPLE)
        for name in ("", "CKA A, B", "A, 0", "B, 0", "cosine A, B", "A, 0", "B, 0"):
            table.add_column(name, justify="right" if name else "left")
        for layer, measures in inside.items():
            table.add_row(layer or "mean", *(f"{value:.4f}" for pairs in measures.values() for value in pairs.values()))
        screen.print(table)
    equal = sum(not (each.end or each.largest) for each in found)
    screen.print(f"{equal} of {len(found)} numbers are the same in both. One seed each: a difference is no effect yet.")


def told(said: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON has no name for as null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in said.items()}


def duration(seconds: float) -> str:
    """``2 h 5 min``, ``3 min 20 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


COMMANDS = [study, sql, compare]
