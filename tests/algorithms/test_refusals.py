"""Test which combinations of algorithms, aggregators and optimizers are refused, which have warnings, and that all others train."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedrift import algorithms
from fedrift.algorithms import (
    AFL,
    MOON,
    Centralized,
    Ditto,
    FedAvg,
    FedAvgFineTuning,
    FedDyn,
    FedNova,
    FedPer,
    FedProx,
    FedSGD,
    LocalOnly,
    PFedMe,
    QFedAvg,
    Scaffold,
    aggregators,
)
from fedrift.algorithms.aggregators import DPMean, FedEx, FFALoRA, FlexLoRA, FLoRA, Krum, Median, NormClippedMean, RoLoRA, TrimmedMean
from fedrift.algorithms.aggregators.base import Aggregator
from fedrift.algorithms.fair import mixture_weight as share_of
from fedrift.core.optimizers import Adagrad, Adam, AdamW, Sgd, SwaSgd, Yogi
from fedrift.core.tree import Tree
from tests import quadratics
from tests.laws.federation import data, loss, params, train
from tests.quadratics import Q2, path

LORA, PLAIN = ["m.A", "m.B"], ["h.7.weight"]
CONTROLS = {"Scaffold", "ScaffoldWeighted", "FedDyn"}
REWEIGHTS_CLIENTS = {"AFL", "FedNova", "QFedAvg"}
ONE_CLIENT_PER_MODEL = {"Centralized", "LocalOnly"}
WITH_SERVER_OPTIMIZER = {"FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"}  # FedAvg with another server optimizer
MOMENTUM = WITH_SERVER_OPTIMIZER - {"FedAdagrad"}  # those whose b1 is above 0
RESCALES = {"FedDyn", "FedNova", "FedSGD", "QFedAvg"}
PERSONALIZED = {"Ditto", "FedPer", "FedAvgFineTuning", "PFedMe", "MOON"}  # they keep models in their client state, not gradients

REFUSED = {  # aggregator: algorithms that it refuses for clients with adapters
    "Mean": set(),
    "NormClippedMean": set(),
    "FFALoRA": {"FedPer"},
    "RoLoRA": CONTROLS | MOMENTUM,
    "Median": REWEIGHTS_CLIENTS | ONE_CLIENT_PER_MODEL,
    "TrimmedMean": REWEIGHTS_CLIENTS | ONE_CLIENT_PER_MODEL,
    "Krum": REWEIGHTS_CLIENTS | ONE_CLIENT_PER_MODEL,
    "DPMean": REWEIGHTS_CLIENTS | ONE_CLIENT_PER_MODEL | CONTROLS,
    "FedEx": RESCALES | PERSONALIZED | WITH_SERVER_OPTIMIZER,
    "FLoRA": RESCALES | PERSONALIZED | CONTROLS | WITH_SERVER_OPTIMIZER,
    "FlexLoRA": RESCALES | PERSONALIZED | CONTROLS | WITH_SERVER_OPTIMIZER,
}
SERVERS = [
    Sgd(1.0, momentum=0.5),
    Sgd(1.0, weight_decay=0.01),
    Adam(0.05),
    Yogi(0.05),
    Adagrad(0.05),
    SwaSgd(1.0, period=2, num_averaged=2),
]


def make_algorithm(name: str, aggregator: Aggregator) -> FedAvg:
    algorithm = replace(getattr(algorithms, name)(), aggregator=aggregator)
    # a momentum of 0.9 needs more than four rounds
    return replace(algorithm, server_optimizer=Sgd(0.3, momentum=0.3)) if name == "FedAvgM" else algorithm


def make_aggregator(name: str) -> Aggregator:
    """Return an aggregator; Krum selects four of five clients, because the update of a single client would not lower the mean loss."""
    return {"DPMean": DPMean(noise_multiplier=1e-4), "Krum": Krum(num_selected=4)}.get(name) or getattr(aggregators, name)()


def learns(algorithm: FedAvg, **options) -> bool:
    """Return whether the losses of the clients' models are lower after four rounds."""

    def mean(state) -> float:
        deal = data()
        worn = algorithm.personalized_params(state.server.params.take(state.cluster_ids), state.client_states.gather_all())
        under = state.server.merged_base.take(state.cluster_ids)
        batch = {"x": deal.x[:, 0], "y": deal.y[:, 0], "w": deal.w.expand(len(deal.x), -1, -1)}
        return loss(Tree({**worn, **under}), batch).mean().item()

    run = train(algorithm, data(), until=4, **options)
    return mean(run[-1].after) < mean(run[0].before)


