"""The command that finds where runs begin to break: boundary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ROOT, Data, Device, Json, Overrides, Root, Threads, check_number, print_json, runtime

if TYPE_CHECKING:
    from rich.status import Status

    from ..run import Progress
    from ..runtime import Runtime

Breaks = Callable[[str, int, float], bool]
"""``(arm, seed, setting)`` -> whether the run breaks."""
RATE = "plan.optimizer.lr"

File = Annotated[Path | None, typer.Argument(
    help="The experiment's YAML file. Without one: two quadratics whose ratio is known to be 1.75.", metavar="[EXPERIMENT.yaml]")]
Along = Annotated[str, typer.Option("--along", help="The setting that is moved: any number of the experiment.")]
Seeds = Annotated[int, typer.Option(
    "--seeds", min=2, max=1000, help="Paired seeds, from the experiment's own on; four or more for an interval that is worth its "
                                     "name.")]
Tolerance = Annotated[float, typer.Option(
    "--tolerance", min=0.001, max=1, callback=check_number, help="How closely a boundary is bracketed: 0.05 is 5 %.")]
Below = Annotated[bool, typer.Option("--below", help="Runs break below the boundary, not above: `--along plan.participation`.")]
Lowest = Annotated[float, typer.Option("--lowest", min=0, max=1e30, callback=check_number, help="Nothing lower is tried.")]
Highest = Annotated[float, typer.Option("--highest", min=0, callback=check_number, help="Nothing higher is tried; 1 for shares.")]


def boundary(file: File = None, overrides: Overrides = None, along: Along = RATE, seeds: Seeds = 4,
             tolerance: Tolerance = 0.05, below: Below = False, lowest: Lowest = 0.0, highest: Highest = math.inf,
             root: Root = ROOT, data: Data = None, device: Device = "auto", threads: Threads = None,
             as_json: Json = False) -> None:
    """Find the learning rate (or another setting) at which a run breaks, and at which its IID twin does.

    A run breaks if it diverges, as `fedrift diagnose` says it, or if its loss ends above where it began. The first boundary is
    bracketed by factors of four from the experiment's own setting, the others by 1.4 from one that is known, and
    bisected in logarithms. Four seeds and their twins take about 45 runs: shorten them, as below, with rounds enough to break
    in. Runs are kept: stopped, the same command goes on. The ratio IID / skewed comes with its paired t-interval; along
    `partition.severity` there is one arm and no ratio.

    `fedrift boundary experiments/high_rate.yaml --seeds 4`

    `fedrift boundary my.yaml plan.rounds=8 evaluate.blocks=4 evaluate.final=0 --tolerance 0.1`
    """
    from dataclasses import asdict

    import numpy as np

    from ..errors import UserError
    from ..statistics.boundary import boundaries, log_ratio

    if file is None and along != RATE:
        raise UserError(f"--along {along} moves a setting of an experiment, and none was named; without one it is the learning "
                        "rate of two quadratics")
    if not lowest < highest:
        raise UserError(f"--lowest {lowest:g} --highest {highest:g}: the lowest setting must lie below the highest")
    arms = ["skewed"] if along == "partition.severity" else ["IID", "skewed"]
    at: dict[str, list[float]] = {arm: [] for arm in arms}
    made: dict[str, list[int]] = {arm: [] for arm in arms}
    with telling(len(arms) * seeds, along) as tell:
        breaks, start, first = (known, 0.1, 0) if file is None else stored(
            file, overrides or [], along, runtime(root, data, device, threads), tell)
        every = range(first, first + seeds)
        low, high = sorted((turned(lowest, below), turned(highest, below)))

        def trial(arm: str, seed: int, place: float) -> bool:
            return tell.trial(breaks, arm, seed, turned(place, below))

        for seed, arm, found in boundaries(trial, arms, every, turned(start, below), tolerance, low, high):
            at[arm].append(turned(found.boundary, below))
            made[arm].append(found.runs)
            tell.found(arm, seed, at[arm][-1], found.runs)
    ratio = log_ratio(np.asarray(at["IID"]), np.asarray(at["skewed"])) if len(arms) > 1 else None
    if as_json:
        print_json({"along": along, "seeds": list(every), "boundary": at, "runs": made,
                    "ratio": asdict(ratio) if ratio else None})
    else:
        on_screen(along, first, at, ratio)


def turned(value: float, below: bool) -> float:
    """From a setting to where the search has it, and back: the reciprocal, where runs break below the boundary."""
    if not below:
        return value
    return 1 / value if value else math.inf


class Tell:
    """Says which search, run and round it is: on a terminal a line that changes, everywhere a line a run and a search."""

    def __init__(self, status: Status, searches: int, along: str) -> None:
        self.status, self.searches, self.along, self.past, self.now = status, searches, along, 0, ""

    def trial(self, breaks: Breaks, arm: str, seed: int, setting: float) -> bool:
        self.now = f"seed {seed}, {arm}, {self.along} {setting:.4g}"
        self.status.update(f"boundary {self.past + 1} of {self.searches}: {self.now}")
        broken = breaks(arm, seed, setting)
        self.line(f"{self.now}: {'breaks' if broken else 'stable'}")
        return broken

    def round(self, told: Progress) -> None:
        self.status.update(f"boundary {self.past + 1} of {self.searches}: {self.now}, round {told.round}/{told.until}")

    def found(self, arm: str, seed: int, setting: float, runs: int) -> None:
        self.past += 1
        self.line(f"boundary {self.past} of {self.searches}: seed {seed}, {arm}, "
                  f"{'not found' if math.isnan(setting) else f'{setting:.4g}'} after {runs} runs")

    def line(self, text: str) -> None:
        self.status.console.print(text, soft_wrap=True, markup=False)


@contextmanager
def telling(searches: int, along: str) -> Iterator[Tell]:
    """Tells while it lasts; if it is stopped, how to go on."""
    from rich.console import Console

    try:
        with Console(stderr=True, highlight=False).status("loading") as status:
            yield Tell(status, searches, along)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise


def known(arm: str, seed: int, setting: float) -> bool:
    """Of the quadratics of curvature 1 and 9.5."""
    from ..calibrate.plants import breaks

    return breaks(arm == "skewed", seed, setting)


def stored(file: Path, overrides: list[str], along: str, where: Runtime, tell: Tell) -> tuple[Breaks, float, int]:
    """Of an experiment's runs; and where to start, its own setting, and its seed."""
    from ..detectors.divergence import lost, runaway
    from ..detectors.finding import LIMITS
    from ..errors import UserError
    from ..experiment import load_experiment, twin
    from ..run import carry_out
    from ..stock import Stock

    stock, base = Stock(where), load_experiment(file, overrides)
    start: Any = base
    for part in along.split("."):
        start = getattr(start, part, None)
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not start > 0:
        raise UserError(f"--along {along}: wanted a number above 0 in the experiment, got {start!r}; "
                        "for instance plan.optimizer.lr, plan.participation or partition.severity")
    looks, least = base.plan.rounds // base.evaluate.every + 1, int(LIMITS["common"]["shortest"])
    if looks < least:
        raise UserError(f"the loss of a run of {base.plan.rounds} rounds is evaluated {looks} times, and whether it diverges "
                        f"is told from {least} on: raise plan.rounds, or lower evaluate.every")

    def breaks(arm: str, seed: int, setting: float) -> bool:
        made = load_experiment(file, [*overrides, f"{along}={setting!r}", f"seed={seed}"])
        run = carry_out(twin(made) if arm == "IID" else made, stock, tell.round)
        return bool(runaway(run.trajectory(), LIMITS)[0]) or lost(run.trajectory())

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
