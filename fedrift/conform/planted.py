"""Bugs of public implementations, planted on purpose: a suite that does not see them judges nobody."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..algorithms import AFL, FedAvg, FedDyn, FedNova, FedProx, QFedAvg, Scaffold
from ..algorithms.aggregates.pooled import pool
from ..optimizers import Sgd
from ..tree import Tree
from ..values import Local, Report, Server
from .ours import Ours
from .planted_own import PLANTED_OWN
from .planted_server import PLANTED_SERVER


@dataclass(frozen=True)
class UniformMean(FedAvg):
    def absorb(self, server: Server, report: Report) -> Server:
        return super().absorb(server, replace(report, weight=(report.weight > 0).to(report.weight)))


@dataclass(frozen=True)
class UnsquaredProx(FedProx):  # the gradient of mu/2 |y - w|, as in the docstring of Flower's FedProx
    def correct(self, grad: Tree, at: Local) -> Tree:
        apart = at.params - at.start
        return grad + self.mu / 2 * (apart / apart.norm().clamp_min(1e-12))


@dataclass(frozen=True)
class TwiceTheProx(FedProx):
    def correct(self, grad: Tree, at: Local) -> Tree:
        return grad + 2 * self.mu * (at.params - at.start)


@dataclass(frozen=True)
class SignFlipped(Scaffold):
    def correct(self, grad: Tree, at: Local) -> Tree:
        return grad + at.memory - at.shared


@dataclass(frozen=True)
class DividedByCohort(Scaffold):
    def absorb(self, server: Server, report: Report) -> Server:
        shared = server.shared + pool(report.news, report) / len(report.weight)
        return replace(super().absorb(server, report), shared=shared)


@dataclass(frozen=True)
class StartsAtTheWeights(Scaffold):  # Flower's baseline: c and every c_k begin as the model
    def shared(self, params: Tree) -> Tree:
        return params

    def memory(self, params: Tree) -> Tree:
        return params.zeros()


@dataclass(frozen=True)
class NeverRemembered(Scaffold):  # FL-bench since 2024-04: c_k never comes back
    def remember(self, at: Local) -> Tree:
        return at.memory


@dataclass(frozen=True)
class OnlyTheLast(Scaffold):  # FedML: only the last client's change counts
    def absorb(self, server: Server, report: Report) -> Server:
        weight = report.weight * 0
        weight[-1] = 1
        return super().absorb(server, replace(report, weight=weight))


@dataclass(frozen=True)
class NominalSteps(Scaffold):
    def remember(self, at: Local) -> Tree:
        return at.memory - at.shared + (at.start - at.params) / (10 * at.lr)


@dataclass(frozen=True)
class ForgetsTheMeanSteps(FedNova):
    def absorb(self, server: Server, report: Report) -> Server:
        return FedAvg().absorb(server, replace(report, delta=report.delta / report.steps.clamp_min(1)))


@dataclass(frozen=True)
class DynByCohort(FedDyn):
    def absorb(self, server: Server, report: Report) -> Server:
        news = pool(report.news, report)
        extra = news / len(report.weight) - news / report.population
        return super().absorb(replace(server, moments=server.moments + extra), report)


@dataclass(frozen=True)
class WeightsOnly(QFedAvg):
    def absorb(self, server: Server, report: Report) -> Server:
        return FedAvg().absorb(server, replace(report, weight=report.weight * report.loss[:, 0] ** self.q))


@dataclass(frozen=True)
class NeverProjected(AFL):
    def absorb(self, server: Server, report: Report) -> Server:
        return replace(super().absorb(server, report), shared=server.shared)


PLANTED = (
    Ours("fedavg", lambda o, lr: UniformMean(), "a uniform mean"),
    Ours("fedprox", lambda o, lr: UnsquaredProx(mu=o["mu"]), "a norm that is not squared"),
    Ours("fedprox", lambda o, lr: TwiceTheProx(mu=o["mu"]), "mu for mu/2"),
    Ours("scaffold", lambda o, lr: SignFlipped(), "a sign"),
    Ours("scaffold", lambda o, lr: DividedByCohort(), "c divided by the cohort"),
    Ours("scaffold", lambda o, lr: StartsAtTheWeights(), "c that starts as weights"),
    Ours("scaffold", lambda o, lr: NeverRemembered(), "controls that never come back"),
    Ours("scaffold", lambda o, lr: OnlyTheLast(), "only the last client"),
    Ours("scaffold", lambda o, lr: NominalSteps(), "nominal steps"),
    Ours("fedavgm", lambda o, lr: FedAvg(server=Sgd(o["server_lr"], o["momentum"], dampening=o["momentum"])),
         "a damped mean"),
    Ours("fednova", lambda o, lr: ForgetsTheMeanSteps(), "no tau_eff"),
    Ours("feddyn", lambda o, lr: DynByCohort(alpha=o["alpha"]), "h divided by the cohort"),
    Ours("qfedavg", lambda o, lr: WeightsOnly(q=o["q"]), "weights without the bound"),
    Ours("afl", lambda o, lr: NeverProjected(rate=o["rate"]), "no projection"),
    *PLANTED_SERVER,
    *PLANTED_OWN,
)

__all__ = ["PLANTED"]
