"""Commands that judge runs: diagnose, find-boundary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import (
    DEFAULT_RUNS_DIR,
    DataDir,
    Device,
    ExperimentFile,
    Json,
    Overrides,
    RunNames,
    RunsDir,
    Threads,
    make_runtime,
    print_json,
    print_unreadable,
    reject_nan,
)

if TYPE_CHECKING:
    from ..diagnosis import Diagnosis
    from ..diagnosis.cases import RunGroup

FailOn = Annotated[
    Literal["suspected", "confirmed"] | None,
    typer.Option("--fail-on", help="Exit with 1 if anything is found of this grade or a graver one."),
]
RunBaselines = Annotated[bool, typer.Option("--iid-baseline", help="Run the IID baselines that are not there yet.")]


def diagnose(
    names: RunNames,
    run_baselines: RunBaselines = False,
    fail_on: FailOn = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Say what broke, since when, for whom, and whether the skew did it.

    Runs that differ only in their seed are judged together. Each is held against its IID baseline; a pooled run, everybody alone,
    FedSGD, other learning rates and other numbers of local steps are used where they are among the runs. One or two seeds raise a
    suspicion; three can confirm one.

    `fedrift diagnose 5c35 77e0 a01b --iid-baseline --fail-on confirmed`
    """
    from ..core.errors import UserError
    from ..diagnosis import diagnose as judge
    from ..diagnosis.across_seeds import diagnoses_to_json
    from ..diagnosis.cases import group_readable_runs
    from ..storage import find_runs, list_runs, list_unreadable
    from .console import run_title

    chosen, faulty = find_runs(runs_dir, names)
    groups, bad = group_readable_runs(chosen, list_runs(runs_dir))
    if run_baselines and run_missing_baselines(groups, runs_dir, data_dir, device, threads):
        groups, bad = group_readable_runs(chosen, list_runs(runs_dir))
    print_unreadable(dict.fromkeys([*faulty, *bad, *list_unreadable(runs_dir)]))
    if not groups:
        raise UserError("none of these runs can be read")
    every = []
    for group in groups:
        judgements = judge(group.cases)
        every += judgements
        said = {
            "runs": [run.id for run in group.runs],
            "iid_baselines": [each.id if each else None for each in group.baselines],
            "thresholds": dict(threshold_version()),
            "findings": diagnoses_to_json(judgements),
        }
        for run in group.runs:
            run.write_json("findings", said)
        if as_json:
            print_json({**said, "findings": [asdict(judgement) for judgement in judgements]})
        else:
            print_diagnoses(group, f"{run_title(group.runs[0])}", judgements)
    grave = {"suspected": ("suspected", "confirmed"), "confirmed": ("confirmed",)}
    if fail_on and any(judgement.grade in grave[fail_on] for judgement in every):
        raise typer.Exit(1)


def run_missing_baselines(groups: list[RunGroup], runs_dir: Path, data_dir: Path | None, device: str, threads: int | None) -> int:
    """Run the twins that are missing; how many that were."""
    from ..config.schema import iid_baseline as iid
    from ..config.schema import parse_stored_config
    from .run import run_experiments

    lone = [run.config for group in groups for run, twin in zip(group.runs, group.baselines, strict=True) if twin is None]
    asked = [parse_stored_config(said) for said in lone]
    wanted = [iid(experiment) for experiment in asked if experiment.partition.severity > 0]
    if wanted:
        run_experiments(wanted, make_runtime(runs_dir, data_dir, device, threads))
    return len(wanted)


def threshold_version() -> dict[str, str]:
    """Which thresholds judged."""
    from ..diagnosis.finding import load_thresholds

    limits = load_thresholds()
    return {"version": str(limits["version"]), "date": str(limits["date"])}


