"""Algorithms with bugs of public implementations, which test whether the conformance problems detect them.

``python -m tests.mutants`` prints which problems detect which bug, and fails if a bug is not detected by any problem.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from fedrift.algorithms import AFL, Ditto, FedAvg, FedAvgFineTuning, FedDyn, FedNova, FedPer, FedProx, FedSGD, PFedMe, QFedAvg, Scaffold
from fedrift.algorithms.aggregators import FedEx, FFALoRA, FlexLoRA, FLoRA, Krum, Mean, Median, RoLoRA, TrimmedMean
from fedrift.algorithms.aggregators.mean import cluster_sum
from fedrift.algorithms.aggregators.robust import coordinate_trimmed_mean, pairwise_squared_distances
from fedrift.conformance.judge import Verdict, judge_subject
from fedrift.conformance.subjects import FedriftSubject, adam_betas
from fedrift.core.optimizers import Adagrad, Adam, Sgd, Yogi, select_prefix, with_prefix
from fedrift.core.tree import Tree
from fedrift.core.types import CohortUpdate, LocalState, ServerState

# Bugs in server update rules and robust aggregators.


@dataclass(frozen=True)
class UniformGradientMean(FedSGD):
    """FedSGD with a uniform instead of a weighted mean."""

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        return super().server_update(server, replace(update, weight=(update.weight > 0).to(update.weight)))


@dataclass(frozen=True)
class SquaresTheMomentum(Adam):
    """Adam that squares the momentum instead of the gradient, as in OpenFedLLM."""

    def step(self, params: Tree, grad: Tree, moments: Tree) -> tuple[Tree, Tree]:
        first = self.betas[0] * select_prefix("m", moments) + (1 - self.betas[0]) * grad
        second = self.second_moment(select_prefix("v", moments), first * first)
        moved = first.map(lambda m, v: m / (v.sqrt() + self.tau), second)
        return params - self.lr * moved, Tree({**with_prefix("m", first), **with_prefix("v", second)})


@dataclass(frozen=True)
class SquaresYogisMomentum(SquaresTheMomentum, Yogi):
    """Yogi that squares the momentum instead of the gradient."""


@dataclass(frozen=True)
class OmitsTheSum(Adagrad):
    """Adagrad that uses the last squared gradient instead of the sum."""

    def second_moment(self, v: Tree, square: Tree) -> Tree:
        return square


@dataclass(frozen=True)
class TheLowerMiddle(Median):
    """A median that takes the lower of the two middle values, as torch.median does."""

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        return update.delta.map(lambda leaf: leaf.median(0, keepdim=True).values)


@dataclass(frozen=True)
class DividedByAll(TrimmedMean):
    """A trimmed mean that divides by all clients instead of the remaining ones."""

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        count = len(update.weight)
        cut = int(self.trim_fraction * count)
        return coordinate_trimmed_mean(update, lambda count: int(self.trim_fraction * count)) * ((count - 2 * cut) / count)


@dataclass(frozen=True)
class ScoresByTheFarthest(Krum):
    """Krum whose score sums the n - f - 2 largest distances instead of the smallest."""

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        square = pairwise_squared_distances(update.delta)
        far = len(square) - self.num_byzantine - 2
        score = square.sort(1, descending=True).values[:, :far].sum(1)
        return mean_of_rows(update, score.argsort(stable=True)[: self.num_selected])


@dataclass(frozen=True)
class KeepsTheWorst(Krum):
    """Krum that selects the clients with the highest scores."""

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        square = pairwise_squared_distances(update.delta)
        near = len(square) - self.num_byzantine - 2
        score = square.sort(1).values[:, 1 : 1 + near].sum(1)
        return mean_of_rows(update, score.argsort(descending=True, stable=True)[: self.num_selected])


def mean_of_rows(update: CohortUpdate, rows: Tensor) -> Tree:
    """Return the mean update of some clients of a cohort."""
    return update.delta.map(lambda leaf: leaf[rows].mean(0, keepdim=True))


SERVER_MUTANTS = (
    FedriftSubject("fedsgd", lambda o, lr: UniformGradientMean(server_optimizer=Sgd(lr)), "a uniform mean"),
    FedriftSubject(
        "fedadam", lambda o, lr: FedAvg(server_optimizer=SquaresTheMomentum(o["server_lr"], adam_betas(o), o["tau"])), "momentum squared"
    ),
    FedriftSubject("fedadam", lambda o, lr: FedAvg(server_optimizer=Yogi(o["server_lr"], adam_betas(o), o["tau"])), "Yogi's second moment"),
    FedriftSubject("fedyogi", lambda o, lr: FedAvg(server_optimizer=Adam(o["server_lr"], adam_betas(o), o["tau"])), "Adam's second moment"),
    FedriftSubject(
        "fedyogi", lambda o, lr: FedAvg(server_optimizer=SquaresYogisMomentum(o["server_lr"], adam_betas(o), o["tau"])), "momentum squared"
    ),
    FedriftSubject(
        "fedadagrad", lambda o, lr: FedAvg(server_optimizer=OmitsTheSum(o["server_lr"], adam_betas(o), o["tau"])), "no sum of squares"
    ),
    FedriftSubject("median", lambda o, lr: FedAvg(aggregator=TheLowerMiddle()), "the lower of two middle values"),
    FedriftSubject("median", lambda o, lr: FedAvg(aggregator=Mean()), "a mean"),
    FedriftSubject("trimmed_mean", lambda o, lr: FedAvg(aggregator=DividedByAll(o["trim_fraction"])), "divided by all clients"),
    FedriftSubject("trimmed_mean", lambda o, lr: FedAvg(aggregator=TrimmedMean(o["trim_fraction"] / 2)), "half of the share at each end"),
    FedriftSubject(
        "krum",
        lambda o, lr: FedAvg(aggregator=ScoresByTheFarthest(int(o["num_byzantine"]), int(o["num_selected"]))),
        "scores by the farthest",
    ),
    FedriftSubject(
        "krum", lambda o, lr: FedAvg(aggregator=KeepsTheWorst(int(o["num_byzantine"]), int(o["num_selected"]))), "the highest score"
    ),
    FedriftSubject("krum", lambda o, lr: FedAvg(aggregator=Krum(0, int(o["num_selected"]))), "no client is assumed malicious"),
)


# Bugs in personalized models and in the aggregation of adapters.


@dataclass(frozen=True)
class ProximalToItself(FedAvg):
    """Training of v_k with a proximal term to its own previous value instead of the global model."""

    lambda_: float = 0.1

    def init_local(self, params: Tree, memory: Tree) -> Tree:
        return memory

    def transform_grad(self, grad: Tree, at: LocalState) -> Tree:
        return grad + self.lambda_ * (at.params - at.client_state)

    def update_client_state(self, at: LocalState) -> Tree:
        return at.params


@dataclass(frozen=True)
class AnchoredToItself(Ditto):
    """Ditto with the wrong proximal term."""

    def personal_algorithm(self) -> FedAvg:
        return ProximalToItself(lambda_=self.lambda_)


@dataclass(frozen=True)
class UsesTheSharedModel(Ditto):
    """Ditto that evaluates the global model instead of the personalized one."""

    def personalized_params(self, params: Tree, memory: Tree) -> Tree:
        return params


@dataclass(frozen=True)
class NeverFineTuned(FedAvgFineTuning):
    """FedAvg with fine-tuning whose clients keep the global model."""

    def update_client_state(self, at: LocalState) -> Tree:
        return at.global_params


@dataclass(frozen=True)
class SharesTheta(PFedMe):
    """pFedMe that sends the personalized model theta to the server."""

    def client_update(self, at: LocalState) -> Tree:
        return at.params


@dataclass(frozen=True)
class PlainMeans(Mean):
    """A mean without weights."""

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        return super().aggregate(server, replace(update, weight=(update.weight > 0).to(update.weight)))


@dataclass(frozen=True)
class TrainsBoth(FFALoRA):
    """FFA-LoRA that trains both factors."""

    def frozen_params(self, leaves: Collection[str], round: int) -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True)
class StartsWithA(RoLoRA):
    """RoLoRA that trains A in the first round."""

    def frozen_params(self, leaves: Collection[str], round: int) -> frozenset[str]:
        return super().frozen_params(leaves, round + 1)


@dataclass(frozen=True)
class OmitsTheResidual(FedEx):
    """FedEx-LoRA without the residual."""

    def after_server_step(self, before: ServerState, after: ServerState, update: CohortUpdate) -> ServerState:
        return after


@dataclass(frozen=True)
class UnweightedMeans(FedEx):
    """FedEx-LoRA with weighted products but unweighted means of the factors, as in FedLLM-Factory."""

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        return PlainMeans().aggregate(server, update)

    def after_server_step(self, before: ServerState, after: ServerState, update: CohortUpdate) -> ServerState:
        weighted = replace(after, params=before.params + Mean().aggregate(before, update))
        return replace(super().after_server_step(before, weighted, update), params=after.params)


@dataclass(frozen=True)
class Transposed(FedEx):
    """FedEx-LoRA with a transposed residual, as in the authors' code for nn.Linear; it only runs for square modules."""

    def after_server_step(self, before: ServerState, after: ServerState, update: CohortUpdate) -> ServerState:
        correct = super().after_server_step(before, after, update)
        return replace(correct, merged_base=correct.merged_base.map(lambda leaf: leaf.mT.reshape(leaf.shape)))


