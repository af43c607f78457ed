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
from .mean import Mean
from .median import sorted_middle


@dataclass(frozen=True)
class TrimmedMean(Mean):
    share: Annotated[float, Ge(0), Lt(0.5)] = 0.2

    def combine(self, server: Server, report: Report) -> Tree:
        return sorted_middle(report, lambda count: int(self.share * count + 1e-9))
