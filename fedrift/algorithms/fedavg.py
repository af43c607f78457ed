"""FedAvg: every client trains the same model for a while, the server takes the mean of the changes.

McMahan, Moore, Ramage, Hampson & Agüera y Arcas, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", AISTATS 2017, arXiv:1602.05629 (Algorithm 1).

Client k: y <- y - lr g_k(y), K_k times from y = w. Server: w <- w + eta_g sum_k p_k (y_k - w), with
p_k = n_k / sum n over the cohort. Written as a step of a server optimiser on the negative mean
change (Reddi et al., ICLR 2021, arXiv:2003.00295, Algorithm 2); ``Sgd(1.0)`` is the paper's eta_g = 1.

``server`` and ``aggregate`` multiply instead of adding classes: ``FedAvg(server=Sgd(1.0, momentum=0.9))`` is
FedAvgM, ``FedAvg(server=Adam(0.01))`` FedAdam, ``FedAvg(aggregate=Median())`` the coordinate-wise median.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import Tensor

from ..optimizers import Optimizer, Sgd, part
from ..tree import Tree
from ..values import Report, Round, Server
from .aggregates.mean import Mean
from .aggregates.pooled import average, heard, members, pool
from .algorithm import Algorithm, Evidence


@dataclass(frozen=True)
class FedAvg(Algorithm):
    server: Optimizer = Sgd(1.0)
    aggregate: Mean = Mean()

    def begin(self, params: Tree) -> Server:
        return Server(params, self.shared(params), self.server.init(params), self.aggregate.begin(params))

    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]:
        return self.aggregate.frozen(leaves, round)

    def absorb(self, server: Server, report: Report) -> Server:
        descent = -self.aggregate.combine(server, report)
        params, moments = self.server.step(server.params, descent, server.moments)
        trained = heard(report)  # a model nobody trained stays, moments and all
        after = replace(server, params=params.where(trained, server.params),
                        moments=moments.where(trained, server.moments))
        return self.aggregate.rebase(server, after, report)

    def evidence(self, done: Round) -> Evidence:
        """``server.momentum``: its length; of several models, the clients' mean over the one that each shares."""
        moments = done.after.server.moments
        velocity = moments if moments.keys() == done.after.server.params.keys() else part("m", moments)
        return {"server.momentum": shared_by(velocity.norm(), done)} if velocity else {}

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return self.aggregate.caveats(self, weighting)

    def refusals(self, optimizer: Optimizer, weighting: str, leaves: Collection[str]) -> list[str]:
        return self.aggregate.refusals(self, leaves)


def shared_by(values: Tensor, done: Round) -> Tensor:
    """Of a number of each model ``[M]``: the mean over the clients of the model that each shares."""
    return values.cpu()[done.after.group.cpu()].mean()


__all__ = ["FedAvg", "average", "heard", "members", "pool", "shared_by"]
