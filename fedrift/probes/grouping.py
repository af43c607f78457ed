"""Who shares a model with whom, and how far that agrees with the true domains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..values import Round, State
from .probe import Reading


@dataclass(frozen=True, eq=False)
class Grouping:
    """``group`` of every client, ``[N]``, and, where the clients' main domains are known, the agreement of both.

    ``cluster.ari``: adjusted Rand index, 0 by chance and 1 if they are the same (Hubert & Arabie, J. Classification 2, 1985);
    ``cluster.nmi``: normalised mutual information. Soft groups are judged by where most of a client is.
    """

    domain: np.ndarray | None = None  # [N], -1 where a client has none

    def __call__(self, done: Round) -> Reading:
        return self.of(done.after)

    def of(self, state: State) -> Reading:
        group = state.mitigation["share"].argmax(1) if "share" in state.mitigation else state.group
        reading: Reading = {"group": group.double()}
        if self.domain is not None and (self.domain >= 0).all():
            from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

            reading["cluster.ari"] = float(adjusted_rand_score(self.domain, group.numpy()))
            reading["cluster.nmi"] = float(normalized_mutual_info_score(self.domain, group.numpy()))
        return reading


__all__ = ["Grouping"]
