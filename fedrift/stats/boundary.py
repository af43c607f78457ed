"""Stability boundaries: the largest setting that a run survives, and how much smaller it is in one arm than in another.

A boundary is bracketed and then bisected in logarithms, so it is their logarithms that differ evenly: the ratio of two
arms is the paired t-interval of log a_s - log b_s, taken back by exp. On two quadratics of curvature 1 and 9.5 with ten local
steps the IID arm is stable up to a learning rate of 2 / 5.25 = .381, the skewed arm up to .2176: a ratio of 1.75.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from .intervals import mean_ci
from .significance import Interval

UNKNOWN_FACTOR, NEARBY_FACTOR = 4.0, 1.4  # steps until a boundary is bracketed: from any setting, from a boundary that is known


class Bracket(NamedTuple):
    """``stable`` survives and ``broken`` does not; 0 or infinity where no such setting was found."""

    stable: float
    broken: float
    num_runs: int

    @property
    def boundary(self) -> float:
        """The geometric mean of the two; NaN where either was not found."""
        return math.sqrt(self.stable * self.broken) if self.stable > 0 and math.isfinite(self.broken) else math.nan


def find_boundary(
    is_broken: Callable[[float], bool],
    start: float,
    *,
    tolerance: float = 0.05,
    factor: float = 4.0,
    minimum: float = 0.0,
    maximum: float = math.inf,
    max_runs: int = 40,
) -> Bracket:
    """The boundary of ``is_broken``, which is False below it and True above, to a factor of 1 + ``tolerance``.

    From ``start`` (> 0) up or down by ``factor`` until it is bracketed, within ``minimum`` and ``maximum``, then by halves of the
    logarithm; ``max_runs`` trials at most. What breaks at one setting is taken to break at every larger one.
    """
    if not start > 0:
        raise ValueError(f"a search in logarithms wants to start above 0, not at {start}")
    stable, broken, trials, at = 0.0, math.inf, 0, min(max(start, minimum), maximum)
    while trials < max_runs and (stable == 0 or math.isinf(broken) or broken > stable * (1 + tolerance)):
        trials += 1
        if is_broken(at):
            broken = at
        else:
            stable = at
        if math.isinf(broken):
            following = min(stable * factor, maximum)
        elif stable == 0:
            following = max(broken / factor, minimum)
        else:
            following = math.sqrt(stable * broken)
        if following == at or following <= 0:  # the end of what may be tried
            break
        at = following
    return Bracket(stable, broken, trials)


def find_boundaries(
    is_broken: Callable[[str, int, float], bool],
    conditions: Sequence[str],
    seeds: Sequence[int],
    start: float,
    tolerance: float = 0.05,
    minimum: float = 0.0,
    maximum: float = math.inf,
) -> Iterator[tuple[int, str, Bracket]]:
    """Seed by seed and arm by arm, as they are found: where ``is_broken(condition, seed, setting)`` turns True.

    The first search begins at ``start``, each other near a boundary that is known: the latest of its own arm, else of another.
    """
    known: dict[str, float] = {}
    for seed in seeds:
        for arm in conditions:
            near = known.get(arm, next(iter(known.values()), None))
            found = find_boundary(
                partial(is_broken, arm, seed),
                near or start,
                tolerance=tolerance,
                factor=NEARBY_FACTOR if near else UNKNOWN_FACTOR,
                minimum=minimum,
                maximum=maximum,
            )
            if math.isfinite(found.boundary):
                known[arm] = found.boundary
            yield seed, arm, found


def geometric_mean_ratio(a: np.ndarray, b: np.ndarray, confidence_level: float = 0.95) -> Interval:
    """The geometric mean of ``a / b`` over paired seeds; both ``[seeds]`` and above 0, else NaN."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not ((a > 0) & (b > 0)).all():
        return Interval(math.nan, math.nan, math.nan, math.nan)
    found = mean_ci(np.log(a) - np.log(b), confidence_level)
    return Interval(math.exp(found.estimate), math.exp(found.low), math.exp(found.high), found.confidence_level)
