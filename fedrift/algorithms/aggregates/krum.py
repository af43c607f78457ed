"""Krum: the change that lies closest to its neighbours; multi-Krum: the mean of the best few.

Blanchard, El Mhamdi, Guerraoui & Stainer, "Machine Learning with Adversaries: Byzantine Tolerant
Gradient Descent", NeurIPS 2017, arXiv:1703.02757 (section 4). Of n clients of which ``liars`` may lie,
client i scores the sum of its squared distances to its n - liars - 2 nearest; the lowest score wins.
``keep`` > 1 is multi-Krum. The guarantee needs n >= 2 liars + 3. Clients count alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...tree import Tree, wide
from ...values import Report, Server
from .alike import Robust
from .pooled import by_model


@dataclass(frozen=True)
class Krum(Robust):
    liars: Annotated[int, Ge(0)] = 1
    keep: Annotated[int, Ge(1)] = 1

    def combine(self, server: Server, report: Report) -> Tree:
        chosen = [(model, mine[best(distances(report.delta.rows(mine)), self.liars, self.keep)])
                  for model, mine in by_model(report)]

        def pick(leaf: Tensor) -> Tensor:
            found = leaf.new_zeros(len(report.population), *leaf.shape[1:])
            for model, rows in chosen:
                found[model] = leaf[rows].mean(0)
            return found

        return report.delta.map(pick)

    def thin(self, cohort: int) -> list[str]:
        least = 2 * self.liars + 3
        return [] if cohort >= least else [
            f"Krum(liars={self.liars}) promises nothing for {cohort} clients a round: it needs {least}"]


def distances(tree: Tree) -> Tensor:
    """Squared distances between rows over all leaves, ``[C, ...] -> [C, C]``."""
    flat = [wide(leaf).flatten(1) for leaf in tree.values()]
    exact = "donot_use_mm_for_euclid_dist"
    return torch.stack([torch.cdist(leaf, leaf, compute_mode=exact) ** 2 for leaf in flat]).sum(0)


def best(square: Tensor, liars: int, keep: int) -> Tensor:
    """The rows of the ``keep`` lowest scores, from squared distances ``[n, n]``."""
    size = len(square)
    near = min(max(size - liars - 2, 1), size - 1)
    score = square.sort(1).values[:, 1:1 + near].sum(1)  # the first is the distance to itself
    return score.argsort(stable=True)[:min(keep, size)]
