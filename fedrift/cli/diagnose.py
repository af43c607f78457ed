"""The commands ``diagnose``, which detects failures in runs, and ``find-boundary``, which finds the setting at which runs break."""

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
    typer.Option("--fail-on", help="Exit with code 1 if a finding has this grade or a more severe one."),
]
RunBaselines = Annotated[bool, typer.Option("--iid-baseline", help="First run the IID baselines that are missing.")]

OwnDetectors = Annotated[
    list[str] | None,
    typer.Option(
        "--detector",
        help="Also run a detector of your own: `my_detector.py:my_function` or `my_module:my_function`. The option may be repeated.",
        metavar="FILE.py:NAME",
    ),
]


def diagnose(
    names: RunNames,
    run_baselines: RunBaselines = False,
    fail_on: FailOn = None,
    detectors: OwnDetectors = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Diagnose runs: which failures occurred, from which round on, for which clients, and whether heterogeneity caused them.

    `fedrift diagnose 5c35 77e0 a01b --iid-baseline --fail-on confirmed`

    `fedrift diagnose 5c35 --detector my_detector.py:costly_first_round`

    Runs that differ only in their seed are judged together. Each run is compared with its matched IID baseline. The detectors
    also use further reference runs if they are stored: centralized training, local-only training, FedSGD, other learning rates
    and other numbers of local steps. One or two seeds can only raise a suspicion. A finding is confirmed with
    at least three seeds if most of them show it, their IID baselines do not, and the interval of the paired excess lies above zero.

    The command prints the findings and writes them to `findings.json` in each run directory.
    """
    from ..core.errors import UserError
    from ..diagnosis import diagnose as diagnose_cases
    from ..diagnosis.across_seeds import diagnoses_to_json
    from ..diagnosis.cases import group_readable_runs
    from ..diagnosis.detectors import find_detector
    from ..storage import find_runs, list_runs, list_unreadable
    from .console import run_title

    own_detectors = [find_detector(name) for name in detectors or ()]
    chosen, unreadable_names = find_runs(runs_dir, names)
    groups, unreadable_runs = group_readable_runs(chosen, list_runs(runs_dir))
    if run_baselines and run_missing_baselines(groups, runs_dir, data_dir, device, threads):
        groups, unreadable_runs = group_readable_runs(chosen, list_runs(runs_dir))
    print_unreadable(dict.fromkeys([*unreadable_names, *unreadable_runs, *list_unreadable(runs_dir)]))
    if not groups:
        raise UserError("none of these runs can be read; `fedrift list` shows the readable ones")
    all_diagnoses = []
    for group in groups:
        diagnoses = diagnose_cases(group.cases, own_detectors)
        all_diagnoses += diagnoses
        content = {
            "runs": [run.id for run in group.runs],
            "iid_baselines": [baseline.id if baseline else None for baseline in group.baselines],
            "thresholds": dict(threshold_version()),
            "findings": diagnoses_to_json(diagnoses),
        }
        for run in group.runs:
            run.write_json("findings", content)
        if as_json:
            print_json({**content, "findings": [asdict(diagnosis) for diagnosis in diagnoses]})
        else:
            print_diagnoses(group, f"{run_title(group.runs[0])}", diagnoses)
    failing_grades = {"suspected": ("suspected", "confirmed"), "confirmed": ("confirmed",)}
    if fail_on and any(diagnosis.grade in failing_grades[fail_on] for diagnosis in all_diagnoses):
        raise typer.Exit(1)


def run_missing_baselines(groups: list[RunGroup], runs_dir: Path, data_dir: Path | None, device: str, threads: int | None) -> int:
    """Run the IID baselines that are missing and return how many were missing."""
    from ..config.schema import iid_baseline as make_iid_baseline
    from ..config.schema import parse_stored_config
    from .run import run_experiments

    configs = [run.config for group in groups for run, baseline in zip(group.runs, group.baselines, strict=True) if baseline is None]
    experiments = [parse_stored_config(config) for config in configs]
    missing = [make_iid_baseline(experiment) for experiment in experiments if experiment.partition.severity > 0]
    if missing:
        run_experiments(missing, make_runtime(runs_dir, data_dir, device, threads))
    return len(missing)


def threshold_version() -> dict[str, str]:
    """Return the version and the date of the detection thresholds."""
    from ..diagnosis.finding import load_thresholds

    thresholds = load_thresholds()
    return {"version": str(thresholds["version"]), "date": str(thresholds["date"])}


def print_diagnoses(group: RunGroup, name: str, diagnoses: list[Diagnosis]) -> None:
    """Print the findings, then the failures that were not detected, then those that were not measured."""
    from rich.console import Console

    from ..diagnosis.across_seeds import format_effect
    from .tables import print_table

    console = Console(highlight=False)
    seeds = ", ".join(str(run.config["seed"]) for run in group.runs)
    num_baselines = sum(baseline is not None for baseline in group.baselines)
    console.print(
        f"[bold]{name}[/]  {'seed' if len(group.runs) == 1 else 'seeds'} {seeds}; {num_baselines} of {len(group.runs)} with an IID baseline"
    )
    findings = [diagnosis for diagnosis in diagnoses if diagnosis.grade in ("suspected", "confirmed")]
    if findings:
        rows = [
            (
                diagnosis.failure,
                diagnosis.grade,
                "" if diagnosis.first_round is None else str(diagnosis.first_round),
                abbreviate(diagnosis.clients),
                abbreviate(diagnosis.locations),
                f"{diagnosis.strength:.1f}x",
            )
            for diagnosis in findings
        ]
        print_table(console, ("failure", "grade", "since", "clients", "where", "strength"), rows, ("since", "strength"))
        console.print("strength: statistic divided by its threshold\n")
        for diagnosis in findings:
            console.print(f"[bold]{diagnosis.failure}[/]: {diagnosis.sentence}\n")
    else:
        console.print("Nothing found, but effects that are too small to detect may have been missed.")
    not_found = [diagnosis for diagnosis in diagnoses if diagnosis.grade == "none"]
    if not_found:
        console.print("Tested and not found, with the smallest effect that would have been detected:")
        for diagnosis in not_found:
            console.print(f"  {diagnosis.failure} ({format_effect(diagnosis.detectable_effect, diagnosis.unit)})")
    unmeasured = [diagnosis for diagnosis in diagnoses if diagnosis.grade == "not measured"]
    if unmeasured:
        console.print("Not measured:")
        for diagnosis in unmeasured:
            console.print(f"  {diagnosis.failure}: needs {diagnosis.missing_input}")
    if not num_baselines:
        console.print("Without IID baselines no failure can be attributed to heterogeneity; `--iid-baseline` runs them.")


def abbreviate(names: tuple[int, ...] | tuple[str, ...]) -> str:
    """Join the first four names with commas."""
    return ", ".join(map(str, names[:4])) + (" ..." if len(names) > 4 else "")


# find-boundary

if TYPE_CHECKING:
    from rich.status import Status

    from ..config.runtime import Runtime
    from ..engine.callbacks import Progress

BreakTest = Callable[[str, int, float], bool]
"""Maps ``(condition, seed, setting)`` to whether the run breaks. The condition is ``IID`` or ``skewed``."""
LEARNING_RATE = "training.client_optimizer.lr"

Param = Annotated[str, typer.Option("--param", help="The key of the setting to search over; any positive number of the experiment.")]
Seeds = Annotated[
    int,
    typer.Option(
        "--seeds",
        min=2,
        max=1000,
        help="The number of paired seeds, starting with the experiment's seed. Use four or more for a useful interval.",
    ),
]
Tolerance = Annotated[
    float, typer.Option("--tolerance", min=0.001, max=1, callback=reject_nan, help="The relative precision of a boundary: 0.05 means 5 %.")
]
BreaksBelow = Annotated[
    bool, typer.Option("--breaks-below", help="Runs break below the boundary, not above it, as for `--param training.participation_rate`.")
]
Min = Annotated[float, typer.Option("--min", min=0, max=1e30, callback=reject_nan, help="The lowest value to try.")]
Max = Annotated[float, typer.Option("--max", min=0, callback=reject_nan, help="The highest value to try; use 1 for rates and severities.")]


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
    """Find the learning rate, or another setting, at which a run breaks and at which its IID baseline breaks.

    `fedrift find-boundary experiments/high_rate.yaml --seeds 4`

    `fedrift find-boundary my.yaml training.num_rounds=8 evaluation.final_blocks_per_domain=0 --tolerance 0.1`

    A run breaks if `fedrift diagnose` finds that it diverges, or if its final loss lies above its initial loss. The first search
    starts at the experiment's value and moves by factors of 4 until the boundary is bracketed. Later searches start at a known
    boundary and move by factors of 1.4. Every bracket is then bisected on a logarithmic scale. Four seeds and their IID
    baselines take about 45 runs, so use few rounds, but enough for a run to break.

    The command prints the boundary of each seed and the ratio IID / skewed with its paired t-interval. Along
    `partition.severity` there is one condition and no ratio. Every run is stored in the runs directory. If the search is
    interrupted, repeat the same command to resume it.
    """
    from dataclasses import asdict

    import numpy as np

    from ..core.errors import UserError
    from ..stats.boundary import find_boundaries, geometric_mean_ratio

    if not min_value < max_value:
        raise UserError(f"--min must be below --max, got --min {min_value:g} --max {max_value:g}")
    conditions = ["skewed"] if param == "partition.severity" else ["IID", "skewed"]
    boundaries: dict[str, list[float]] = {condition: [] for condition in conditions}
    num_runs: dict[str, list[int]] = {condition: [] for condition in conditions}
    with show_boundary_progress(len(conditions) * seeds, param) as progress:
        breaks, start, first_seed = build_break_test(
            file, overrides or [], param, make_runtime(runs_dir, data_dir, device, threads), progress
        )
        seed_values = range(first_seed, first_seed + seeds)
        low, high = sorted((flip_scale(min_value, breaks_below), flip_scale(max_value, breaks_below)))

        def trial(condition: str, seed: int, position: float) -> bool:
            return progress.run_trial(breaks, condition, seed, flip_scale(position, breaks_below))

        start = flip_scale(start, breaks_below)
        for seed, condition, bracket in find_boundaries(trial, conditions, seed_values, start, tolerance, low, high):
            boundaries[condition].append(flip_scale(bracket.boundary, breaks_below))
            num_runs[condition].append(bracket.num_runs)
            progress.on_found(condition, seed, boundaries[condition][-1], bracket.num_runs)
    ratio = geometric_mean_ratio(np.asarray(boundaries["IID"]), np.asarray(boundaries["skewed"])) if len(conditions) > 1 else None
    if as_json:
        print_json(
            {
                "param": param,
                "seeds": list(seed_values),
                "boundary": boundaries,
                "runs": num_runs,
                "ratio": asdict(ratio) if ratio else None,
            }
        )
    else:
        print_boundaries(param, first_seed, boundaries, ratio)


def flip_scale(value: float, breaks_below: bool) -> float:
    """Convert between a setting and its position in the search.

    The search expects that runs break above the boundary. If they break below it, the position is the reciprocal of the
    setting. The conversion is its own inverse.
    """
    if not breaks_below:
        return value
    return 1 / value if value else math.inf


class BoundaryProgress:
    """Report the progress of a boundary search: one line per run and per search, and on a terminal a status line.

    Args:
        status: The status line, which shows the current search, run and round.
        num_searches: The number of boundaries to find.
        param: The key of the setting that is searched.
    """

    def __init__(self, status: Status, num_searches: int, param: str) -> None:
        self.status, self.num_searches, self.param, self.num_found, self.current = status, num_searches, param, 0, ""

    def run_trial(self, break_test: BreakTest, condition: str, seed: int, setting: float) -> bool:
        """Run ``break_test`` and print whether the run broke."""
        self.current = f"seed {seed}, {condition}, {self.param} {setting:.4g}"
        self.status.update(f"boundary {self.num_found + 1} of {self.num_searches}: {self.current}")
        broken = break_test(condition, seed, setting)
        self.print_line(f"{self.current}: {'breaks' if broken else 'stable'}")
        return broken

    def on_round(self, progress: Progress) -> None:
        """Update the status line after a round."""
        self.status.update(
            f"boundary {self.num_found + 1} of {self.num_searches}: {self.current}, round {progress.round}/{progress.num_rounds}"
        )

    def on_found(self, condition: str, seed: int, setting: float, runs: int) -> None:
        """Print the boundary of one seed and condition; NaN means that none was found."""
        self.num_found += 1
        self.print_line(
            f"boundary {self.num_found} of {self.num_searches}: seed {seed}, {condition}, "
            f"{'not found' if math.isnan(setting) else f'{setting:.4g}'} after {runs} runs"
        )

    def print_line(self, text: str) -> None:
        """Print one line above the status line."""
        self.status.console.print(text, soft_wrap=True, markup=False)


@contextmanager
def show_boundary_progress(num_searches: int, param: str) -> Iterator[BoundaryProgress]:
    """Show the progress of a boundary search, and how to resume it if ctrl-C stops it."""
    from rich.console import Console

    try:
        with Console(stderr=True, highlight=False).status("loading") as status:
            yield BoundaryProgress(status, num_searches, param)
    except KeyboardInterrupt:
        typer.echo("stopped; repeat the same command to resume", err=True)
        raise


def build_break_test(
    file: Path, overrides: list[str], param: str, runtime: Runtime, progress: BoundaryProgress
) -> tuple[BreakTest, float, int]:
    """Build the test whether a run with a changed setting breaks.

    Args:
        file: The experiment's YAML file.
        overrides: Overrides of the experiment.
        param: The key of the setting to change, e.g. ``training.client_optimizer.lr``.
        runtime: Where and with what to compute.
        progress: Receives the progress of each run.

    Returns:
        The test, the experiment's value of the setting as the start of the search, and the experiment's seed.

    Raises:
        UserError: If the setting is not a positive number, or if the run evaluates its loss too rarely to detect divergence.
    """
    from ..api import load_config
    from ..config.schema import iid_baseline
    from ..core.errors import UserError
    from ..diagnosis.failures import find_training_divergence, has_worse_final_loss
    from ..diagnosis.finding import THRESHOLDS
    from ..engine.cache import ResourceCache
    from ..engine.run import run_experiment

    cache, base = ResourceCache(runtime), load_config(file, overrides)
    start: Any = base
    for part in param.split("."):
        start = getattr(start, part, None)
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not start > 0:
        raise UserError(
            f"--param {param} must name a number above 0 in the experiment, got {start!r}: "
            "use e.g. training.client_optimizer.lr, training.participation_rate or partition.severity"
        )
    num_evaluations, min_evaluations = base.training.num_rounds // base.evaluation.interval + 1, int(THRESHOLDS["common"]["shortest"])
    if num_evaluations < min_evaluations:
        raise UserError(
            f"a run of {base.training.num_rounds} rounds evaluates its loss {num_evaluations} times, and divergence can be detected "
            f"from {min_evaluations} evaluations on: raise training.num_rounds or lower evaluation.interval"
        )

    def breaks(condition: str, seed: int, setting: float) -> bool:
        experiment = load_config(file, [*overrides, f"{param}={setting!r}", f"seed={seed}"])
        run = run_experiment(iid_baseline(experiment) if condition == "IID" else experiment, cache, progress.on_round)
        return bool(find_training_divergence(run.trajectory(), THRESHOLDS)[0]) or has_worse_final_loss(run.trajectory())

    return breaks, float(start), base.seed


def print_boundaries(param: str, first_seed: int, boundaries_by_condition: dict[str, list[float]], ratio: Any) -> None:
    """Print the boundary of each seed and condition, and the ratio IID / skewed if there is one."""
    from rich.console import Console

    from .tables import print_table

    console, columns = Console(highlight=False), ("seed", *boundaries_by_condition)
    rows = [
        (str(first_seed + offset), *("not found" if math.isnan(value) else f"{value:.4g}" for value in boundaries))
        for offset, boundaries in enumerate(zip(*boundaries_by_condition.values(), strict=True))
    ]
    console.print(f"Values of {param} at which a run breaks:")
    print_table(console, columns, rows, columns)
    if ratio is None:
        return
    if math.isnan(ratio.estimate):
        console.print("There is no ratio, because not every boundary was found. Widen --min and --max, or start from another value.")
    else:
        console.print(
            f"The boundary of the IID runs is {ratio.estimate:.3f} times that of the skewed runs "
            f"({100 * ratio.confidence_level:.0f} % interval {ratio.low:.3f} to {ratio.high:.3f})."
        )
