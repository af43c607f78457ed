"""An expectation taken from a paper, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np


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
    return Outcome(test, what, expected, " ".join(f"{value:.3g}" for value in values), bool(holds(values).all()))


def table(outcomes: Iterable[Outcome]) -> str:
    """Expected against found, as Markdown."""
    rows = [f"| {o.test} | {o.what} | {o.expected} | {o.found} | {'holds' if o.holds else '**fails**'} |"
            for o in outcomes]
    return "\n".join(["| test | what | expected | found | |", "|---|---|---|---|---|", *rows])