@dataclass(frozen=True)
class WeightsBothFactors(FLoRA):
    """FLoRA that applies the client weights to both factors."""

    def after_server_step(self, before: ServerState, after: ServerState, update: CohortUpdate) -> ServerState:
        share = update.weight / update.weight.sum()
        start = before.params.take(update.cluster_ids)
        return super().after_server_step(before, after, replace(update, delta=(start + update.delta) * share - start))


@dataclass(frozen=True)
class TruncatesEachFactor(FlexLoRA):
    """FlexLoRA that averages the factors instead of decomposing the mean of their products."""

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        return Mean().aggregate(server, update)


PERSONAL_MUTANTS = (
    FedriftSubject("ditto", lambda o, lr: AnchoredToItself(lambda_=o["lam"]), "a proximal term to its own previous value"),
    FedriftSubject("ditto", lambda o, lr: UsesTheSharedModel(lambda_=o["lam"]), "the global model is evaluated"),
    FedriftSubject("fine_tuned", lambda o, lr: NeverFineTuned(), "not fine-tuned"),
    FedriftSubject(
        "pfedme",
        lambda o, lr: SharesTheta(Sgd(o["beta"]), lambda_=o["lam"], personal_lr=o["eta"], inner_steps=int(o["inner"])),
        "theta is shared",
    ),
    FedriftSubject("pfedme", lambda o, lr: PFedMe(lambda_=o["lam"], personal_lr=o["eta"], inner_steps=int(o["inner"])), "no beta"),
    FedriftSubject("lora", lambda o, lr: FedAvg(aggregator=PlainMeans()), "plain means"),
    FedriftSubject("ffa", lambda o, lr: FedAvg(aggregator=TrainsBoth()), "A is trained"),
    FedriftSubject("rolora", lambda o, lr: FedAvg(aggregator=StartsWithA()), "A first"),
    FedriftSubject("fedex", lambda o, lr: FedAvg(aggregator=OmitsTheResidual()), "no residual"),
    FedriftSubject("fedex", lambda o, lr: FedAvg(aggregator=UnweightedMeans()), "weights only in the residual"),
    FedriftSubject("fedex", lambda o, lr: FedAvg(aggregator=Transposed()), "a transposed residual"),
    FedriftSubject("flora", lambda o, lr: FedAvg(aggregator=WeightsBothFactors()), "weights on both factors"),
    FedriftSubject("svd", lambda o, lr: FedAvg(aggregator=TruncatesEachFactor()), "means of the factors"),
    FedriftSubject("fedper", lambda o, lr: FedPer(personal_params=()), "B is shared"),
)


