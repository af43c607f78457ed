"""Test MOON's contrastive loss and its gradient, and that padding has no effect on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from fedrift.algorithms import MOON, FedAvg
from fedrift.algorithms.aggregators import FedEx
from fedrift.core.errors import UserError
from fedrift.core.optimizers import Sgd
from fedrift.core.tree import Tree
from fedrift.core.types import LocalState
from fedrift.engine.loop import init_state
from fedrift.engine.run import run_experiment
from fedrift.models.stacked_model import mean_hidden_states
from fedrift.simulation import ClientSimulator
from fedrift.simulation.simulator import value_and_gradient
from tests.laws.federation import data, same, train
from tests.small_experiment import experiment, make_cache


def make_local_state(y: list[list[float]], w: list[list[float]], last: list[list[float]]) -> LocalState:
    """Return the state of a cohort whose parameters are its representations."""

    def tree(rows):
        return Tree(z=torch.tensor(rows, dtype=torch.float64))

    none = torch.zeros(len(y), dtype=torch.float64)
    return LocalState(tree(y), tree(w), Tree(), tree(last), Tree(), none, none, none, 0.1)


def represent(params: Tree):
    """Return the parameters as the representation of one sequence per client."""
    return params["z"].unsqueeze(1), torch.ones(len(params["z"]), 1, dtype=torch.bool)


def test_the_contrastive_loss_equals_the_equation_of_the_paper():
    at = make_local_state([[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [5.0, 0.0]])
    found = MOON(mu=2.0, temperature=0.5).contrastive_loss(at, represent)
    near, far = math.exp(1 / 0.5), math.exp(0 / 0.5)
    assert found[0].item() == pytest.approx(2 * -math.log(near / (near + far)))  # 2 * 0.126928
    assert found[1].item() == pytest.approx(2 * math.log(2))  # equally similar to both models


@dataclass(frozen=True)
class TrainsTheTarget(MOON):  # lets gradients flow through the targets: the value is right, the gradient is not
    def contrastive_loss(self, at, represent):
        z = represent(at.params)[0]
        drift = z - z.detach()
        near, far = (torch.cosine_similarity(z, represent(model)[0] + drift, dim=-1) for model in (at.global_params, at.client_state))
        return self.mu * torch.nn.functional.softplus((far - near) / self.temperature).mean(1)


@dataclass(frozen=True)
class Swapped(MOON):
    def contrastive_loss(self, at, represent):
        return super().contrastive_loss(replace(at, global_params=at.client_state, client_state=at.global_params), represent)


@dataclass(frozen=True)
class TimesTheTemperature(MOON):
    def contrastive_loss(self, at, represent):
        return super(TimesTheTemperature, replace(self, temperature=1 / self.temperature)).contrastive_loss(at, represent)


@pytest.mark.parametrize("injected", [TrainsTheTarget, Swapped, TimesTheTemperature])
def test_injected_bugs_are_detected_by_the_equation_or_its_gradient(injected, monkeypatch):
    monkeypatch.setitem(globals(), "MOON", injected)

    def asked():
        test_the_contrastive_loss_equals_the_equation_of_the_paper()
        test_the_gradient_equals_the_closed_form()

    with pytest.raises(AssertionError):
        asked()


def test_the_gradient_equals_the_closed_form():
    """d/dz softplus((sim(z, p) - sim(z, g)) / T) = sigmoid(.) / T (sim'(z, p) - sim'(z, g))."""
    at = make_local_state([[1.0, 2.0, -1.0]], [[0.5, 1.0, 1.0]], [[2.0, -1.0, 0.3]])
    z, g, p = (tree["z"][0] for tree in (at.params, at.global_params, at.client_state))
    leaf = at.params["z"].requires_grad_()
    (found,) = torch.autograd.grad(MOON(mu=3.0).contrastive_loss(at, represent).sum(), leaf)

    def cosine(other):
        return z @ other / (z.norm() * other.norm())

    def slope(other):
        return other / (z.norm() * other.norm()) - cosine(other) * z / z.norm() ** 2

    gap = (cosine(p) - cosine(g)) / 0.5
    assert torch.allclose(found[0], (3.0 / 0.5 * torch.sigmoid(gap) * (slope(p) - slope(g))).detach())


def test_steps_move_towards_the_received_model_and_away_from_the_previous_one():
    at = make_local_state([[1.0, 1.0]], [[1.0, 0.0]], [[0.0, 1.0]])
    leaf = at.params["z"].requires_grad_()
    (grad,) = torch.autograd.grad(MOON().contrastive_loss(at, represent).sum(), leaf)
    assert -grad[0, 0] > 0 > -grad[0, 1]


def test_missing_sequences_do_not_count():
    at = make_local_state([[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 3.0]])

    def half(params):
        z, counts = represent(params)
        return torch.cat([z, 0 * z], 1), torch.cat([counts, ~counts], 1)

    assert torch.equal(MOON().contrastive_loss(at, half), MOON().contrastive_loss(at, represent))


def test_mu_zero_is_fedavg_bit_for_bit():
    plain, moon = train(FedAvg(), data())[-1].after, train(MOON(mu=0.0), data())[-1].after
    assert same(replace(moon, client_states=plain.client_states), plain)
    assert MOON(mu=0.0).local_regularizer() is None  # without a second forward pass


def test_only_the_first_round_equals_that_of_fedavg():
    plain, moon = train(FedAvg(), data()), train(MOON(), data())
    assert all(torch.allclose(leaf, plain[0].after.server.params[name]) for name, leaf in moon[0].after.server.params.items())
    assert not torch.allclose(moon[2].after.server.params["m.B"], plain[2].after.server.params["m.B"])


def test_the_client_state_is_the_previous_model_of_the_client():
    done = train(MOON(), data(), cohort=2)[-1]
    local_models = done.before.server.params.take(done.before.cluster_ids[done.cohort]) + done.update.delta
    kept = done.after.client_states.gather(done.cohort)
    assert all(torch.allclose(leaf, local_models[name]) for name, leaf in kept.items())


@dataclass(frozen=True)
class HugeRegularizer(MOON):
    """MOON with a regularizer so large that it would be noticed in the recorded loss."""

    def contrastive_loss(self, at, represent):
        return 1e6 + super().contrastive_loss(at, represent)


def test_the_recorded_loss_is_that_of_the_task():
    plain, moon = train(MOON(), data()), train(HugeRegularizer(), data())
    assert torch.equal(plain[-1].update.loss, moon[-1].update.loss)
    params = Tree(x=torch.tensor([[3.0]]))
    loss, grad = value_and_gradient(
        lambda p, b: p["x"][:, 0] ** 2, params, {}, torch.arange(1), regularizer=lambda leaves, under: 5 * leaves["x"][:, 0]
    )
    assert (loss.item(), grad["x"].item()) == (9.0, 11.0)


def test_a_simulator_without_representations_is_refused():
    client_pool = ClientSimulator(1, lambda p, b: p["x"][:, 0], lambda r, c: [{}], Sgd(0.1))
    with pytest.raises(UserError, match="represent"):
        client_pool.train(init_state(MOON(), Tree(x=torch.ones(1, 1)), 1), MOON(), torch.tensor([0]))


def test_moon_is_refused_if_the_aggregator_changes_the_base_weights():
    (reason,) = MOON(aggregator=FedEx()).incompatibilities(Sgd(0.1), "tokens", ["m.A", "m.B"])
    assert "FedEx" in reason


def test_padding_is_not_part_of_a_representation():
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(2, 3, 5, 4, generator=draw)
    keep = torch.ones(2, 3, 5, dtype=torch.bool)
    keep[0, 1, 2:] = False
    keep[1, 2] = False
    wild = states.masked_fill(~keep.unsqueeze(3), 1e6)
    z, counts = mean_hidden_states(lambda params, tokens: wild, Tree(), {"tokens": torch.zeros(2, 3, 5), "loss_mask": keep})
    assert torch.allclose(z[0, 0], states[0, 0].mean(0))
    assert torch.allclose(z[0, 1], states[0, 1, :2].mean(0))
    assert counts.tolist() == [[True] * 3, [True, True, False]]
    assert not z[1, 2].any()


@pytest.mark.slow
def test_stacked_clients_of_a_language_model_train_as_single_clients(tmp_path):
    """The batches are padded, and one sequence is short."""
    asked = experiment(
        tmp_path,
        "algorithm.type=MOON",
        "training.local_epochs=1",
        "training.batch_size=3",
        "training.num_rounds=3",
        "training.participation_rate=1",
    )
    together = run_experiment(asked, make_cache(tmp_path, clients_per_pass=3)).trajectory()
    (tmp_path / "runs").rename(tmp_path / "before")
    alone = run_experiment(asked, make_cache(tmp_path, clients_per_pass=1)).trajectory()
    assert together.curve("loss")[-1] < together.curve("loss")[0]
    assert not (together.client_table("failed") == 1).any()
    assert alone.curve("loss") == pytest.approx(together.curve("loss"), abs=1e-5)
