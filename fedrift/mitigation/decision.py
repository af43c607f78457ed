"""What a mitigation may look at, and what it decides.

Axis letters: N clients of the fleet, M models of the server, D documents of a client, E numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..tree import Tree
from ..values import State


def no_texts(client: int) -> list[str]:
    raise UserError("this mitigation reads the clients' documents, and there are none here")


def no_embedding(texts: Sequence[str], encoder: str) -> np.ndarray:
    raise UserError("this mitigation embeds documents, and there is no encoder here")


def no_losses(state: State, batches: int) -> Tensor:
    raise UserError("this mitigation asks clients for their losses, and this fleet does not answer")


@dataclass(frozen=True, eq=False)
class Ground:
    """What is known of N clients before and beside their reports. ``domain`` is the truth, for the oracle and the judge only."""

    size: int
    seed: int
    texts: Callable[[int], Sequence[str]] = no_texts  # a client's training documents, and no others
    embed: Callable[[Sequence[str], str], np.ndarray] = no_embedding  # (texts, encoder) -> [D, E] of length one
    losses: Callable[[State, int], Tensor] = no_losses  # (state, batches) -> [N, M] on the clients' training text
    domain: np.ndarray | None = None  # [N] the domain that most of a client's tokens are of; -1: unknown


@dataclass(frozen=True, eq=False)
class Decision:
    """Who shares which model from now on, and why.

    ``parents``: the former model that each begins as; if it is not said, models go where most of their clients go.
    ``share``: how much of each client is each model's, where clients mix them; the rows sum to 1.
    """

    group: np.ndarray  # [N] which model each client shares
    models: int  # M
    why: dict[str, Any]  # plain JSON
    parents: np.ndarray | None = None  # [M]
    share: np.ndarray | None = None  # [N, M]
    centroids: np.ndarray | None = None  # [M, E] for clients that come later
    keep: Tree = field(default_factory=Tree)  # what to remember until the next decision

    def sentence(self) -> str:
        """The decision for people."""
        sizes = ", ".join(map(str, np.bincount(self.group, minlength=self.models)))
        told = {"p": "p_value", "silhouette": "silhouette", "ARI of bootstraps": "stability"}
        numbers = [f"{name} {self.why[key]:.2g}" for name, key in told.items() if np.isfinite(self.why.get(key, np.nan))]
        if self.why.get("switched"):
            numbers.append(f"{self.why['switched']} clients changed")
        verdict = f": {self.why['verdict']}" if "verdict" in self.why else ""
        groups = "1 group" if self.models == 1 else f"{self.models} groups"
        return f"{self.why['signal']}: {groups} of {sizes} clients{verdict}" + (f" ({'; '.join(numbers)})" if numbers else "")

    def said(self, round: int) -> dict[str, Any]:
        """The decision as plain JSON."""
        whole: dict[str, Any] = {"round": round, "group": self.group.tolist(), "models": self.models, **self.why}
        if self.share is not None:
            whole["share"] = self.share.tolist()
        if self.centroids is not None:
            whole["centroids"] = self.centroids.tolist()
        return {key: missing(value) for key, value in whole.items()}


def missing(value: Any) -> Any:
    """Plain JSON has no NaN: what is missing is null."""
    if isinstance(value, dict):
        return {key: missing(part) for key, part in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def assign(decision: Decision | dict[str, Any], descriptor: np.ndarray) -> np.ndarray:
    """The model for clients that took no part, ``descriptor [..., E] -> [...]``: that of the nearest centroid.

    ``decision`` may be an entry of a run's mitigation.json.
    """
    found = decision.centroids if isinstance(decision, Decision) else decision.get("centroids")
    if found is None:
        raise UserError("this mitigation did not group clients by descriptors: nobody can be assigned by one; use ByText or Soft")
    centroids = np.asarray(found)
    apart = np.linalg.norm(descriptor[..., None, :] - centroids, axis=-1)
    return np.asarray(apart.argmin(axis=-1))


__all__ = ["Decision", "Ground", "assign"]
