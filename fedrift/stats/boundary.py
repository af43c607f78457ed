"""Stability boundaries: the largest value of a setting, such as the learning rate, at which training stays stable.

A boundary is bracketed and then bisected on a logarithmic scale, so conditions are compared by ratios: exp of the paired t interval of
log a_s - log b_s. Example: two quadratics of curvature 1 and 9.5 with ten local steps are stable up to a learning rate of
2 / 5.25 = 0.381 under IID data, and up to 0.2176 under non-IID data. The ratio is 1.75.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from .effects import mean_ci
from .significance import Interval

UNKNOWN_FACTOR, NEARBY_FACTOR = 4.0, 1.4  # step factors of the bracketing: from an arbitrary start, from a known boundary


class Bracket(NamedTuple):
    """The bracket of a boundary: the run is stable at ``stable`` and unstable at ``unstable``.

    ``stable`` is 0 and ``unstable`` is infinite if no such setting was found.
    """

    stable: float
    unstable: float
    num_runs: int

    @property
    def boundary(self) -> float:
        """Return the geometric mean of the bracket, or NaN if one end was not found."""
        return math.sqrt(self.stable * self.unstable) if self.stable > 0 and math.isfinite(self.unstable) else math.nan


def find_boundary(
    is_unstable: Callable[[float], bool],
    start: float,
    *,
    tolerance: float = 0.05,
    factor: float = 4.0,
    minimum: float = 0.0,
    maximum: float = math.inf,
    max_runs: int = 40,
) -> Bracket:
    """Find the largest setting below which ``is_unstable`` is False, up to a relative error of ``tolerance``.

    The search moves from ``start`` up or down by ``factor`` until the boundary is bracketed, then bisects on a logarithmic scale. It
    assumes that a setting above an unstable one is unstable too.

    Args:
        is_unstable: Whether a run at this setting is unstable.
        start: The first setting, above 0.
        tolerance: The search stops when the ends of the bracket differ by at most a factor of 1 + ``tolerance``.
        factor: The step factor of the bracketing.
        minimum: The smallest setting to try.
        maximum: The largest setting to try.
        max_runs: The maximum number of runs.

    Example:
        >>> find_boundary(lambda lr: lr > 0.3, start=0.1).boundary
    """
    if not start > 0:
        raise ValueError(f"start must be above 0 because the search is logarithmic, got {start}")
    stable, unstable, num_runs, setting = 0.0, math.inf, 0, min(max(start, minimum), maximum)
    while num_runs < max_runs and (stable == 0 or math.isinf(unstable) or unstable > stable * (1 + tolerance)):
        num_runs += 1
        if is_unstable(setting):
            unstable = setting
        else:
            stable = setting
        if math.isinf(unstable):
            next_setting = min(stable * factor, maximum)
        elif stable == 0:
            next_setting = max(unstable / factor, minimum)
        else:
            next_setting = math.sqrt(stable * unstable)
        if next_setting == setting or next_setting <= 0:  # the limit of the allowed range
            break
        setting = next_setting
    return Bracket(stable, unstable, num_runs)


def find_boundaries(
    is_unstable: Callable[[str, int, float], bool],
    conditions: Sequence[str],
    seeds: Sequence[int],
    start: float,
    tolerance: float = 0.05,
    minimum: float = 0.0,
    maximum: float = math.inf,
) -> Iterator[tuple[int, str, Bracket]]:
    """Find the boundary of every condition, seed by seed, and yield each result as it is found.

    The first search begins at ``start``. Every later one begins near a known boundary: the latest of its own condition, else that of
    another.

    Args:
        is_unstable: Whether the run ``(condition, seed, setting)`` is unstable.
        conditions: The conditions.
        seeds: The seeds.
        start: The first setting, above 0.
        tolerance: The relative error of a boundary.
        minimum: The smallest setting to try.
        maximum: The largest setting to try.

    Yields:
        (seed, condition, bracket).
    """
    known: dict[str, float] = {}
    for seed in seeds:
        for condition in conditions:
            known_boundary = known.get(condition, next(iter(known.values()), None))
            bracket = find_boundary(
                partial(is_unstable, condition, seed),
                known_boundary or start,
                tolerance=tolerance,
                factor=NEARBY_FACTOR if known_boundary else UNKNOWN_FACTOR,
                minimum=minimum,
                maximum=maximum,
            )
            if math.isfinite(bracket.boundary):
                known[condition] = bracket.boundary
            yield seed, condition, bracket


def geometric_mean_ratio(a: np.ndarray, b: np.ndarray, confidence_level: float = 0.95) -> Interval:
    """Return the geometric mean of ``a / b`` over paired seeds, with its interval.

    Args:
        a: The boundaries of one condition, [seeds].
        b: The boundaries of the other condition, [seeds].
        confidence_level: The level of the interval.

    Returns:
        The interval, or NaN if a boundary is not above 0.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not ((a > 0) & (b > 0)).all():
        return Interval(math.nan, math.nan, math.nan, math.nan)
    log_interval = mean_ci(np.log(a) - np.log(b), confidence_level)
    return Interval(math.exp(log_interval.estimate), math.exp(log_interval.low), math.exp(log_interval.high), log_interval.confidence_level)
