"""The command that finds where runs begin to break: boundary."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ROOT, Data, Device, Json, Overrides, Root, Threads, runtime

if TYPE_CHECKING:
    from ..statistics.boundary import Bracket

Breaks = Callable[[str, int, float], bool]
"""``(arm, seed, setting)`` -> whether the run breaks."""

File = Annotated[Path | None, typer.Argument(
    help="The experiment's YAML file. Without one: two quadratics whose ratio is known to be 1.75.", metavar="[EXPERIMENT.yaml]")]
Along = Annotated[str, typer.Option("--along", help="The setting that is moved: any number of the experiment.")]
Seeds = Annotated[int, typer.Option("--seeds", min=2, help="Paired seeds, from the experiment's own on; four or more for an "
                                                           "interval that is worth its name.")]
Tolerance = Annotated[float, typer.Option("--tolerance", min=0.001, help="How closely a boundary is bracketed: 0.05 is 5 %.")]
Below = Annotated[bool, typer.Option("--below", help="Runs break below the boundary, not above: `--along plan.participation`.")]
Lowest = Annotated[float, typer.Option("--lowest", min=0, help="Nothing lower is tried.")]
Highest = Annotated[float, typer.Option("--highest", min=0, help="Nothing higher is tried; 1 for shares.")]


def boundary(file: File = None, overrides: Overrides = None, along: Along = "plan.optimizer.lr", seeds: Seeds = 4,
             tolerance: Tolerance = 0.05, below: Below = False, lowest: Lowest = 0.0, highest: Highest = math.inf,
             root: Root = ROOT, data: Data = None, device: Device = "auto", threads: Threads = None,
             as_json: Json = False) -> None:
    """Find the learning rate (or another setting) at which a run breaks, and at which its IID twin does.

    A run breaks if it diverges, as `fedrift diagnose` says it. The boundary is bracketed by factors of four and
    bisected in logarithms, seed by seed; the ratio IID / skewed comes with its paired t-interval. Runs are kept, so a search
    that was stopped goes on. Along `partition.severity` there is one arm and no ratio.

    `fedrift boundary experiments/high_rate.yaml --seeds 4`
    """
    from dataclasses import asdict

    import numpy as np

    from ..statistics.boundary import bisect, log_ratio

    arms = ["skewed"] if along == "partition.severity" else ["IID", "skewed"]
    breaks: Breaks = known
    start, first = 0.1, 0
    if file is not None:
        breaks, start, first = stored(file, overrides or [], along, root, data, device, threads)
    found: dict[str, list[Bracket]] = {arm: [] for arm in arms}
    for seed in range(first, first + seeds):
        for arm in arms:
            found[arm].append(searched(bisect, breaks, arm, seed, start, along, tolerance, below, lowest, highest))
    at = {arm: [1 / each.boundary if below else each.boundary for each in every] for arm, every in found.items()}
    ratio = log_ratio(np.asarray(at["IID"]), np.asarray(at["skewed"])) if len(arms) > 1 else None
    if as_json:
        from ..diagnose.telling import cleaned

        typer.echo(json.dumps(cleaned({"along": along, "seeds": list(range(first, first + seeds)), "boundary": at, "runs": {
            arm: [each.runs for each in every] for arm, every in found.items()}, "ratio": asdict(ratio) if ratio else None})))
        return
    on_screen(along, first, at, ratio)


def searched(bisect: Any, breaks: Breaks, arm: str, seed: int, start: float, along: str, tolerance: float, below: bool,
             lowest: float, highest: float) -> Bracket:
    """One boundary. Where runs break below it, the reciprocal is searched."""
    def trial(value: float) -> bool:
        setting = 1 / value if below else value
        broken = breaks(arm, seed, setting)
        typer.echo(f"seed {seed}, {arm}, {along} {setting:.4g}: {'breaks' if broken else 'stable'}", err=True)
        return broken

    ends = {"lowest": lowest, "highest": highest}
    if below:
        ends = {"lowest": 1 / highest, "highest": 1 / lowest if lowest else math.inf}
    made: Bracket = bisect(trial, 1 / start if below else start, tolerance=tolerance, **ends)
    return made


def known(arm: str, seed: int, setting: float) -> bool:
    """Of the quadratics of curvature 1 and 9.5."""
    from ..calibrate.plants import breaks

    return breaks(arm == "skewed", seed, setting)


def stored(file: Path, overrides: list[str], along: str, root: Path, data: Path | None, device: str,
           threads: int | None) -> tuple[Breaks, float, int]:
    """Of an experiment's runs; and where to start, its own setting, and its seed."""
    from ..detectors.divergence import runaway
    from ..detectors.finding import LIMITS
    from ..errors import UserError
    from ..experiment import load_experiment, twin
    from ..run import carry_out
    from ..stock import Stock

    stock, base = Stock(runtime(root, data, device, threads)), load_experiment(file, overrides)
    start: Any = base
    for part in along.split("."):
        start = getattr(start, part, None)
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not start > 0:
        raise UserError(f"--along {along}: wanted a number above 0 in the experiment, got {start!r}; "
                        "for instance plan.optimizer.lr, plan.participation or partition.severity")

    def breaks(arm: str, seed: int, setting: float) -> bool:
        made = load_experiment(file, [*overrides, f"{along}={setting!r}", f"seed={seed}"])
        run = carry_out(twin(made) if arm == "IID" else made, stock)
        return bool(runaway(run.trajectory(), LIMITS)[0])

    return breaks, float(start), base.seed


def on_screen(along: str, first: int, at: dict[str, list[float]], ratio: Any) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    for column in ("seed", *at):
        table.add_column(column, justify="right")
    for number, row in enumerate(zip(*at.values(), strict=True)):
        table.add_row(str(first + number), *("not found" if math.isnan(value) else f"{value:.4g}" for value in row))
    screen = Console(highlight=False)
    screen.print(f"Where {along} breaks a run:")
    screen.print(table)
    if ratio is None:
        return
    if math.isnan(ratio.estimate):
        screen.print("No ratio: not every boundary was found. Widen --lowest and --highest, or start elsewhere.")
    else:
        screen.print(f"IID runs stand {ratio.estimate:.3f} times as much as skewed ones "
                     f"({ratio.level:.0%} interval {ratio.low:.3f} to {ratio.high:.3f}).")


COMMANDS = [boundary]