# Bugs in local training and averaging.


@dataclass(frozen=True)
class UniformMean(FedAvg):
    """FedAvg with a uniform instead of a weighted mean."""

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        return super().server_update(server, replace(update, weight=(update.weight > 0).to(update.weight)))


@dataclass(frozen=True)
class UnsquaredProx(FedProx):
    """FedProx with the gradient of mu/2 |y - w|, as in the docstring of Flower's FedProx."""

    def transform_grad(self, grad: Tree, at: LocalState) -> Tree:
        difference = at.params - at.global_params
        return grad + self.mu / 2 * (difference / difference.norm().clamp_min(1e-12))


@dataclass(frozen=True)
class TwiceTheProx(FedProx):
    """FedProx with mu instead of mu/2."""

    def transform_grad(self, grad: Tree, at: LocalState) -> Tree:
        return grad + 2 * self.mu * (at.params - at.global_params)


@dataclass(frozen=True)
class SignFlipped(Scaffold):
    """SCAFFOLD with the wrong sign of the correction."""

    def transform_grad(self, grad: Tree, at: LocalState) -> Tree:
        return grad + at.client_state - at.broadcast


@dataclass(frozen=True)
class DividedByCohort(Scaffold):
    """SCAFFOLD whose update of c is divided by the size of the cohort instead of the number of all clients."""

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        broadcast = server.broadcast + cluster_sum(update.state_delta, update) / len(update.weight)
        return replace(super().server_update(server, update), broadcast=broadcast)


@dataclass(frozen=True)
class ControlsStartAtWeights(Scaffold):
    """SCAFFOLD whose c starts at the model weights, as in Flower's baseline."""

    def init_broadcast(self, params: Tree) -> Tree:
        return params

    def init_client_state(self, params: Tree) -> Tree:
        return params.zeros_like()


@dataclass(frozen=True)
class ControlsNeverUpdated(Scaffold):
    """SCAFFOLD whose c_k are never updated, as in FL-bench since 2024-04."""

    def update_client_state(self, at: LocalState) -> Tree:
        return at.client_state


