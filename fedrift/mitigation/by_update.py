"""Clients whose first updates point alike share a model.

Briggs, Fan & Andras, "Federated learning with hierarchical clustering of local updates", IJCNN 2020, arXiv:2004.11791: after
one round in which everybody takes part, the updates are clustered by cosine distance with complete linkage, and each group
goes on by itself from the shared model of that round. The updates of adapters are compared as products (``geometry.py``).

How many groups: the most convincing silhouette of ``select.py`` unless said. With ``every``, the whole fleet is called again
after so many rounds and grouped anew; a client changes its group only if the other is at less than ``hysteresis`` of its
distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ..values import Round
from .carry import follow, hysteresis
from .decision import Decision, Ground
from .geometry import cosines, inner
from .select import candidates, most_silhouette
from .vanilla import Vanilla


@dataclass(frozen=True)
class ByUpdate(Vanilla):
    everybody: ClassVar[bool] = True
    clusters: Annotated[int, Ge(1)] | None = None
    every: Annotated[int, Ge(1)] | None = None
    hysteresis: Annotated[float, Gt(0), Le(1)] = 0.9

    def calls(self, round: int) -> bool:
        return round == 0 or (self.every is not None and round % self.every == 0)

    def regroup(self, done: Round, ground: Ground) -> Decision | None:
        round = done.before.round
        if not self.calls(round):
            return None
        start = done.before.server.params.rows(done.before.group[done.cohort].to(done.report.group.device))
        alike = cosines(inner(start, done.report.delta))
        apart = (1 - alike).numpy()
        np.fill_diagonal(apart, 0.0)
        group, silhouettes = self.found(apart)
        models, held = int(group.max()) + 1, 0
        old = done.before.group.numpy()
        if round and models > 1:
            group, _ = follow(old, group, int(old.max()) + 1, models)
            kept = hysteresis(to_groups(alike, group, models), np.where(old < models, old, group), self.hysteresis)
            held, group = int((kept != group).sum()), kept
        why = {"signal": "ByUpdate", "k": models, "asked": self.clusters,
               "silhouettes": {str(k): value for k, value in silhouettes.items()},
               "silhouette": silhouettes.get(models, float("nan")),
               "switched": int((group != old).sum()) if round else 0, "held": held, "called": len(done.cohort), "bytes": 0}
        return Decision(group, models, why)

    def found(self, apart: np.ndarray) -> tuple[np.ndarray, dict[int, float]]:
        """Groups by complete linkage of distances ``[N, N]``, group 0 the largest; the silhouettes that were looked at."""
        if self.clusters is not None:
            return linked(apart, min(self.clusters, len(apart)), "complete"), {}
        solutions = {k: linked(apart, k, "complete") for k in candidates(len(apart))}
        k, silhouettes = most_silhouette(solutions, apart)
        return solutions.get(k, np.zeros(len(apart), dtype=np.int64)), silhouettes

    def caveats(self) -> list[str]:
        return ["ByUpdate calls the whole fleet in the rounds whose updates it groups by: with participation below 1 more "
                "clients train in them than without mitigation"]


def linked(apart: np.ndarray, k: int, linkage: str) -> np.ndarray:
    """Agglomerative clustering of distances ``[N, N]`` into k groups, the largest first."""
    if k == 1:
        return np.zeros(len(apart), dtype=np.int64)
    from sklearn.cluster import AgglomerativeClustering

    labels = AgglomerativeClustering(k, metric="precomputed", linkage=linkage).fit_predict(apart)
    by_size = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    return np.asarray(np.argsort(by_size)[labels], dtype=np.int64)


def to_groups(alike: Tensor, group: np.ndarray, models: int) -> np.ndarray:
    """Cosine distance of each client's change to the mean direction of each group, ``[N, M]``."""
    member = torch.nn.functional.one_hot(torch.as_tensor(group), models).double()  # [N, M]
    length = torch.einsum("nm,nk,km->m", member, alike, member).clamp_min(1e-300).sqrt()
    return (1 - alike @ member / length).numpy()


__all__ = ["ByUpdate", "linked"]