def test_every_aggregator_is_in_the_table():
    assert REFUSED.keys() == set(aggregators.__all__)


@pytest.mark.parametrize("rule", aggregators.__all__)
@pytest.mark.parametrize("name", algorithms.__all__)
def test_an_algorithm_and_an_aggregator_learn_or_are_refused(name, rule):
    algorithm = make_algorithm(name, make_aggregator(rule))
    reasons = algorithm.incompatibilities(Sgd(0.05), "uniform", LORA)
    assert bool(reasons) == (name in REFUSED[rule])
    if not reasons and name != "Pretrained":
        assert learns(algorithm)


@pytest.mark.parametrize("server", SERVERS, ids=repr)
@pytest.mark.parametrize("name", sorted({*algorithms.__all__} - WITH_SERVER_OPTIMIZER))
def test_an_algorithm_and_a_server_optimizer_learn_or_are_refused(name, server):
    if name == "FedSGD" and isinstance(server, Sgd | SwaSgd):
        server = replace(server, lr=0.05)  # its step is a single gradient instead of the result of local training
    algorithm = replace(getattr(algorithms, name)(), server_optimizer=server)
    reasons = algorithm.incompatibilities(Sgd(0.05), "uniform", LORA)
    assert bool(reasons) == (name == "FedDyn")
    if not reasons and name != "Pretrained":
        assert learns(algorithm)


@pytest.mark.parametrize("name", algorithms.__all__)
def test_an_algorithm_and_adamw_clients_learn_or_are_refused(name):
    algorithm = getattr(algorithms, name)()
    reasons = algorithm.incompatibilities(AdamW(), "uniform", LORA)
    assert bool(reasons) == (name in {"FedDyn", "FedNova", "QFedAvg"})
    if not reasons and name != "Pretrained":
        assert learns(algorithm, optimizer=AdamW(0.05))


@pytest.mark.parametrize(
    ("algorithm", "optimizer", "leaves", "reason"),
    [
        (FedAvg(aggregator=FedEx()), Sgd(), PLAIN, "FedEx needs low-rank adapters"),
        (FedAvg(aggregator=FFALoRA()), Sgd(), PLAIN, "FFALoRA needs low-rank adapters"),
        (FedAvg(aggregator=RoLoRA()), Sgd(), PLAIN, "RoLoRA needs low-rank adapters"),
        (FedAvg(aggregator=FLoRA()), Sgd(), PLAIN, "FLoRA needs low-rank adapters"),
        (FedAvg(aggregator=FlexLoRA()), Sgd(), PLAIN, "FlexLoRA needs low-rank adapters"),
        (FedAvg(aggregator=FedEx(), server_optimizer=Adam()), Sgd(), LORA, "another server optimizer would change the result"),
        (FedNova(aggregator=FLoRA()), Sgd(), LORA, "FedNova rescales the updates of the factors or moves beyond them"),
        (Ditto(aggregator=FedEx()), Sgd(), LORA, "the clients of Ditto use personalized adapters"),
        (Scaffold(aggregator=FLoRA()), Sgd(), LORA, "changes the basis of A and B in every round, but the client states of Scaffold"),
        (MOON(aggregator=FlexLoRA()), Sgd(), LORA, "changes the basis of A and B in every round, but the client states of MOON"),
        (MOON(aggregator=FedEx()), Sgd(), LORA, "the base weights under it change"),
        (
            Scaffold(aggregator=RoLoRA()),
            Sgd(),
            LORA,
            "the client states of Scaffold for a factor would be from a round in which it was frozen",
        ),
        (FedAvg(aggregator=RoLoRA(), server_optimizer=Sgd(1.0, momentum=0.9)), Sgd(), LORA, "the momentum of"),
        (FedAvg(aggregator=RoLoRA(), server_optimizer=Adam()), Sgd(), LORA, "the momentum of"),
        (FedAvg(aggregator=RoLoRA(), server_optimizer=SwaSgd()), Sgd(), LORA, "the average of"),
        (FedAvg(aggregator=RoLoRA(), server_optimizer=Sgd(1.0, weight_decay=0.1)), Sgd(), LORA, "the weight decay of"),
        (FedAvg(aggregator=FFALoRA(), server_optimizer=Sgd(1.0, weight_decay=0.1)), Sgd(), LORA, "the weight decay of"),
        (FedAvg(aggregator=FFALoRA(FedEx())), Sgd(), LORA, "FFALoRA aggregates only B, but FedEx needs both B and A"),
        (FedAvg(aggregator=FFALoRA(FLoRA())), Sgd(), LORA, "FFALoRA aggregates only B, but FLoRA needs both B and A"),
        (FedAvg(aggregator=FFALoRA(RoLoRA())), Sgd(), LORA, "FFALoRA aggregates only B, but RoLoRA needs both B and A"),
        (
            AFL(aggregator=FFALoRA(Krum())),
            Sgd(),
            LORA,
            "AFL computes client weights from the reports of all clients, but Krum ignores weights",
        ),
        (QFedAvg(aggregator=Median()), Sgd(), LORA, "QFedAvg computes client weights from the reports of all clients, but Median"),
        (FedNova(aggregator=DPMean()), Sgd(), LORA, "FedNova computes client weights from the reports of all clients, but DPMean"),
        (Centralized(aggregator=DPMean()), Sgd(), LORA, "Centralized has only one client per model, but DPMean needs several"),
        (LocalOnly(aggregator=TrimmedMean()), Sgd(), LORA, "LocalOnly has only one client per model"),
        (Scaffold(aggregator=DPMean()), Sgd(), LORA, "no privacy guarantee would hold"),
        (FedDyn(aggregator=FFALoRA(DPMean())), Sgd(), LORA, "no privacy guarantee would hold"),
        (FedDyn(), AdamW(), LORA, "the correction does not converge"),
        (FedDyn(server_optimizer=Sgd(1.0, momentum=0.9)), Sgd(), LORA, "FedDyn defines its own server step"),
        (FedNova(), AdamW(), LORA, "is not defined for an adaptive client optimizer"),
        (FedNova(), Sgd(0.1, momentum=0.9), LORA, "use FedNova(momentum=0.9)"),
        (QFedAvg(), AdamW(), LORA, "which is wrong for an adaptive optimizer"),
        (FedPer(), Sgd(), PLAIN, "FedPer must share some trained parameters and keep others personal"),
        (FedPer(aggregator=FFALoRA()), Sgd(), LORA, "does not split the trained parameters m.B"),
        (FedPer(personal_params=("*.A",), aggregator=FFALoRA()), Sgd(), LORA, "does not split the trained parameters m.B"),
        (PFedMe(personal_lr=0.5, lambda_=4.0), Sgd(), LORA, "so that the distance does not decrease"),
    ],
    ids=lambda value: f"{type(value).__name__}-{type(value.aggregator).__name__}" if isinstance(value, FedAvg) else "",
)
def test_a_refusal_states_its_reason(algorithm, optimizer, leaves, reason):
    assert any(reason in said for said in algorithm.incompatibilities(optimizer, "uniform", leaves))


