"""Bugs planted into server rules and robust aggregates."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..algorithms import FedAvg, FedSGD
from ..algorithms.aggregates import Krum, Mean, Median, TrimmedMean
from ..algorithms.aggregates.krum import distances
from ..algorithms.aggregates.median import sorted_middle
from ..optimizers import Adagrad, Adam, Sgd, Yogi, named, part
from ..tree import Tree
from ..values import Report, Server
from .ours import Ours, betas


@dataclass(frozen=True)
class AveragesClients(FedSGD):
    def absorb(self, server: Server, report: Report) -> Server:
        return super().absorb(server, replace(report, weight=(report.weight > 0).to(report.weight)))


@dataclass(frozen=True)
class SquaresTheMomentum(Adam):  # OpenFedLLM
    def step(self, params: Tree, grad: Tree, moments: Tree) -> tuple[Tree, Tree]:
        first = self.betas[0] * part("m", moments) + (1 - self.betas[0]) * grad
        second = self.second(part("v", moments), first * first)
        moved = first.map(lambda m, v: m / (v.sqrt() + self.tau), second)
        return params - self.lr * moved, Tree({**named("m", first), **named("v", second)})


@dataclass(frozen=True)
class SquaresYogisMomentum(SquaresTheMomentum, Yogi):
    pass


@dataclass(frozen=True)
class ForgetsTheSum(Adagrad):
    def second(self, v: Tree, square: Tree) -> Tree:
        return square


@dataclass(frozen=True)
class TheLowerMiddle(Median):  # torch.median of an even number
    def combine(self, server: Server, report: Report) -> Tree:
        return report.delta.map(lambda leaf: leaf.median(0, keepdim=True).values)


@dataclass(frozen=True)
class DividedByAll(TrimmedMean):
    def combine(self, server: Server, report: Report) -> Tree:
        count = len(report.weight)
        cut = int(self.share * count)
        return sorted_middle(report, lambda count: int(self.share * count)) * ((count - 2 * cut) / count)


@dataclass(frozen=True)
class ScoresByTheFarthest(Krum):  # the sum over the n - liars - 2 farthest
    def combine(self, server: Server, report: Report) -> Tree:
        square = distances(report.delta)
        far = len(square) - self.liars - 2
        score = square.sort(1, descending=True).values[:, :far].sum(1)
        return kept(report, score.argsort(stable=True)[:self.keep])


@dataclass(frozen=True)
class KeepsTheWorst(Krum):
    def combine(self, server: Server, report: Report) -> Tree:
        square = distances(report.delta)
        near = len(square) - self.liars - 2
        score = square.sort(1).values[:, 1:1 + near].sum(1)
        return kept(report, score.argsort(descending=True, stable=True)[:self.keep])


def kept(report: Report, rows: Tensor) -> Tree:
    return report.delta.map(lambda leaf: leaf[rows].mean(0, keepdim=True))


PLANTED_SERVER = (
    Ours("fedsgd", lambda o, lr: AveragesClients(server=Sgd(lr)), "a uniform mean"),
    Ours("fedadam", lambda o, lr: FedAvg(server=SquaresTheMomentum(o["server_lr"], betas(o), o["tau"])), "momentum squared"),
    Ours("fedadam", lambda o, lr: FedAvg(server=Yogi(o["server_lr"], betas(o), o["tau"])), "Yogi's second moment"),
    Ours("fedyogi", lambda o, lr: FedAvg(server=Adam(o["server_lr"], betas(o), o["tau"])), "Adam's second moment"),
    Ours("fedyogi", lambda o, lr: FedAvg(server=SquaresYogisMomentum(o["server_lr"], betas(o), o["tau"])), "momentum squared"),
    Ours("fedadagrad", lambda o, lr: FedAvg(server=ForgetsTheSum(o["server_lr"], betas(o), o["tau"])), "no sum of squares"),
    Ours("median", lambda o, lr: FedAvg(aggregate=TheLowerMiddle()), "the lower of two for their mean"),
    Ours("median", lambda o, lr: FedAvg(aggregate=Mean()), "a mean"),
    Ours("trimmed_mean", lambda o, lr: FedAvg(aggregate=DividedByAll(o["share"])), "divided by all clients"),
    Ours("trimmed_mean", lambda o, lr: FedAvg(aggregate=TrimmedMean(o["share"] / 2)), "half of the share at each end"),
    Ours("krum", lambda o, lr: FedAvg(aggregate=ScoresByTheFarthest(int(o["liars"]), int(o["keep"]))), "scores by the farthest"),
    Ours("krum", lambda o, lr: FedAvg(aggregate=KeepsTheWorst(int(o["liars"]), int(o["keep"]))), "the highest score"),
    Ours("krum", lambda o, lr: FedAvg(aggregate=Krum(0, int(o["keep"]))), "nobody is taken for a liar"),
)

__all__ = ["PLANTED_SERVER"]
