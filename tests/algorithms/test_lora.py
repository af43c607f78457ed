"""Test the aggregation error of separate means of LoRA factors, and that each exact aggregator avoids it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fedrift.algorithms import FedAvg, FedDyn, FedNova, FedProx, Scaffold
from fedrift.algorithms.aggregators import DPMean, FedEx, FFALoRA, FlexLoRA, FLoRA, Mean, Median, RoLoRA
from fedrift.algorithms.aggregators.lora import truncate_rank
from fedrift.core.optimizers import Adam, AdamW, Sgd
from fedrift.core.tree import Tree
from fedrift.core.types import ClientStateStore, CohortUpdate, FederatedState, RoundResult, ServerState
from fedrift.probes.lora import aggregation_error
from tests.laws.federation import data, train

WEIGHT = (4.0, 1.0, 2.0, 3.0, 2.0)
SHARE = torch.tensor(WEIGHT, dtype=torch.float64) / sum(WEIGHT)


def mean_product(done: RoundResult) -> Tensor:
    """Return sum_k p_k B_k A_k, ``[O, I]``, computed without any optimization."""
    share = done.update.weight / done.update.weight.sum()
    return torch.einsum("c,cor,cri->oi", share, done.client_params["m.B"], done.client_params["m.A"])


def product(server: ServerState) -> Tensor:
    """Return base + B A, the weight that the module uses, before scaling."""
    base = server.merged_base["m.base"][0] if server.merged_base else 0
    return base + server.params["m.B"][0] @ server.params["m.A"][0]


def make_round(ups: Tensor, downs: Tensor, share: Tensor, before: tuple[Tensor, Tensor] | None = None) -> RoundResult:
    """Return a round in which the clients ended with these factors, ``[C, O, R]`` and ``[C, R, I]``."""
    up, down = before or (ups[0] * 0, downs[0] * 0)
    start = Tree({"m.A": down.unsqueeze(0), "m.B": up.unsqueeze(0)})
    size = len(ups)
    none, group = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.long)
    delta = Tree({"m.A": downs - down, "m.B": ups - up})
    sound = torch.zeros(size, dtype=torch.bool)
    update = CohortUpdate(delta, Tree(), Tree(), Tree(), share, none, torch.zeros(size, 2), none, sound, group, torch.tensor([size]), none)
    state = FederatedState(0, ServerState(start, Tree(), Tree()), ClientStateStore.replicate(Tree(), size), group)
    return RoundResult(state, state, torch.arange(size), update)


def factors(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(size, 6, 2, generator=draw, dtype=torch.float64), torch.randn(size, 2, 5, generator=draw, dtype=torch.float64))


def test_the_error_is_the_covariance_of_the_factors():
    ups, downs = factors(5)
    done = make_round(ups, downs, SHARE)
    mean_up, mean_down = (SHARE.view(-1, 1, 1) * ups).sum(0), (SHARE.view(-1, 1, 1) * downs).sum(0)
    lost = mean_product(done) - mean_up @ mean_down
    said = aggregation_error(done)
    assert said["adapters.error"] == pytest.approx((lost.norm() / mean_product(done).norm()).item(), abs=1e-12)


def test_the_error_equals_the_value_computed_by_hand():
    """B1 = e1, A1 = e1^T, B2 = e2, A2 = e2^T, p = 1/2: E = [[1, -1], [-1, 1]] / 4, M = diag(1, 1) / 2."""
    eye = torch.eye(2, dtype=torch.float64)
    done = make_round(eye.unsqueeze(2), eye.unsqueeze(1), torch.full((2,), 0.5, dtype=torch.float64))
    assert aggregation_error(done)["adapters.error"] == pytest.approx(0.70710678, abs=1e-8)


def test_the_error_of_the_round_is_measured_against_its_change():
    ups, downs = factors(5)
    before = (ups[0] + 1, downs[0] - 1)
    done = make_round(ups, downs, SHARE, before)
    lost = aggregation_error(done)["adapters.error"] * mean_product(done).norm()
    assert aggregation_error(done)["adapters.error.update"] == pytest.approx(
        (lost / (mean_product(done) - before[0] @ before[1]).norm()).item(), abs=1e-12
    )


def test_factors_in_different_bases_have_a_large_error():
    up, down = (leaf[0] for leaf in factors(1))
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    half = torch.full((2,), 0.5, dtype=torch.float64)
    done = make_round(torch.stack([up, up @ turn]), torch.stack([down, turn.mT @ down]), half)
    assert torch.allclose(mean_product(done), up @ down)
    assert aggregation_error(done)["adapters.error"] > 0.1


@pytest.mark.parametrize("aggregate", [FFALoRA(), FFALoRA(Median()), RoLoRA()])
def test_with_one_frozen_factor_there_is_no_error(aggregate):
    for done in train(FedAvg(aggregator=aggregate), data(), until=4, optimizer=AdamW(0.05, weight_decay=0.1)):
        assert aggregation_error(done)["adapters.error"] < 1e-12
    assert aggregation_error(train(FedAvg(), data(), until=2, optimizer=AdamW(0.05))[-1])["adapters.error"] > 1e-3


def test_the_first_single_step_has_no_error_because_a_has_no_gradient_yet():
    assert aggregation_error(train(FedAvg(), data((1,) * 5), until=1)[0])["adapters.error"] < 1e-12


@pytest.mark.parametrize("aggregate", [FFALoRA(), FedEx(), FLoRA(), RoLoRA()])
@pytest.mark.parametrize("micro", [None, 2])
def test_exact_aggregators_give_the_mean_of_the_products_in_every_round(aggregate, micro):
    base = 0
    for done in train(FedAvg(aggregator=aggregate), data(weight=WEIGHT), until=4, cohort=4, clients_per_pass=micro):
        below = done.before.server.merged_base["m.base"][0] if done.before.server.merged_base else base
        assert torch.allclose(product(done.after.server), below + mean_product(done), atol=1e-12)


def test_separate_means_do_not_give_the_mean_of_the_products():
    done = train(FedAvg(), data(weight=WEIGHT), until=3)[-1]
    assert (product(done.after.server) - mean_product(done)).norm() > 1e-3 * mean_product(done).norm()


def test_the_error_of_flexlora_is_the_tail_of_the_singular_values():
    ups, downs = factors(5)
    done = make_round(ups, downs, SHARE)
    change = FlexLoRA().aggregate(done.before.server, done.update)
    got = (done.before.server.params["m.B"] + change["m.B"])[0] @ (done.before.server.params["m.A"] + change["m.A"])[0]
    tail = torch.linalg.svdvals(mean_product(done))[2:]
    assert (mean_product(done) - got).norm().item() == pytest.approx(tail.square().sum().sqrt().item(), abs=1e-10)
    u, s, vt = torch.linalg.svd(mean_product(done))
    assert torch.allclose(got, u[:, :2] * s[:2] @ vt[:2], atol=1e-10)


def test_a_direction_with_singular_value_zero_can_still_learn():
    up, down = truncate_rank(torch.zeros(6, 4, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64), 2)
    assert (up == 0).all()
    assert (down.norm(dim=1) > 0.9).all()


@pytest.mark.parametrize("aggregate", [Mean(), FFALoRA(), FedEx(), RoLoRA(), FlexLoRA()])
def test_the_aggregate_of_a_single_client_is_its_own_product(aggregate):
    done = train(FedAvg(aggregator=aggregate), data((3,), (1.0,)), until=1)[0]
    assert torch.allclose(product(done.after.server), mean_product(done), atol=1e-12)


def test_flora_draws_one_new_a_for_all_clients_in_every_round():
    done = train(FedAvg(aggregator=FLoRA()), data(), until=2)
    first, second = (d.after.server.params["m.A"] for d in done)
    assert not torch.allclose(first, second)
    assert all((d.after.server.params["m.B"] == 0).all() for d in done)
    assert all(d.after.server.params["m.A"].abs().max() <= 3**-0.5 for d in done)


def test_ffa_freezes_a_and_rolora_alternates():
    run = train(FedAvg(aggregator=FFALoRA()), data(), until=3, optimizer=AdamW(0.05, weight_decay=0.5))
    assert torch.equal(run[-1].after.server.params["m.A"], run[0].before.server.params["m.A"])
    for number, done in enumerate(train(FedAvg(aggregator=RoLoRA()), data(), until=4, optimizer=AdamW(0.05))):
        still, moved = ("m.A", "m.B") if number % 2 == 0 else ("m.B", "m.A")
        assert (done.update.delta[still] == 0).all()
        assert (done.update.delta[moved] != 0).any()


def test_ffa_under_privacy_adds_no_noise_to_the_frozen_factor():
    done = train(FedAvg(aggregator=FFALoRA(DPMean(clip_norm=0.1, noise_multiplier=1.0))), data(), until=2)[-1].after.server.params
    assert torch.equal(done["m.A"], train(FedAvg(), data(), until=1)[0].before.server.params["m.A"])
    assert (done["m.B"] != 0).all()


def test_scaffold_works_with_ffa():
    for done in train(Scaffold(aggregator=FFALoRA()), data(), until=4, cohort=3):
        assert (done.after.client_states.gather_all()["m.A"] == 0).all()
        assert torch.allclose(done.after.server.broadcast["m.B"][0], done.after.client_states.gather_all()["m.B"].mean(0), atol=1e-12)


LEAVES = ["m.A", "m.B", "h"]


@pytest.mark.parametrize(
    "algorithm",
    [
        Scaffold(aggregator=FLoRA()),
        Scaffold(aggregator=FlexLoRA()),
        FedDyn(aggregator=RoLoRA()),
        FedNova(aggregator=FedEx()),
        FedAvg(aggregator=FedEx(), server_optimizer=Adam()),
        FedAvg(aggregator=RoLoRA(), server_optimizer=Sgd(1.0, momentum=0.9)),
    ],
    ids=lambda a: f"{type(a).__name__}-{type(a.aggregator).__name__}",
)
def test_unsound_combinations_are_refused(algorithm):
    assert algorithm.incompatibilities(Sgd(0.1), "uniform", LEAVES)


@pytest.mark.parametrize(
    "algorithm",
    [
        Scaffold(aggregator=FFALoRA()),
        Scaffold(aggregator=FedEx()),
        FedProx(aggregator=FLoRA()),
        FedNova(aggregator=RoLoRA()),
        FedAvg(aggregator=FFALoRA(DPMean()), server_optimizer=Adam()),
    ],
)
def test_sound_combinations_are_accepted(algorithm):
    assert algorithm.incompatibilities(Sgd(0.1), "uniform", LEAVES) == []


@pytest.mark.parametrize("aggregate", [FFALoRA(), FedEx(), FLoRA(), RoLoRA(), FlexLoRA()])
def test_aggregators_of_adapters_require_adapters(aggregate):
    assert any("Lora" in said for said in FedAvg(aggregator=aggregate).incompatibilities(Sgd(0.1), "uniform", ["h.7.weight"]))


# Bugs of public implementations.


@dataclass(frozen=True)
class Transposed(FedEx):  # FedEx-LoRA's own code for nn.Linear; it only runs for square modules
    def after_server_step(self, before, after, update):
        right = super().after_server_step(before, after, update)
        return replace(right, merged_base=right.merged_base.map(lambda leaf: leaf.mT.reshape(leaf.shape)))


@dataclass(frozen=True)
class UnweightedMeans(FedEx):  # FedLLM-Factory: weighted products, unweighted means
    def aggregate(self, server, update):
        return super().aggregate(server, replace(update, weight=(update.weight > 0).double()))

    def after_server_step(self, before, after, update):
        weighted = replace(after, params=before.params + Mean().aggregate(before, update))
        return replace(super().after_server_step(before, weighted, update), params=after.params)


@dataclass(frozen=True)
class WeightsBothFactors(FLoRA):
    def after_server_step(self, before, after, update):
        share = update.weight / update.weight.sum()
        end = before.params.take(update.cluster_ids) + update.delta
        return super().after_server_step(before, after, replace(update, delta=end * share - before.params.take(update.cluster_ids)))


@dataclass(frozen=True)
class OmitsTheResidual(FedEx):
    def after_server_step(self, before, after, update):
        return after


@pytest.mark.parametrize("bug", [Transposed, UnweightedMeans, WeightsBothFactors, OmitsTheResidual])
def test_injected_bugs_are_detected(bug):
    done = train(FedAvg(aggregator=bug()), data(weight=WEIGHT), until=1)[0]
    assert not torch.allclose(product(done.after.server), mean_product(done), atol=1e-6)