@pytest.mark.parametrize(
    ("algorithm", "optimizer", "weighting", "words"),
    [
        (Scaffold(), AdamW(), "uniform", "differs from the optimum by O(lr)"),
        (Scaffold(), Sgd(), "tokens", "derived for a uniform mean"),
        (Scaffold(aggregator=Krum()), Sgd(), "uniform", "are averaged without protection"),
        (FedDyn(aggregator=FFALoRA(Median())), Sgd(), "uniform", "are averaged without protection"),
        (FedDyn(), Sgd(), "tokens", "is not used"),
        (FedProx(aggregator=TrimmedMean()), Sgd(), "tokens", "TrimmedMean ignores client weights"),
        (FedAvg(aggregator=FFALoRA(DPMean())), Sgd(), "examples", "DPMean ignores client weights"),
        (FedAvg(aggregator=DPMean(noise_multiplier=0.0)), Sgd(), "uniform", "gives no privacy guarantee"),
        (Ditto(aggregator=DPMean()), Sgd(), "uniform", "their metrics are not protected"),
        (FedProx(), AdamW(), "uniform", "prox_step"),
        (FedProx(), Adam(), "uniform", "under Adam:"),
        (Scaffold(), Yogi(), "uniform", "under Yogi:"),
        (FedProx(mu=10.0), Sgd(0.2), "uniform", "the local models diverge"),
        (Ditto(), AdamW(), "uniform", "normalized"),
        (PFedMe(), AdamW(), "uniform", "a different problem"),
        (AFL(), Sgd(), "uniform", "needs all clients in every round"),
        (FedSGD(), Sgd(), "uniform", "the client optimizer"),
    ],
)
def test_unsound_settings_have_warnings(algorithm, optimizer, weighting, words):
    assert any(words in said for said in algorithm.warnings(optimizer, weighting))


@pytest.mark.parametrize("name", sorted(set(algorithms.__all__) - {"AFL", "FedSGD"}))
def test_sound_settings_have_no_warnings(name):
    assert getattr(algorithms, name)().warnings(Sgd(0.1), "uniform") == []


