"""The hypotheses that a study file can state, as predicates that a machine can check.

Written down before the runs, one metric each, they come out supported, refuted or inconclusive (``verdicts.judge``).
What may stand in ``hypotheses:`` is what this file exports. A selection is ``{factor: level}`` or ``{factor:
[levels]}``; ``{iid: true}`` chooses the IID twins, which are left out otherwise. Two sides are paired inside each seed
by all the factors that neither names, and averaged to one number a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pandas as pd
from annotated_types import Ge, Gt, MaxLen, MinLen

from . import weigh, weigh_trend
from .measured import Bar, Measured
from .ranks import Worst
from .selection import Contrast, Scale

Levels = dict[str, Any]
Size = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What all have. ``contrast: twin`` takes each run's own IID twin away; ``worst`` is the end at which a diverged
    run counts: the one that is bad for the metric, if it is left out."""

    name: str
    says: Annotated[str, MaxLen(10_000)] = ""  # the claim in words
    family: str = "main"  # Holm runs inside it
    metric: str = ""
    where: Levels = field(default_factory=dict)
    contrast: Contrast = "none"
    worst: Worst | None = None

    def measure(self, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
        """The numbers, and which way they point."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Greater(Hypothesis):
    """``metric`` of one side above the other's by more than ``margin``; without ``than``, above ``margin`` itself.

    ``smallest`` is the smallest effect that matters: where the data rule out even that, the hypothesis is refuted. In
    ``scale: ratio`` log-ratios are compared, and both are natural logarithms (0.1: about 10 %).
    """

    of: Levels = field(default_factory=dict)
    than: Levels = field(default_factory=dict)
    margin: Size = 0.0
    smallest: Size = 0.0
    scale: Scale = "difference"
    sign: ClassVar[int] = 1

    def measure(self, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
        return weigh.sides(self, runs, factors, bar)


@dataclass(frozen=True, kw_only=True)
class Less(Greater):
    """The same, below."""

    sign: ClassVar[int] = -1


@dataclass(frozen=True, kw_only=True)
class Interaction(Hypothesis):
    """``of`` less ``than`` is larger (or smaller) ``inside`` than ``outside``: a difference of differences, by seed."""

    of: Levels
    than: Levels
    inside: Levels
    outside: Levels
    direction: Literal["greater", "less"] = "greater"
    smallest: Size = 0.0

    def measure(self, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
        return weigh.interaction(self, runs, factors, bar)


@dataclass(frozen=True, kw_only=True)
class Trend(Hypothesis):
    """``metric`` rises (or falls) ``along`` a dial: Page's L over three or more levels of a factor, seeds as blocks; where
    the dial is measured and each run has its own value, Spearman's rho, permuted inside the seeds.

    Two levels are no trend: then it is the paired contrast of the two, with its own test, interval and power.
    """

    along: str
    direction: Literal["up", "down"] = "up"

    def measure(self, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
        return weigh_trend.trend(self, runs, factors, bar)


@dataclass(frozen=True, kw_only=True)
class Equivalent(Hypothesis):
    """``metric`` of both sides the same up to ``within`` (TOST); without ``than``, within it of 0. ``within`` has to be
    said before the runs."""

    within: Annotated[float, Gt(0)]
    of: Levels = field(default_factory=dict)
    than: Levels = field(default_factory=dict)

    def measure(self, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
        return weigh.equivalent(self, runs, factors, bar)


@dataclass(frozen=True, kw_only=True)
class Share(Hypothesis):
    """``of`` recovers more than ``least`` of the way from ``than`` to ``whole``; without ``whole``, to the IID twins of
    ``than``."""

    of: Levels
    than: Levels
    whole: Levels = field(default_factory=dict)
    least: Size = 0.0

    def measure(self, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
        return weigh.share(self, runs, factors, bar)


@dataclass(frozen=True, kw_only=True)
class RateGreater(Hypothesis):
    """An event strikes more seeds of one side: ``metric`` true (``diverged``), or above ``above``. Without ``than``,
    more than of the IID twins."""

    of: Levels
    than: Levels = field(default_factory=dict)
    above: float | None = None

    def measure(self, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
        return weigh.rates(self, runs, factors, bar)


@dataclass(frozen=True, kw_only=True)
class All(Hypothesis):
    """Every part holds. Intersection-union (Berger, Technometrics 24, 1982): the largest p of the parts, and no price
    for their number."""

    parts: Annotated[tuple[Hypothesis, ...], MinLen(1)]

    def measure(self, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
        return weigh.together(self, [part.measure(runs, factors, bar) for part in self.parts])


__all__ = ["All", "Equivalent", "Greater", "Interaction", "Less", "RateGreater", "Share", "Trend"]
