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
    known: str = ""  # why it is no paper's claim that it fails, and what is known of it; such a failure is told, not counted

    @property
    def fails(self) -> bool:
        return not self.holds and not self.known


def near(test: str, what: str, expected: float, found: float, within: float = 1e-6) -> Outcome:
    holds = abs(expected - found) <= within * max(1, abs(expected))
    return Outcome(test, what, f"{expected:.7g}", f"{found:.7g}", holds)


def every(test: str, what: str, expected: str, values: np.ndarray,
          holds: Callable[[np.ndarray], np.ndarray], known: str = "") -> Outcome:
    """An expectation that must hold for every seed."""
    return Outcome(test, what, expected, " ".join(f"{value:.3g}" for value in values), bool(holds(values).all()), known)


def sign(outcome: Outcome) -> str:
    return "holds" if outcome.holds else f"does not hold, as known: {outcome.known}" if outcome.known else "FAILS"


def table(outcomes: Iterable[Outcome]) -> str:
    """Expected against found, as Markdown."""
    rows = [f"| {o.test} | {o.what} | {o.expected} | {o.found} | {sign(o).replace('FAILS', '**fails**')} |"
            for o in outcomes]
    return "\n".join(["| test | what | expected | found | |", "|---|---|---|---|---|", *rows])
