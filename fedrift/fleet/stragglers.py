"""Stragglers: clients that do not finish their local steps, and whose work is kept or dropped.

Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020, arXiv:1812.06127, sections 2 and
5.2: a share of the devices (0.5 and 0.9 there) does less work than asked, drawn evenly. FedProx takes what they did
into the mean, FedAvg drops them. Who straggles, and how far they get, depends on (seed, client, round) only, so
that both ways meet the same stragglers, and so does every algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..seeds import numpy_stream
from .batches import TextBatches

Late = Literal["partial", "drop"]


@dataclass(frozen=True, eq=False)
class StragglingBatches(TextBatches):
    """Batches of which each client, with probability ``share``, does only the first of its K, ~ U{1, ..., K-1}.

    The steps it does are those it would have done. ``late="drop"``: its steps are lost, and it counts as a client
    without data. The paper draws epochs, we draw steps, since a round here may be a part of an epoch; a client
    with a single step has no fewer to do and, where work is kept, does it.
    """

    share: float = 0.0
    late: Late = "partial"

    def order(self, client: int, round: int) -> np.ndarray:
        whole = super().order(client, round)
        steps = -(-len(whole) // self.size)
        draw = numpy_stream(self.seed, "straggle", client, round)
        if draw.random() >= self.share or not steps:
            return whole
        done = int(draw.integers(1, steps)) if steps > 1 else 1
        return whole[:0] if self.late == "drop" else whole[:done * self.size]


__all__ = ["Late", "StragglingBatches"]
