"""Clients in between: each trains from a mixture of the groups' models, and gives to each in proportion.

pi_kc = softmax_c(-|mu_k - nu_c|^2 / T) with the descriptors mu and centroids nu of ``ByText``. A client receives w = sum_c
pi_kc w_c; the server takes w_c += sum_k pi_kc p_k D_k / sum_k pi_kc p_k. For T -> 0 these are the groups of ByText, for T ->
infinity all models are the same and it is no mitigation. As in FedSoft (Ruan & Joe-Wong, AAAI 2022, arXiv:2112.06053), with
weights by text.

Adapters cannot be mixed factor by factor: the mean of products is not the product of means. With FFA all share A, and mixing
B is exact.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from ..algorithms import FedAvg
from ..algorithms.aggregates import FFA, Mean
from ..fleet.fleet import Fleet, Rule
from ..tree import Tree, wide
from ..values import Report, Server, State
from .by_text import ByText
from .decision import Decision, Ground
from .vanilla import Vanilla


@dataclass(frozen=True)
class Soft(Vanilla):
    reads: ClassVar[bool] = True
    text: ByText = ByText()
    temperature: Annotated[float, Gt(0)] = 0.05

    def begin(self, ground: Ground) -> Decision:
        found, chosen = self.text.found(ground)
        share = mixture(found.means, chosen.centroids, self.temperature)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)
        why = {"signal": "Soft", **self.text.why(found, chosen, ground.seed), "temperature": self.temperature,
               "effective": float(np.exp(entropy).mean())}  # how many models a client is made of
        return Decision(chosen.group, chosen.k, why, share=share, centroids=chosen.centroids,
                        keep=Tree(share=torch.from_numpy(share)))

    def caveats(self) -> list[str]:
        return self.text.caveats()

    def refusals(self, algorithm: FedAvg, leaves: Collection[str]) -> list[str]:
        said = []
        plain = algorithm.aggregate
        factors = any(leaf.endswith(".A") for leaf in leaves) and any(leaf.endswith(".B") for leaf in leaves)
        if factors and not isinstance(plain, FFA):
            said.append("Soft mixes models, and a mixture of adapters' factors is not the mixture of the adapters: use "
                        "aggregate: FFA with it, which trains B alone, or tune: {is: LastK}")
        inner = plain.inner if isinstance(plain, FFA) else plain
        if type(inner) is not Mean or algorithm.rescales or algorithm.weighs:
            said.append(f"Soft needs a server that takes weighted means; {type(algorithm).__name__} with {type(inner).__name__} "
                        "does something else: use FedAvg, FedProx or Scaffold with Mean, or ByText")
        return said


def mixture(points: np.ndarray, centroids: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(-|mu_k - nu_c|^2 / T), ``[N, E], [M, E] -> [N, M]``."""
    near = -((points[:, None] - centroids[None]) ** 2).sum(axis=-1) / temperature
    weight = np.exp(near - near.max(axis=1, keepdims=True))
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class MixingFleet:
    """A fleet whose clients receive mixtures of the server's models; what they send is shared out in the same way."""

    inner: Fleet

    @property
    def size(self) -> int:
        return self.inner.size

    def train(self, state: State, algorithm: Rule, cohort: Tensor) -> Report:
        share = state.mitigation["share"]
        report = self.inner.train(mixed(state), algorithm, cohort)
        device = report.weight.device
        return replace(report, group=state.group[cohort].to(device), population=share.sum(0).to(device),
                       share=share[cohort].to(device))


def mixed(state: State) -> State:
    """The state as the clients see it: N models, each client's own mixture of the M there are."""
    share = state.mitigation["share"]

    def mix(tree: Tree) -> Tree:
        return tree.map(lambda leaf: torch.einsum("nm,m...->n...", wide(share.to(leaf)), wide(leaf)).to(leaf.dtype)
                        if leaf.is_floating_point() else leaf[share.argmax(1)])

    server = state.server
    return replace(state, server=Server(mix(server.params), mix(server.shared), mix(server.moments), mix(server.base)),
                   moved=mix(state.moved), group=torch.arange(len(state.group)), averages=mix(state.averages))


__all__ = ["MixingFleet", "Soft", "mixed", "mixture"]