@dataclass(frozen=True)
class OnlyTheLastClient(Scaffold):
    """SCAFFOLD that uses only the update of the last client, as in FedML."""

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        weight = update.weight * 0
        weight[-1] = 1
        return super().server_update(server, replace(update, weight=weight))


@dataclass(frozen=True)
class NominalSteps(Scaffold):
    """SCAFFOLD that divides by a nominal number of steps instead of the steps taken."""

    def update_client_state(self, at: LocalState) -> Tree:
        return at.client_state - at.broadcast + (at.global_params - at.params) / (10 * at.lr)


@dataclass(frozen=True)
class OmitsTheMeanSteps(FedNova):
    """FedNova without the factor tau_eff."""

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        return FedAvg().server_update(server, replace(update, delta=update.delta / update.steps.clamp_min(1)))


@dataclass(frozen=True)
class DynDividedByCohort(FedDyn):
    """FedDyn whose update of h is divided by the size of the cohort instead of the number of all clients."""

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        state_change = cluster_sum(update.state_delta, update)
        extra = state_change / len(update.weight) - state_change / update.cluster_sizes
        return super().server_update(replace(server, opt_state=server.opt_state + extra), update)


@dataclass(frozen=True)
class WeightsOnly(QFedAvg):
    """q-FedAvg that weights updates by the losses but omits the bound of the Lipschitz constant."""

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        return FedAvg().server_update(server, replace(update, weight=update.weight * update.loss[:, 0] ** self.q))


@dataclass(frozen=True)
class NeverProjected(AFL):
    """AFL whose client weights lambda stay at their initial values."""

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        return replace(super().server_update(server, update), broadcast=server.broadcast)


MUTANTS = (
    FedriftSubject("fedavg", lambda o, lr: UniformMean(), "a uniform mean"),
    FedriftSubject("fedprox", lambda o, lr: UnsquaredProx(mu=o["mu"]), "a norm that is not squared"),
    FedriftSubject("fedprox", lambda o, lr: TwiceTheProx(mu=o["mu"]), "mu instead of mu/2"),
    FedriftSubject("scaffold", lambda o, lr: SignFlipped(), "a wrong sign"),
    FedriftSubject("scaffold", lambda o, lr: DividedByCohort(), "c divided by the cohort"),
    FedriftSubject("scaffold", lambda o, lr: ControlsStartAtWeights(), "c starts at the weights"),
    FedriftSubject("scaffold", lambda o, lr: ControlsNeverUpdated(), "c_k is never updated"),
    FedriftSubject("scaffold", lambda o, lr: OnlyTheLastClient(), "only the last client"),
    FedriftSubject("scaffold", lambda o, lr: NominalSteps(), "nominal steps"),
    FedriftSubject(
        "fedavgm", lambda o, lr: FedAvg(server_optimizer=Sgd(o["server_lr"], o["momentum"], dampening=o["momentum"])), "a damped mean"
    ),
    FedriftSubject("fednova", lambda o, lr: OmitsTheMeanSteps(), "no tau_eff"),
    FedriftSubject("feddyn", lambda o, lr: DynDividedByCohort(alpha=o["alpha"]), "h divided by the cohort"),
    FedriftSubject("qfedavg", lambda o, lr: WeightsOnly(q=o["q"]), "weights without the bound"),
    FedriftSubject("afl", lambda o, lr: NeverProjected(lambda_lr=o["lambda_lr"]), "no projection"),
    *SERVER_MUTANTS,
    *PERSONAL_MUTANTS,
)


def judge_mutants() -> list[tuple[FedriftSubject, list[Verdict]]]:
    """Return each buggy algorithm and the verdicts that detect its bug."""
    return [(bug, [verdict for verdict in judge_subject(bug) if verdict.holds is False]) for bug in MUTANTS]


def mutant_table(results: Iterable[tuple[FedriftSubject, list[Verdict]]]) -> str:
    """Return the detected bugs as a Markdown table."""
    rows = [f"| {bug.algorithm} | {bug.name} | {'; '.join(v.problem for v in verdicts) or '**nothing**'} |" for bug, verdicts in results]
    return "\n".join(["| algorithm | bug | detected by |", "|---|---|---|", *rows])


def main() -> int:
    """Print the table; return 1 if a bug is not detected."""
    results = judge_mutants()
    print(mutant_table(results))
    return int(not all(verdicts for _, verdicts in results))


__all__ = ["MUTANTS", "PERSONAL_MUTANTS", "SERVER_MUTANTS", "judge_mutants", "mutant_table"]


if __name__ == "__main__":
    sys.exit(main())
