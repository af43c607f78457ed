"""What a test and an interval come back with: a p that knows the smallest one that its seeds could have given.

Under the null hypothesis of a paired design each seed's difference is as likely to have either sign, so n seeds
have 2^n equally likely outcomes and no two-sided p below 2 / 2^n (Fisher, "The Design of Experiments", 1935,
section 21). Five seeds can never reach .05: a smaller p from them would be the work of an assumption, not of the seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ALPHA = 0.05


@dataclass(frozen=True)
class P:
    """A two-sided p unless ``test`` says otherwise; printed, it refuses to be below .05 where the seeds cannot reach that."""

    value: float
    attainable: float  # the smallest p that so many seeds could have given
    seeds: int
    test: str

    def below(self, alpha: float = ALPHA) -> bool:
        """Whether it is at most ``alpha``, and the seeds could have shown it."""
        return self.value <= alpha and self.attainable <= alpha

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "no p"
        if self.attainable > ALPHA and self.value <= max(ALPHA, self.attainable):
            return f"{counted(self.seeds)} cannot give a p below {short(self.attainable)}"
        return f"p {'<' if self.value < 0.0001 else '='} {short(max(self.value, 0.0001))}"


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; ``level`` is the one that was reached, NaN if there are too few numbers."""

    estimate: float
    low: float
    high: float
    level: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def smallest_p(seeds: int) -> float:
    """2 / 2^n: what n paired seeds can give at the least, two-sided."""
    return min(1.0, 2.0 ** (1 - seeds))


def seeds_needed(alpha: float = ALPHA, family: int = 1) -> int:
    """The seeds below which no hypothesis of a Holm family of that size can be called: 6 for one at .05, 9 for eight."""
    return max(1, math.ceil(1 - math.log2(alpha / family) - 1e-9))


def short(value: float) -> str:
    """A p with two digits that mean something: .032, .0078, 0.42."""
    digits = 3 if value >= 0.01 else 4
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if value < 0.1 else f"{value:.2f}"


def counted(seeds: int) -> str:
    return f"{seeds} seed{'' if seeds == 1 else 's'}"
