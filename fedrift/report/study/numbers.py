"""Numbers as they are read: formatted once, here, for page, PDF and LaTeX alike."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ...statistics import paired_t
from ...statistics.evidence import ALPHA, short

NONE = "–"


def plain(value: float, digits: int = 3) -> str:
    """``4.123``; large and tiny ones with an exponent; a dash where there is none."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.2e}"


def signed(value: float, digits: int = 3) -> str:
    return plain(value) if value is None or not math.isfinite(value) or abs(value) >= 1e4 else f"{value:+.{digits}f}"


def between(low: float, high: float, sign: bool = False) -> str:
    """An interval, or a dash."""
    if math.isnan(low) or math.isnan(high):
        return NONE
    form = signed if sign else plain
    return f"{form(low)} to {form(high)}"


def p_value(value: float, attainable: float) -> str:
    """A p; ``n/a`` where the seeds could not have given one at or below .05, however large the effect."""
    if math.isnan(value):
        return NONE
    return f"n/a (≥ {short(attainable)})" if attainable > ALPHA else f"< {short(0.0001)}" if value < 0.0001 else short(value)


def mean(values: Iterable[float]) -> tuple[float, float, float, int]:
    """Mean, 95 % t-interval, count; the mean is NaN where one is not finite."""
    numbers = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if not len(numbers) or not np.isfinite(numbers).all():
        return math.nan, math.nan, math.nan, len(numbers)
    found = paired_t(numbers, 0.95)
    return found.estimate, found.low, found.high, len(numbers)


def size(count: float) -> str:
    """Bytes for people."""
    if math.isnan(count):
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return NONE


def many(count: int, one: str, more: str = "") -> str:
    """``1 run``, ``3 runs``."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"