def print_diagnoses(group: RunGroup, name: str, diagnoses: list[Diagnosis]) -> None:
    """What was found first, then what was looked for in vain, then what was not measured."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    screen = Console(highlight=False)
    seeds = ", ".join(str(run.config["seed"]) for run in group.runs)
    twins = sum(twin is not None for twin in group.baselines)
    screen.print(f"[bold]{name}[/]  seeds {seeds}; {twins} of {len(group.runs)} with an IID baseline")
    found = [judgement for judgement in diagnoses if judgement.grade in ("suspected", "confirmed")]
    if found:
        table = Table(box=SIMPLE)
        for column in ("failure", "grade", "since", "clients", "where", "strength"):
            table.add_column(column, justify="right" if column in ("since", "strength") else "left")
        for each in found:
            since = "" if each.first_round is None else str(each.first_round)
            table.add_row(each.failure, each.grade, since, abbreviate(each.clients), abbreviate(each.locations), f"{each.strength:.1f}x")
        screen.print(table)
        for each in found:
            screen.print(f"[bold]{each.failure}[/]: {each.sentence}\n")
    else:
        screen.print("Nothing found. One look is no certificate: effects smaller than these would have been missed.")
    silent = [judgement for judgement in diagnoses if judgement.grade == "none"]
    if silent:
        screen.print("Looked for and not found, with the smallest effect that would have been called:")
        for each in silent:
            screen.print(f"  {each.failure} ({each.detectable_effect:.3g} {each.unit})")
    missing = [judgement for judgement in diagnoses if judgement.grade == "not measured"]
    if missing:
        screen.print("Not measured:")
        for each in missing:
            screen.print(f"  {each.failure}: needs {each.missing_input}")
    if not twins:
        screen.print("Without IID baselines nothing can be laid on the skew; `--iid-baseline` runs them.")


def abbreviate(names: tuple[int, ...] | tuple[str, ...]) -> str:
    """The first of many."""
    return ", ".join(map(str, names[:4])) + (" ..." if len(names) > 4 else "")


# The command that finds where runs begin to break: find-boundary.

if TYPE_CHECKING:
    from rich.status import Status

    from ..config.runtime import Runtime
    from ..engine.callbacks import Progress

BreakTest = Callable[[str, int, float], bool]
"""``(condition, seed, setting)`` -> whether the run breaks."""
LEARNING_RATE = "training.client_optimizer.lr"

Param = Annotated[str, typer.Option("--param", help="The setting that is moved: any number of the experiment.")]
Seeds = Annotated[
    int,
    typer.Option(
        "--seeds", min=2, max=1000, help="Paired seeds, from the experiment's own on; four or more for an interval that is worth its name."
    ),
]
Tolerance = Annotated[
    float, typer.Option("--tolerance", min=0.001, max=1, callback=reject_nan, help="How closely a boundary is bracketed: 0.05 is 5 %.")
]
BreaksBelow = Annotated[
    bool, typer.Option("--breaks-below", help="Runs break below the boundary, not above: `--param training.participation_rate`.")
]
Min = Annotated[float, typer.Option("--min", min=0, max=1e30, callback=reject_nan, help="Nothing lower is tried.")]
Max = Annotated[float, typer.Option("--max", min=0, callback=reject_nan, help="Nothing higher is tried; 1 for shares.")]


def find_boundary(
    file: ExperimentFile,
    overrides: Overrides = None,
    param: Param = LEARNING_RATE,
    seeds: Seeds = 4,
    tolerance: Tolerance = 0.05,
    breaks_below: BreaksBelow = False,
    min_value: Min = 0.0,
    max_value: Max = math.inf,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the learning rate (or another setting) at which a run breaks, and at which its IID baseline does.

    A run breaks if it diverges, as `fedrift diagnose` says it, or if its loss ends above where it began. The first boundary is
    bracketed by factors of four from the experiment's own setting, the others by 1.4 from one that is known, and
    bisected in logarithms. Four seeds and their twins take about 45 runs: shorten them, as below, with rounds enough to break
    in. Runs are kept: stopped, the same command goes on. The ratio IID / skewed comes with its paired t-interval; along
    `partition.severity` there is one condition and no ratio.

    `fedrift find-boundary experiments/high_rate.yaml --seeds 4`

    `fedrift find-boundary my.yaml training.num_rounds=8 evaluation.final_blocks_per_domain=0 --tolerance 0.1`
    """
    from dataclasses import asdict

    import numpy as np

    from ..core.errors import UserError
    from ..stats.boundary import find_boundaries, geometric_mean_ratio

    if not min_value < max_value:
        raise UserError(f"--min {min_value:g} --max {max_value:g}: the lowest setting must lie below the highest")
    conditions = ["skewed"] if param == "partition.severity" else ["IID", "skewed"]
    at: dict[str, list[float]] = {condition: [] for condition in conditions}
    made: dict[str, list[int]] = {condition: [] for condition in conditions}
    with show_boundary_progress(len(conditions) * seeds, param) as tell:
        breaks, start, first = build_break_test(file, overrides or [], param, make_runtime(runs_dir, data_dir, device, threads), tell)
        every = range(first, first + seeds)
        low, high = sorted((flip_scale(min_value, breaks_below), flip_scale(max_value, breaks_below)))

        def trial(condition: str, seed: int, place: float) -> bool:
            return tell.run_trial(breaks, condition, seed, flip_scale(place, breaks_below))

        start = flip_scale(start, breaks_below)
        for seed, condition, found in find_boundaries(trial, conditions, every, start, tolerance, low, high):
            at[condition].append(flip_scale(found.boundary, breaks_below))
            made[condition].append(found.num_runs)
            tell.on_found(condition, seed, at[condition][-1], found.num_runs)
    ratio = geometric_mean_ratio(np.asarray(at["IID"]), np.asarray(at["skewed"])) if len(conditions) > 1 else None
    if as_json:
        print_json({"param": param, "seeds": list(every), "boundary": at, "runs": made, "ratio": asdict(ratio) if ratio else None})
    else:
        print_boundaries(param, first, at, ratio)


