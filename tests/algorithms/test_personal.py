"""Test the personalized models of Ditto, pFedMe, FedPer and fine-tuning against their closed forms."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from fedrift.algorithms import Ditto, FedAvg, FedAvgFineTuning, FedPer, LocalOnly, PFedMe
from fedrift.algorithms.aggregators import FedEx, FFALoRA, FLoRA
from fedrift.algorithms.personalized import split_per_client
from fedrift.core.optimizers import AdamW, Sgd
from fedrift.core.types import RoundResult
from fedrift.engine.loop import run_rounds
from tests.laws import federation
from tests.quadratics import Q2, clients, make_simulator, path, train


def personalized(done: RoundResult, algorithm: FedAvg) -> list[float]:
    state = done.after
    return (
        algorithm.personalized_params(state.server.params.take(state.cluster_ids), state.client_states.gather_all())["x"].flatten().tolist()
    )


@pytest.mark.parametrize(("lam", "ends"), [(0.0, (0, 1)), (1.0, (0.4, 0.96)), (5.0, (2 / 3, 8 / 9))])
def test_ditto_ends_between_the_optima_of_the_client_and_the_federation(lam, ends):
    """(a b + lam w) / (a + lam) at w = 0.8, which FedAvg reaches with one step per round."""
    done = train(Ditto(lambda_=lam), Q2(1), until=200)[-1]
    assert personalized(done, Ditto(lambda_=lam)) == pytest.approx(ends, abs=1e-7)


@pytest.mark.parametrize("optimizer", [Sgd(0.05, momentum=0.5), AdamW(0.01)])
def test_the_global_model_of_ditto_equals_that_of_fedavg_bit_for_bit(optimizer):
    group = clients((1, 4, 2), (0, 1, 3), (4, 7, 2))
    assert path(train(Ditto(lambda_=0.7), group, until=5, cohort=2, optimizer=optimizer)) == path(
        train(FedAvg(), group, until=5, cohort=2, optimizer=optimizer)
    )


def test_ditto_without_a_proximal_term_is_local_training():
    group = clients((1, 4, 2), (0, 1, 3), (4, 7, 2))
    ditto, local = train(Ditto(lambda_=0.0), group, until=4, cohort=2)[-1], train(LocalOnly(), group, until=4, cohort=2)[-1]
    assert personalized(ditto, Ditto()) == local.after.server.params["x"].flatten().tolist()


def test_solved_pfedme_is_fedavg_on_the_moreau_envelopes():
    """With exact theta, y descends on curvature a lam / (a + lam) with rate eta, once every ``inner`` steps."""
    lam, eta = 2.0, 0.3
    envelopes = clients((1 * lam / (1 + lam), 4 * lam / (4 + lam)), (0, 1), 3)
    expected = train(FedAvg(), envelopes, until=4, optimizer=Sgd(eta))
    done = train(PFedMe(lambda_=lam, personal_lr=eta, inner_steps=60), Q2(180), until=4)
    assert path(done) == pytest.approx(path(expected), abs=1e-6)


def test_pfedme_equals_a_computation_by_hand_with_a_shorter_last_solve():
    lam, eta, lr, w = 2.0, 0.3, 0.1, 5.0
    done = train(PFedMe(lambda_=lam, personal_lr=eta, inner_steps=2), clients((1, 4), (0, 1), (5, 4)), until=1)[0]
    for a, b, steps, moved, theta_found in zip(
        (1, 4),
        (0, 1),
        (5, 4),
        done.update.delta["x"][:, 0].tolist(),
        done.after.client_states.gather_all()["x"][:, 0].tolist(),
        strict=True,
    ):
        theta = y = w
        for step in range(1, steps + 1):
            theta -= lr * (a * (theta - b) + lam * (theta - y))
            if step % 2 == 0 or step == steps:
                y -= eta * lam * (y - theta)
        assert (moved, theta_found) == (pytest.approx(y - w, abs=1e-12), pytest.approx(theta, abs=1e-12))


def test_beta_of_pfedme_is_the_server_learning_rate():
    half, full = train(PFedMe(server_optimizer=Sgd(0.5)), Q2(), until=1), train(PFedMe(), Q2(), until=1)
    assert path(half)[0] - 5 == pytest.approx((path(full)[0] - 5) / 2)


def test_fedper_personalizes_the_named_leaves_and_shares_the_others():
    algorithm, first = FedPer(), federation.params()
    run = federation.train(algorithm, federation.data(), until=3, cohort=3)
    for done in run:
        assert torch.equal(done.after.server.params["m.B"], first["m.B"])
        assert (done.update.delta["m.B"] == 0).all()
        moved = not torch.equal(done.after.server.params["m.A"], done.before.server.params["m.A"])
        assert moved or done.before.round == 0  # while B is zero, A has no gradient
    last = run[-1].after
    personalized = algorithm.personalized_params(last.server.params.take(last.cluster_ids), last.client_states.gather_all())
    assert torch.equal(personalized["m.A"][0], personalized["m.A"][1])
    assert not torch.equal(personalized["m.B"][0], personalized["m.B"][1])


def test_fedper_with_all_leaves_is_local_only_and_with_none_is_fedavg():
    everything = train(FedPer(personal_params=("*",)), Q2(), until=3)[-1]
    alone = train(LocalOnly(), Q2(), until=3)[-1].after.server.params["x"].flatten().tolist()
    assert personalized(everything, FedPer(personal_params=("*",))) == alone
    assert path(train(FedPer(personal_params=()), Q2(), until=3)) == path(train(FedAvg(), Q2(), until=3))


def test_fedper_without_matching_leaves_is_refused():
    assert FedPer().incompatibilities(Sgd(), "tokens", ["h.7.weight"])
    assert FedPer(personal_params=("*",)).incompatibilities(Sgd(), "tokens", ["m.A", "m.B"])


def test_the_fine_tuned_model_is_the_global_model_after_local_steps():
    done = train(FedAvgFineTuning(), Q2(), until=3)[-1]
    assert personalized(done, FedAvgFineTuning()) == done.client_params["x"].flatten().tolist()
    assert path([done]) == path(train(FedAvg(), Q2(), until=3)[-1:])


def test_after_the_last_round_every_client_fine_tunes_alone():
    """Each client takes ten steps from the global model: x <- b + (1 - lr a)^10 (x - b)."""
    shared = train(FedAvg(), Q2(), until=3)[-1].after
    x = shared.server.params["x"].item()
    done = next(run_rounds(split_per_client(shared, LocalOnly()), make_simulator(Q2()), LocalOnly(), num_rounds=4, cohort_size=2, seed=0))
    assert done.after.server.params["x"].flatten().tolist() == pytest.approx([0.9**10 * x, 1 + 0.6**10 * (x - 1)], abs=1e-12)
    assert torch.equal(shared.server.params["x"], torch.full((1, 1), x, dtype=torch.float64))


@pytest.mark.parametrize("algorithm", [Ditto(aggregator=FLoRA()), PFedMe(aggregator=FedEx()), FedPer(aggregator=FedEx())])
def test_personalized_models_are_refused_if_the_aggregator_changes_the_base_weights(algorithm):
    assert algorithm.incompatibilities(Sgd(), "tokens", ["m.A", "m.B"])


def test_ditto_works_with_ffa_and_a_is_unchanged_in_both_models():
    decaying = AdamW(0.05, weight_decay=0.1)
    done = federation.train(Ditto(aggregator=FFALoRA()), federation.data(), until=2, optimizer=decaying)[-1]
    assert (done.after.client_states.gather_all()["m.A"] == federation.params()["m.A"]).all()
    assert (done.after.client_states.gather_all()["m.B"] != 0).all()


@dataclass(frozen=True)
class ProximalToItself(Ditto):  # the proximal term points to v_k's own start instead of the global model
    def personal_algorithm(self):
        @dataclass(frozen=True)
        class Wrong(type(super().personal_algorithm())):
            def transform_grad(self, grad, at):
                return grad + self.lambda_ * (at.params - at.client_state)

        return Wrong(lambda_=self.lambda_)


@dataclass(frozen=True)
class SharesTheta(PFedMe):
    def client_update(self, at):
        return at.params


def test_injected_bugs_are_detected():
    assert personalized(train(ProximalToItself(lambda_=1.0), Q2(1), until=100)[-1], Ditto()) != pytest.approx((0.4, 0.96), abs=1e-4)
    right = path(train(PFedMe(inner_steps=2), Q2(5), until=1))
    assert path(train(SharesTheta(inner_steps=2), Q2(5), until=1)) != pytest.approx(right, abs=1e-4)
