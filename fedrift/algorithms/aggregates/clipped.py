"""The weighted mean of changes of bounded length: who shouts is heard no louder than ``length``.

Sun, Kairouz, Suresh & McMahan, "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963 (norm thresholding):
sum_k p_k delta_k / max(1, ||delta_k|| / M), M ``length``; the norm is over all trained leaves of a client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from ...tree import Tree
from ...values import Report, Server
from .mean import Mean
from .pooled import average


@dataclass(frozen=True)
class Clipped(Mean):
    length: Annotated[float, Gt(0)] = 1.0

    def combine(self, server: Server, report: Report) -> Tree:
        return average(report.delta * (self.length / report.delta.norm().clamp_min(self.length)), report)