def flip_scale(value: float, breaks_below: bool) -> float:
    """From a setting to where the search has it, and back: the reciprocal, where runs break below the boundary."""
    if not breaks_below:
        return value
    return 1 / value if value else math.inf


class BoundaryProgress:
    """Says which search, run and round it is: on a terminal a line that changes, everywhere a line a run and a search."""

    def __init__(self, status: Status, num_searches: int, param: str) -> None:
        self.status, self.num_searches, self.param, self.num_found, self.current = status, num_searches, param, 0, ""

    def run_trial(self, break_test: BreakTest, condition: str, seed: int, setting: float) -> bool:
        self.current = f"seed {seed}, {condition}, {self.param} {setting:.4g}"
        self.status.update(f"boundary {self.num_found + 1} of {self.num_searches}: {self.current}")
        broken = break_test(condition, seed, setting)
        self.print_line(f"{self.current}: {'breaks' if broken else 'stable'}")
        return broken

    def on_round(self, progress: Progress) -> None:
        self.status.update(
            f"boundary {self.num_found + 1} of {self.num_searches}: {self.current}, round {progress.round}/{progress.num_rounds}"
        )

    def on_found(self, condition: str, seed: int, setting: float, runs: int) -> None:
        self.num_found += 1
        self.print_line(
            f"boundary {self.num_found} of {self.num_searches}: seed {seed}, {condition}, "
            f"{'not found' if math.isnan(setting) else f'{setting:.4g}'} after {runs} runs"
        )

    def print_line(self, text: str) -> None:
        self.status.console.print(text, soft_wrap=True, markup=False)


@contextmanager
def show_boundary_progress(num_searches: int, param: str) -> Iterator[BoundaryProgress]:
    """Tells while it lasts; if it is stopped, how to go on."""
    from rich.console import Console

    try:
        with Console(stderr=True, highlight=False).status("loading") as status:
            yield BoundaryProgress(status, num_searches, param)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise


def build_break_test(
    file: Path, overrides: list[str], param: str, runtime: Runtime, progress: BoundaryProgress
) -> tuple[BreakTest, float, int]:
    """Of an experiment's runs; and where to start, its own setting, and its seed."""
    from ..config.schema import iid_baseline, load_config
    from ..core.errors import UserError
    from ..diagnosis.failures import find_runaway, has_worse_final_loss
    from ..diagnosis.finding import THRESHOLDS
    from ..engine.cache import ResourceCache
    from ..engine.run import run_experiment

    stock, base = ResourceCache(runtime), load_config(file, overrides)
    start: Any = base
    for part in param.split("."):
        start = getattr(start, part, None)
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not start > 0:
        raise UserError(
            f"--param {param}: wanted a number above 0 in the experiment, got {start!r}; "
            "for instance training.client_optimizer.lr, training.participation_rate or partition.severity"
        )
    looks, least = base.training.num_rounds // base.evaluation.interval + 1, int(THRESHOLDS["common"]["shortest"])
    if looks < least:
        raise UserError(
            f"the loss of a run of {base.training.num_rounds} rounds is evaluated {looks} times, and whether it diverges "
            f"is told from {least} on: raise training.num_rounds, or lower evaluation.interval"
        )

    def breaks(condition: str, seed: int, setting: float) -> bool:
        made = load_config(file, [*overrides, f"{param}={setting!r}", f"seed={seed}"])
        run = run_experiment(iid_baseline(made) if condition == "IID" else made, stock, progress.on_round)
        return bool(find_runaway(run.trajectory(), THRESHOLDS)[0]) or has_worse_final_loss(run.trajectory())

    return breaks, float(start), base.seed


def print_boundaries(param: str, first_seed: int, boundaries_by_condition: dict[str, list[float]], ratio: Any) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    for column in ("seed", *boundaries_by_condition):
        table.add_column(column, justify="right")
    for number, row in enumerate(zip(*boundaries_by_condition.values(), strict=True)):
        table.add_row(str(first_seed + number), *("not found" if math.isnan(value) else f"{value:.4g}" for value in row))
    screen = Console(highlight=False)
    screen.print(f"Where {param} breaks a run:")
    screen.print(table)
    if ratio is None:
        return
    if math.isnan(ratio.estimate):
        screen.print("No ratio: not every boundary was found. Widen --min and --max, or start elsewhere.")
    else:
        screen.print(
            f"IID runs stand {ratio.estimate:.3f} times as much as skewed ones "
            f"({ratio.confidence_level:.0%} interval {ratio.low:.3f} to {ratio.high:.3f})."
        )
