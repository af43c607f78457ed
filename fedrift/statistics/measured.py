"""What one hypothesis comes to before its family is looked at: numbers, and which way they point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .comparison import compare
from .evidence import Interval, P, counted
from .paired import paired_t
from .power import detectable
from .selection import PerSeed


@dataclass(frozen=True)
class Bar:
    """How sure one has to be: ``alpha`` shared by ``family`` hypotheses, and the power that "detectable" means."""

    alpha: float = 0.05
    power: float = 0.8
    family: int = 1

    @property
    def each(self) -> float:
        """The strictest alpha that a hypothesis of the family can meet under Holm."""
        return self.alpha / max(self.family, 1)


@dataclass(frozen=True)
class Measured:
    """``favours``: the estimate lies on the side that was foretold; ``excluded``: the data rule out what was foretold."""

    said: str
    unit: str
    interval: Interval
    p: P
    favours: bool
    excluded: bool = False
    incomplete: int = 0
    diverged: int = 0
    g: float = math.nan
    detectable: float = math.nan
    points: tuple[tuple[int, float], ...] = ()
    notes: tuple[str, ...] = ()
    tied: int = 0  # seeds in which both sides diverged: no difference, and not one of zero


def nothing(said: str, unit: str, incomplete: int = 0, why: str = "", diverged: int = 0, tied: int = 0) -> Measured:
    """Of a comparison without a single complete seed."""
    why = why or (f"both sides diverged in all of {counted(tied)}, so there is no difference to tell" if tied
                  else "no seed has all the runs that are compared")
    none = Interval(math.nan, math.nan, math.nan, math.nan)
    return Measured(said, unit, none, P(math.nan, 1.0, 0, "none"), False, incomplete=incomplete, diverged=diverged,
                    detectable=math.inf, notes=(why,), tied=tied)


def directed(of: PerSeed, sign: int, margin: float, smallest: float, bar: Bar, said: str, unit: str, diverged: int) -> Measured:
    """Whether the differences lie above ``margin`` (``sign`` 1) or below its negative (-1).

    Ruled out, if ``smallest`` is said, where a one-sided t-bound at the family's strictest alpha leaves no room for an
    effect that size.
    """
    d = of.numbers
    if not len(d):
        return nothing(said, unit, of.incomplete, diverged=diverged, tied=of.tied)
    numbers = d.to_numpy(dtype=np.float64)
    found = compare(numbers - sign * margin, 1 - bar.alpha, bar.alpha, bar.power, bar.family)
    shift = sign * margin
    i = found.interval
    here = Interval(i.estimate + shift, i.low + shift, i.high + shift, i.level)
    bound = paired_t(numbers, 1 - 2 * bar.each)
    reach = sign * (bound.high if sign > 0 else bound.low)  # the most, in the foretold direction, that the data leave room for
    excluded = smallest > 0 and reach < smallest and 0.5 ** len(numbers) <= bar.each
    notes = []
    if found.infinite:
        notes.append(f"{found.infinite} of {found.seeds} seeds differ by a run that diverged: "
                     "the median and ranks instead of the mean")
    equal = int((numbers == margin * sign).sum())
    if equal:
        notes.append(f"{equal} of {counted(len(numbers))} {'does' if equal == 1 else 'do'} not differ at all")
    if excluded:
        notes.append(f"an effect of {smallest:g}, the smallest that was said to matter, is ruled out")
    favours = sign * found.interval.estimate > 0 if not found.infinite else sign * found.rank_biserial > 0
    return Measured(said, unit, here, found.p, favours, excluded, of.incomplete, diverged, found.g, found.detectable,
                    dotted(d), tuple(notes), of.tied)


def dotted(d: pd.Series) -> tuple[tuple[int, float], ...]:
    """Every seed's own number: they are few, and all are shown."""
    return tuple((int(seed), float(value)) for seed, value in zip(d.index.to_numpy(), d.to_numpy(), strict=True))


def detectable_of(numbers: np.ndarray, bar: Bar) -> float:
    """The minimum detectable effect of numbers of which some may be infinite."""
    if not np.isfinite(numbers).all():
        return math.nan
    return detectable(len(numbers), float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan, bar.each, bar.power)
