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

from ..optimizers import Optimizer
from ..tree import Tree
from ..values import Local, Report, Server
from .fedavg import FedAvg, is_adaptive, pool


@dataclass(frozen=True)
class Scaffold(FedAvg):

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

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = []
        if is_adaptive(optimizer):
            said.append("SCAFFOLD under AdamW is 'SCAFFOLD-style': the correction is added to the gradient before "
                        "Adam normalises it, so the fixed point is off by O(lr) and no theory covers it; use Sgd")
        if weighting != "uniform":
            said.append(f"SCAFFOLD is derived for a uniform mean; weighting={weighting!r} keeps it only while all "
                        "clients train equally many, and blew up in trials on skewed sizes; use weighting: uniform")
        return said
