"""Coordinate-wise trimmed mean: the largest and smallest values of every coordinate are left out.

Yin, Chen, Ramchandran & Bartlett, ICML 2018, arXiv:1803.01498 (Algorithm 1, Option II): the mean of
what remains when floor(share * n) clients are dropped at each end. Clients count alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

from ...tree import Tree
from ...values import Report, Server
from .alike import Robust
from .median import sorted_middle


@dataclass(frozen=True)
class TrimmedMean(Robust):
    share: Annotated[float, Ge(0), Lt(0.5)] = 0.2

    def combine(self, server: Server, report: Report) -> Tree:
        return sorted_middle(report, self.dropped)

    def dropped(self, count: int) -> int:
        """How many of so many are left out at each end."""
        return int(self.share * count + 1e-9)

    def thin(self, cohort: int) -> list[str]:
        return [] if self.dropped(cohort) else [
            f"TrimmedMean(share={self.share:g}) leaves out nobody of {cohort} clients a round: it is their mean"]
