"""What the heterogeneity report holds: numbers beside their null, and the tables behind its figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Measured:
    """One number with the mean and standard deviation of its IID re-splits; NaN where there is no null."""

    name: str
    value: float
    null: float = float("nan")
    deviation: float = float("nan")

    @property
    def z(self) -> float:
        """Standard deviations above chance."""
        return (self.value - self.null) / self.deviation if self.deviation > 0 else float("nan")

    @property
    def beyond(self) -> bool:
        """More than three standard deviations beyond chance, to the heterogeneous side; False without a null.

        Vocabularies are the less shared the more clients differ; all other numbers grow.
        """
        side = -1 if self.name.startswith("vocabulary.") else 1
        return side * (self.value - self.null) > 3 * self.deviation


@dataclass(frozen=True, eq=False)
class Heterogeneity:
    """What a partition looks like before any training."""

    numbers: tuple[Measured, ...]
    clients: int
    domains: tuple[str, ...]
    table: np.ndarray  # [N, T] tokens of each client and domain, as written
    budgets: np.ndarray  # [N] tokens, as written
    documents: np.ndarray  # [N]
    words: np.ndarray  # [N] word occurrences, as written
    pairwise: np.ndarray  # [N, N] divergence of the clients' words in bits
    characteristic: tuple[tuple[str, ...], ...]  # N times ten words

    def __getitem__(self, name: str) -> Measured:
        for measured in self.numbers:
            if measured.name == name:
                return measured
        raise KeyError(f"no number {name!r} in this report; it has {[m.name for m in self.numbers]}")

    def plain(self) -> dict[str, object]:
        """Numbers, lists and strings only, for JSON; missing is None."""

        def number(value: float) -> float | None:
            return None if np.isnan(value) else float(value)

        return {
            "numbers": {
                m.name: {
                    "value": number(m.value),
                    "null": number(m.null),
                    "deviation": number(m.deviation),
                    "z": number(m.z),
                }
                for m in self.numbers
            },
            "clients": self.clients,
            "domains": list(self.domains),
            "table": self.table.tolist(),
            "budgets": self.budgets.tolist(),
            "documents": self.documents.tolist(),
            "words": self.words.tolist(),
            "pairwise": self.pairwise.tolist(),
            "characteristic": [list(words) for words in self.characteristic],
        }
