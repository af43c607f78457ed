"""An expectation taken from a paper, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ..statistics.paired import paired_t


@dataclass(frozen=True)
class Outcome:
    """One expectation and what came of it."""

    test: str
    what: str
    expected: str
    found: str
    holds: bool


def near(test: str, what: str, expected: float, found: float, within: float = 1e-6) -> Outcome:
    holds = abs(expected - found) <= within * max(1, abs(expected))
    return Outcome(test, what, f"{expected:.7g}", f"{found:.7g}", holds)


def every(test: str, what: str, expected: str, values: np.ndarray,
          holds: Callable[[np.ndarray], np.ndarray]) -> Outcome:
    """An expectation that must hold for every seed."""
    return Outcome(test, what, expected, listed(values), bool(holds(values).all()))


def above_zero(test: str, what: str, differences: np.ndarray, told: str = "") -> Outcome:
    """An expectation of the mean over seeds: the 95 % t-interval of the paired ``differences [seeds]`` lies above zero."""
    mean = paired_t(differences)
    many = f"{(differences > 0).sum()} of {len(differences)} positive"
    found = f"{mean.estimate:+.4f} ({mean.low:+.4f} to {mean.high:+.4f}), {many}"
    return Outcome(test, what, "95 % interval of the mean > 0", found + told, mean.low > 0)


def listed(values: np.ndarray) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def sign(outcome: Outcome) -> str:
    return "holds" if outcome.holds else "does not hold"


def table(outcomes: Iterable[Outcome]) -> str:
    """Expected against found, as Markdown."""
    rows = [f"| {o.test} | {o.what} | {o.expected} | {o.found} | {sign(o) if o.holds else f'**{sign(o)}**'} |"
            for o in outcomes]
    return "\n".join(["| test | what | expected | found | |", "|---|---|---|---|---|", *rows])
