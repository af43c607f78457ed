"""Bugs planted into models of one's own and into the aggregation of adapters."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ..algorithms import Ditto, FedAvg, FedPer, FineTuned, PFedMe
from ..algorithms.aggregates import FFA, FedEx, FLoRA, Mean, RoLoRA, Svd
from ..optimizers import Sgd
from ..tree import Tree
from ..values import Local, Report, Server
from .ours import Ours


@dataclass(frozen=True)
class Towards(FedAvg):
    """The training of v_k, drawn to where v_k itself was."""

    lam: float = 0.1

    def start(self, params: Tree, memory: Tree) -> Tree:
        return memory

    def correct(self, grad: Tree, at: Local) -> Tree:
        return grad + self.lam * (at.params - at.memory)

    def remember(self, at: Local) -> Tree:
        return at.params


@dataclass(frozen=True)
class PullsToItself(Ditto):
    def aside(self) -> FedAvg:
        return Towards(lam=self.lam)


@dataclass(frozen=True)
class WearsTheShared(Ditto):
    def wear(self, params: Tree, memory: Tree) -> Tree:
        return params


@dataclass(frozen=True)
class NeverTuned(FineTuned):
    def remember(self, at: Local) -> Tree:
        return at.start


@dataclass(frozen=True)
class SharesTheta(PFedMe):
    def finish(self, at: Local) -> Tree:
        return at.params


@dataclass(frozen=True)
class PlainMeans(Mean):
    def combine(self, server: Server, report: Report) -> Tree:
        return super().combine(server, replace(report, weight=(report.weight > 0).to(report.weight)))


@dataclass(frozen=True)
class TrainsBoth(FFA):
    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True)
class BeginsWithA(RoLoRA):
    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]:
        return super().frozen(leaves, round + 1)


@dataclass(frozen=True)
class ForgetsTheResidue(FedEx):
    def rebase(self, before: Server, after: Server, report: Report) -> Server:
        return after


@dataclass(frozen=True)
class UnweightedMeans(FedEx):  # FedLLM-Factory: weighted products, plain means
    def combine(self, server: Server, report: Report) -> Tree:
        return PlainMeans().combine(server, report)

    def rebase(self, before: Server, after: Server, report: Report) -> Server:
        weighted = replace(after, params=before.params + Mean().combine(before, report))
        return replace(super().rebase(before, weighted, report), params=after.params)


@dataclass(frozen=True)
class Transposed(FedEx):  # FedEx-LoRA's own code on nn.Linear: only square modules let it pass
    def rebase(self, before: Server, after: Server, report: Report) -> Server:
        right = super().rebase(before, after, report)
        return replace(right, base=right.base.map(lambda leaf: leaf.mT.reshape(leaf.shape)))


@dataclass(frozen=True)
class WeightsBothFactors(FLoRA):
    def rebase(self, before: Server, after: Server, report: Report) -> Server:
        share = report.weight / report.weight.sum()
        start = before.params.rows(report.group)
        return super().rebase(before, after, replace(report, delta=(start + report.delta) * share - start))


@dataclass(frozen=True)
class CutsEachFactor(Svd):  # the means of the factors, as if they were the factors of the mean
    def combine(self, server: Server, report: Report) -> Tree:
        return Mean().combine(server, report)


PLANTED_OWN = (
    Ours("ditto", lambda o, lr: PullsToItself(lam=o["lam"]), "an anchor of one's own"),
    Ours("ditto", lambda o, lr: WearsTheShared(lam=o["lam"]), "the shared model is worn"),
    Ours("fine_tuned", lambda o, lr: NeverTuned(), "not tuned"),
    Ours("pfedme", lambda o, lr: SharesTheta(Sgd(o["beta"]), lam=o["lam"], eta=o["eta"], inner=int(o["inner"])),
         "theta is shared"),
    Ours("pfedme", lambda o, lr: PFedMe(lam=o["lam"], eta=o["eta"], inner=int(o["inner"])), "no beta"),
    Ours("lora", lambda o, lr: FedAvg(aggregate=PlainMeans()), "plain means"),
    Ours("ffa", lambda o, lr: FedAvg(aggregate=TrainsBoth()), "A is trained"),
    Ours("rolora", lambda o, lr: FedAvg(aggregate=BeginsWithA()), "A first"),
    Ours("fedex", lambda o, lr: FedAvg(aggregate=ForgetsTheResidue()), "no residue"),
    Ours("fedex", lambda o, lr: FedAvg(aggregate=UnweightedMeans()), "weights of the residue only"),
    Ours("fedex", lambda o, lr: FedAvg(aggregate=Transposed()), "a transposed residue"),
    Ours("flora", lambda o, lr: FedAvg(aggregate=WeightsBothFactors()), "weights on both factors"),
    Ours("svd", lambda o, lr: FedAvg(aggregate=CutsEachFactor()), "means of the factors"),
    Ours("fedper", lambda o, lr: FedPer(own=()), "B is shared"),
)

__all__ = ["PLANTED_OWN"]
