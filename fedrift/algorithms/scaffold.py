"""SCAFFOLD: each client subtracts its own mean gradient and adds everybody's.

Karimireddy, Kale, Mohri, Reddi, Stich & Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", ICML 2020, arXiv:1910.06378 (Algorithm 1, Option II).

Client k: y <- y - lr (g_k(y) - c_k + c); then c_k+ = c_k - c + (w - y) / (K lr).
Server: w <- w + eta_g mean_S (y_k - w);  c <- c + (1/N) sum_S (c_k+ - c_k).

Under plain SGD the local path is y = w - lr sum_j (g_k(y_j) - c_k + c), so c_k+ *is* the mean of the
raw gradients. We store that mean itself: the same number under SGD, and still a gradient under
momentum, clipping, schedules or Adam, where a displacement over K lr is not one (it diverges with
heavy ball and is biased with Adam). c and every c_k begin at zero, so c = mean_k c_k holds in
every round, whoever takes part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..optimizers import Optimizer, is_adaptive
from ..tree import Tree
from ..values import Local, Report, Round, Server
from .algorithm import Evidence
from .fedavg import FedAvg, members, pool


@dataclass(frozen=True)
class Scaffold(FedAvg):
    tells: ClassVar[frozenset[str]] = frozenset({"memory"})

    def shared(self, params: Tree) -> Tree:  # c
        return params.zeros()

    def memory(self, params: Tree) -> Tree:  # c_k
        return params.zeros()

    def correct(self, grad: Tree, at: Local) -> Tree:
        return grad - at.memory + at.shared

    def remember(self, at: Local) -> Tree:
        return at.gradient

    def absorb(self, server: Server, report: Report) -> Server:
        shared = server.shared + pool(report.news, report) / report.population.clamp_min(1)
        return replace(super().absorb(server, report), shared=shared)

    def averaged(self, memory: Tree) -> Tree:
        return memory

    def evidence(self, done: Round) -> Evidence:
        return super().evidence(done) | told(done, done.before.memory.rows(done.cohort), done.after.server.shared)

    def regroup(self, server: Server, memory: Tree, group: Tensor) -> Server:  # c = mean_k c_k, over the new members
        return replace(server, shared=members(memory, group, server.shared))

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = super().caveats(optimizer, weighting)
        if is_adaptive(optimizer):
            said.append("SCAFFOLD under AdamW is 'SCAFFOLD-style': the correction is added to the gradient before "
                        "Adam normalises it, so the fixed point is off by O(lr) and no theory covers it; use Sgd")
        if weighting != "uniform":
            said.append(f"SCAFFOLD is derived for a uniform mean; weighting={weighting!r} keeps it only while all "
                        "clients train equally many, and blew up in trials on skewed sizes; use weighting: uniform")
        return said


def told(done: Round, before: Tree, shared: Tree) -> Evidence:
    """How old the controls are. ``before [C, ...]`` is the cohort's c_k as the round began, ``shared [M, ...]`` is c.

    ``control.age [C]``: rounds since the client last took part; ``control.staleness [C]``: |c_k - g_k| / |g_k|, g_k its mean
    gradient of this round; both NaN for one that never had. ``control.imbalance``: |c - mean_k c_k| / |c| over the members of
    each model; above rounding it is a mistake, and no phenomenon. The mean is the round loop's running mean in float64
    (``State.averages``); c itself is a sum of the news that the clients sent, so that the two are computed apart.
    """
    gradient = done.report.gradient.to(torch.device("cpu"))
    size = gradient.norm()
    last = done.before.last[done.cohort] if len(done.before.last) else torch.zeros(len(done.cohort))
    known = (last > 0) & ~done.report.failed & (size > 0)
    stale = (before - gradient).norm() / size
    said: Evidence = {"control.age": torch.where(known, (done.after.round - last).double(), torch.nan),
                      "control.staleness": torch.where(known, stale, torch.nan)}
    averages = done.after.averages
    if averages:  # a round that the round loop did not make has none
        off = (shared - averages.map(lambda mean, c: mean.to(c), shared)).norm().square().sum().sqrt()
        said["control.imbalance"] = off / shared.norm().square().sum().sqrt().clamp_min(1e-12)
    return said