@pytest.mark.parametrize(
    ("rule", "few", "enough"),
    [
        (Krum(num_byzantine=1), 4, 5),
        (Krum(num_byzantine=2), 6, 7),
        (Median(), 2, 3),
        (TrimmedMean(0.2), 4, 5),
        (FFALoRA(Krum(num_byzantine=1)), 4, 5),
    ],
)
def test_a_cohort_too_small_for_its_aggregator_has_a_warning(rule, few, enough):
    assert rule.cohort_warnings(few)
    assert rule.cohort_warnings(enough) == []


def test_fedprox_diverges_if_its_proximal_step_is_too_large():
    """FedProx warns of this; the exact proximal step is stable for any mu."""
    said, safe = FedProx(mu=30.0), FedProx(mu=30.0, proximal="prox_step")
    assert said.warnings(Sgd(0.1), "uniform") and not safe.warnings(Sgd(0.1), "uniform")
    assert abs(path(quadratics.train(said, Q2(), until=5))[-1]) > 1e3
    assert abs(path(quadratics.train(safe, Q2(), until=5))[-1]) < 5


def test_pfedme_diverges_if_its_step_is_too_large():
    path_of = [path(quadratics.train(PFedMe(personal_lr=eta, lambda_=3.0, inner_steps=1), Q2(), until=5)) for eta in (1.0, 0.1)]
    assert abs(path_of[0][-1]) > 1e3 > 5 > abs(path_of[1][-1])


# Combinations that could train something else without notice.


@pytest.mark.parametrize(
    "algorithm", [FedPer(aggregator=DPMean()), FedPer(server_optimizer=Sgd(1.0, weight_decay=0.5))], ids=["noise", "decay"]
)
def test_the_server_does_not_change_personalized_leaves(algorithm):
    first = params()
    last = train(algorithm, data(), until=3)[-1].after.server.params
    assert torch.equal(last["m.B"], first["m.B"])
    assert not torch.equal(last["m.A"], first["m.A"])


def test_afl_with_fedex_gives_the_mean_of_products_with_the_weights_of_afl():
    base = torch.zeros(4, 3, dtype=torch.float64)
    for done in train(AFL(lambda_lr=0.5, aggregator=FedEx()), data(), until=4):
        share = share_of(done.before.client_states.gather_all(), done.before.server.broadcast.take(done.before.cluster_ids))[:, 0]
        ideal = base + torch.einsum("k,kor,kri->oi", share / share.sum(), done.client_params["m.B"], done.client_params["m.A"])
        after = done.after.server
        found = after.params["m.B"][0] @ after.params["m.A"][0] + after.merged_base["m.base"][0]
        assert torch.allclose(found, ideal, atol=1e-12)
        base = after.merged_base["m.base"][0]
    assert share.std() > 0.01  # the weights differ


def test_feddyn_with_the_median_keeps_h_as_the_mean_of_the_client_states():
    for done in train(FedDyn(aggregator=Median()), data(), until=4, cohort=3):
        assert torch.allclose(done.after.server.opt_state["h"][0], done.after.client_states.gather_all()["h"].mean(0), atol=1e-12)


def test_the_server_step_of_feddyn_is_not_clipped_with_the_updates():
    algorithm = FedDyn(aggregator=NormClippedMean(0.05))
    for done in train(algorithm, data(), until=3):
        mean = NormClippedMean(0.05).aggregate(done.before.server, replace(done.update, weight=torch.ones(5)))
        step = mean - done.after.server.opt_state / algorithm.alpha
        assert all(torch.allclose(done.after.server_delta[name], leaf, atol=1e-12) for name, leaf in step.items())


def test_scaffold_with_rolora_would_have_no_correction():
    """This is the reason of the refusal: the gradients of the trained factor were zero in the round before."""
    for done in train(Scaffold(aggregator=RoLoRA()), data(), until=4):
        trained = "m.B" if done.before.round % 2 == 0 else "m.A"
        assert (done.before.client_states.gather_all()[trained] == 0).all() and (done.update.delta[trained] != 0).any()


def test_feddyn_with_rolora_would_change_the_frozen_factor():
    done = train(FedDyn(aggregator=RoLoRA()), data(), until=2)[-1]
    assert (done.update.delta["m.B"] == 0).all() and (done.after.server_delta["m.B"] != 0).any()


def test_personalized_models_with_rolora_contain_the_trained_factors():
    run = train(FedAvgFineTuning(aggregator=RoLoRA()), data(), until=2)
    for name in LORA:
        assert torch.equal(run[-1].after.client_states.gather_all()[name], run[-1].client_params[name])
