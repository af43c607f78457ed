"""SCAFFOLD for clients of unequal size: the corrected mean is right for the objective that counts tokens.

Karimireddy et al., ICML 2020, arXiv:1910.06378 (Algorithm 1) is derived for the uniform mean. For
sum_k q_k F_k the controls must carry the weights, as in the authors' code of FedDyn (Acar et al.,
ICLR 2021): client k follows g_k - c_k + c / (N q_k), with c = sum_k q_k c_k.

A client keeps u_k = n_k c_k, its control times its weight, the server u = mean_k u_k; then N q_k is n_k over the
mean weight and the correction (u - u_k) / n_k, which needs nobody else's weight. u = mean_k u_k holds in
every round, whoever takes part. A client that comes for the first time takes the mean weight for its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..optimizers import Optimizer, named, part
from ..tree import Tree
from ..values import Local, Report, Round, Server
from .algorithm import Evidence
from .fedavg import pool
from .scaffold import Scaffold, told


@dataclass(frozen=True)
class ScaffoldWeighted(Scaffold):

    def shared(self, params: Tree) -> Tree:  # means over the fleet: u, n, and the share of clients seen so far
        leaf = next(iter(params.values()))
        none = torch.zeros(len(leaf), 1, dtype=leaf.dtype, device=leaf.device)
        return Tree({**named("u", params.zeros()), "weight": none, "seen": none.clone()})

    def memory(self, params: Tree) -> Tree:  # u_k, n_k, and 1 once it took part
        return self.shared(params)

    def correct(self, grad: Tree, at: Local) -> Tree:
        mean = at.shared["weight"] / at.shared["seen"].clamp_min(1e-12)
        weight = at.memory["weight"].where(at.memory["seen"] > 0, mean)[:, 0]  # n_k
        known = (weight > 0).to(weight) / weight.clamp_min(1e-12)
        return grad + (part("u", at.shared) - part("u", at.memory)) * known

    def remember(self, at: Local) -> Tree:
        weight = at.weight.to(at.memory["weight"]).unsqueeze(1)
        return Tree({**named("u", at.gradient * weight[:, 0]), "weight": weight, "seen": torch.ones_like(weight)})

    def absorb(self, server: Server, report: Report) -> Server:
        after = super(Scaffold, self).absorb(server, report)
        return replace(after, shared=server.shared + pool(report.news, report) / report.population.clamp_min(1))

    def averaged(self, memory: Tree) -> Tree:
        return part("u", memory)

    def evidence(self, done: Round) -> Evidence:
        kept = done.before.memory.rows(done.cohort)
        controls = part("u", kept) / kept["weight"][:, 0].clamp_min(1e-12)  # c_k = u_k / n_k
        return super(Scaffold, self).evidence(done) | told(done, controls, part("u", done.after.server.shared))

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return super().caveats(optimizer, "uniform")
