"""Models of one's own: Ditto, pFedMe, FedPer and fine-tuning, by their closed forms."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from fedrift.algorithms import Ditto, FedAvg, FedPer, FineTuned, LocalOnly, PFedMe
from fedrift.algorithms.aggregates import FFA, FedEx, FLoRA
from fedrift.algorithms.fine_tuned import apart
from fedrift.optimizers import AdamW, Sgd
from fedrift.rounds import rounds
from fedrift.values import Round
from tests.laws import federation
from tests.quadratics import Q2, clients, fleet_of, path, train


def worn(done: Round, algorithm: FedAvg) -> list[float]:
    state = done.after
    return algorithm.wear(state.server.params.rows(state.group), state.memory.whole())["x"].flatten().tolist()


@pytest.mark.parametrize(("lam", "ends"), [(0.0, (0, 1)), (1.0, (0.4, 0.96)), (5.0, (2 / 3, 8 / 9))])
def test_ditto_ends_between_the_own_and_the_shared_optimum(lam, ends):
    """(a b + lam w) / (a + lam) at w = 0.8, where one step a round leads FedAvg."""
    done = train(Ditto(lam=lam), Q2(1), until=200)[-1]
    assert worn(done, Ditto(lam=lam)) == pytest.approx(ends, abs=1e-7)


@pytest.mark.parametrize("optimizer", [Sgd(0.05, momentum=0.5), AdamW(0.01)])
def test_dittos_shared_model_is_fedavgs_bit_for_bit(optimizer):
    group = clients((1, 4, 2), (0, 1, 3), (4, 7, 2))
    assert path(train(Ditto(lam=0.7), group, until=5, cohort=2, optimizer=optimizer)) == path(
        train(FedAvg(), group, until=5, cohort=2, optimizer=optimizer))


def test_ditto_without_a_pull_is_local_training():
    group = clients((1, 4, 2), (0, 1, 3), (4, 7, 2))
    ditto, local = train(Ditto(lam=0.0), group, until=4, cohort=2)[-1], train(LocalOnly(), group, until=4, cohort=2)[-1]
    assert worn(ditto, Ditto()) == local.after.server.params["x"].flatten().tolist()


def test_solved_pfedme_is_fedavg_on_the_moreau_envelopes():
    """With theta solved, y descends on curvature a lam / (a + lam), by eta, once every ``inner`` steps."""
    lam, eta = 2.0, 0.3
    envelopes = clients((1 * lam / (1 + lam), 4 * lam / (4 + lam)), (0, 1), 3)
    expected = train(FedAvg(), envelopes, until=4, optimizer=Sgd(eta))
    done = train(PFedMe(lam=lam, eta=eta, inner=60), Q2(180), until=4)
    assert path(done) == pytest.approx(path(expected), abs=1e-6)


def test_pfedme_by_hand_with_a_last_solve_cut_short():
    lam, eta, lr, w = 2.0, 0.3, 0.1, 5.0
    done = train(PFedMe(lam=lam, eta=eta, inner=2), clients((1, 4), (0, 1), (5, 4)), until=1)[0]
    for a, b, steps, moved, theta_found in zip((1, 4), (0, 1), (5, 4), done.report.delta["x"][:, 0].tolist(),
                                               done.after.memory.whole()["x"][:, 0].tolist(), strict=True):
        theta = y = w
        for step in range(1, steps + 1):
            theta -= lr * (a * (theta - b) + lam * (theta - y))
            if step % 2 == 0 or step == steps:
                y -= eta * lam * (y - theta)
        assert (moved, theta_found) == (pytest.approx(y - w, abs=1e-12), pytest.approx(theta, abs=1e-12))


def test_the_servers_beta_is_its_learning_rate():
    half, full = train(PFedMe(server=Sgd(0.5)), Q2(), until=1), train(PFedMe(), Q2(), until=1)
    assert path(half)[0] - 5 == pytest.approx((path(full)[0] - 5) / 2)


def test_fedper_keeps_the_leaves_it_names_and_shares_the_others():
    algorithm, first = FedPer(), federation.params()
    run = federation.train(algorithm, federation.data(), until=3, cohort=3)
    for done in run:
        assert torch.equal(done.after.server.params["m.B"], first["m.B"])
        assert (done.report.delta["m.B"] == 0).all()
        moved = not torch.equal(done.after.server.params["m.A"], done.before.server.params["m.A"])
        assert moved or done.before.round == 0  # while B is zero, A has no gradient
    last = run[-1].after
    worn = algorithm.wear(last.server.params.rows(last.group), last.memory.whole())
    assert torch.equal(worn["m.A"][0], worn["m.A"][1])
    assert not torch.equal(worn["m.B"][0], worn["m.B"][1])


def test_fedper_that_keeps_everything_is_local_only_and_nothing_is_fedavg():
    everything = train(FedPer(own=("*",)), Q2(), until=3)[-1]
    alone = train(LocalOnly(), Q2(), until=3)[-1].after.server.params["x"].flatten().tolist()
    assert worn(everything, FedPer(own=("*",))) == alone
    assert path(train(FedPer(own=()), Q2(), until=3)) == path(train(FedAvg(), Q2(), until=3))


def test_fedper_refuses_to_split_nothing():
    assert FedPer().refusals(Sgd(), "tokens", ["h.7.weight"])
    assert FedPer(own=("*",)).refusals(Sgd(), "tokens", ["m.A", "m.B"])


def test_fine_tuning_is_the_shared_model_after_local_steps():
    done = train(FineTuned(), Q2(), until=3)[-1]
    assert worn(done, FineTuned()) == done.local["x"].flatten().tolist()
    assert path([done]) == path(train(FedAvg(), Q2(), until=3)[-1:])


def test_after_the_last_round_everybody_goes_on_alone():
    """Ten steps each from the shared model: x <- b + (1 - lr a)^10 (x - b)."""
    shared = train(FedAvg(), Q2(), until=3)[-1].after
    x = shared.server.params["x"].item()
    done = next(rounds(apart(shared, LocalOnly()), fleet_of(Q2()), LocalOnly(), until=4, cohort=2, seed=0))
    assert done.after.server.params["x"].flatten().tolist() == pytest.approx(
        [0.9**10 * x, 1 + 0.6**10 * (x - 1)], abs=1e-12)
    assert torch.equal(shared.server.params["x"], torch.full((1, 1), x, dtype=torch.float64))


@pytest.mark.parametrize("algorithm", [Ditto(aggregate=FLoRA()), PFedMe(aggregate=FedEx()), FedPer(aggregate=FedEx())])
def test_own_models_under_moving_weights_are_refused(algorithm):
    assert algorithm.refusals(Sgd(), "tokens", ["m.A", "m.B"])


def test_ditto_and_ffa_go_together_and_a_stays_in_both_models():
    decaying = AdamW(0.05, weight_decay=0.1)
    done = federation.train(Ditto(aggregate=FFA()), federation.data(), until=2, optimizer=decaying)[-1]
    assert (done.after.memory.whole()["m.A"] == federation.params()["m.A"]).all()
    assert (done.after.memory.whole()["m.B"] != 0).all()


@dataclass(frozen=True)
class PullsToItself(Ditto):  # the anchor is v_k's own start, not the shared model
    def aside(self):
        @dataclass(frozen=True)
        class Wrong(type(super().aside())):
            def correct(self, grad, at):
                return grad + self.lam * (at.params - at.memory)
        return Wrong(lam=self.lam)


@dataclass(frozen=True)
class SharesTheta(PFedMe):
    def finish(self, at):
        return at.params


def test_planted_bugs_are_seen():
    assert worn(train(PullsToItself(lam=1.0), Q2(1), until=100)[-1], Ditto()) != pytest.approx((0.4, 0.96), abs=1e-4)
    right = path(train(PFedMe(inner=2), Q2(5), until=1))
    assert path(train(SharesTheta(inner=2), Q2(5), until=1)) != pytest.approx(right, abs=1e-4)
