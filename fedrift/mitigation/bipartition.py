"""Groups split in two when their clients, near a point that suits all of them, still pull apart.

CFL: Sattler, Müller & Samek, "Clustered Federated Learning", IEEE TNNLS 2020, arXiv:1910.01991 (Algorithm 2). A group whose
mean update is short, |sum_k p_k D_k| < eps1, while some client's is long, max_k |D_k| > eps2, is cut in two so that the
largest cosine across the cut, alpha, is smallest (single linkage finds this cut), and the cut is kept if sqrt((1 - alpha) /
2) > gamma. And so on in both halves.

The thresholds depend on the scale of the updates: they are shares of the longest update of the first round. Groups are looked
at in rounds that call the whole fleet, the first and every ``every``-th.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ..tree import Tree
from ..values import Round
from .by_update import linked
from .decision import Decision, Ground
from .geometry import cosines, inner
from .vanilla import Vanilla


@dataclass(frozen=True)
class Bipartition(Vanilla):
    everybody: ClassVar[bool] = True
    still: Annotated[float, Gt(0)] = 0.4  # eps1
    moving: Annotated[float, Gt(0)] = 0.6  # eps2
    gamma: Annotated[float, Ge(0), Lt(1)] = 0.5
    every: Annotated[int, Ge(1)] = 5
    least: Annotated[int, Ge(1)] = 2  # clients of a half

    def calls(self, round: int) -> bool:
        return round == 0 or (round + 1) % self.every == 0

    def regroup(self, done: Round, ground: Ground) -> Decision | None:
        if not self.calls(done.before.round):
            return None
        report, state = done.report, done.after
        start = done.before.server.params.rows(done.before.group.to(report.group.device))
        products = inner(start, report.delta)
        length = products.diagonal().clamp_min(0).sqrt()
        scale = state.mitigation["scale"] if "scale" in state.mitigation else length.max().view(1)
        group, parents, looked = state.group.numpy().copy(), list(range(state.server.models)), []
        sound = ~report.failed.numpy()
        for model in range(state.server.models):
            members = np.flatnonzero(group == model)
            if len(members) < 2 * self.least or not sound[members].all():
                continue
            cut, said = self.cut(products, report.weight.double().cpu(), members, float(scale))
            looked.append({"group": model, **said})
            if cut is not None:
                group[members[cut]] = len(parents)
                parents.append(model)
        why = {"signal": "Bipartition", "k": len(parents), "scale": float(scale), "looked": looked, "called": len(done.cohort),
               "switched": int((group != state.group.numpy()).sum()), "bytes": 0}
        return Decision(group, len(parents), why, np.array(parents), keep=Tree(scale=scale))

    def cut(self, products: Tensor, weight: Tensor, members: np.ndarray,
            scale: float) -> tuple[np.ndarray | None, dict[str, Any]]:
        """The half to leave, as bool over the members, or None; and the numbers that decided."""
        rows = torch.as_tensor(members)
        own = products[rows][:, rows]
        share = weight[rows] / weight[rows].sum().clamp_min(1e-12)
        mean, longest = float((share @ own @ share).clamp_min(0).sqrt()), float(own.diagonal().clamp_min(0).max().sqrt())
        said = {"mean": mean, "longest": longest}
        if mean >= self.still * scale or longest <= self.moving * scale:
            return None, said
        alike = cosines(own).numpy()
        apart = 1 - alike
        np.fill_diagonal(apart, 0.0)
        half = linked(apart, 2, "single") == 1
        across = float(alike[half][:, ~half].max())
        said |= {"across": across, "gap": float(np.sqrt((1 - across) / 2))}
        wanted = min(half.sum(), (~half).sum()) >= self.least and said["gap"] > self.gamma
        return (half if wanted else None), said

    def caveats(self) -> list[str]:
        return ["Bipartition calls the whole fleet in the first and every few rounds: with participation below 1 more clients "
                "train in them than without mitigation"]


__all__ = ["Bipartition"]
