"""Test the update rules of optimizers against the values of papers and against torch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from fedrift.algorithms import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from fedrift.core.optimizers import Adagrad, Adam, AdamW, Sgd, SwaSgd, Yogi
from fedrift.core.tree import Tree
from tests.quadratics import Q2, path, train

DELTAS = (1.0, 0.5, -0.25)
KNOWN = {
    Sgd(0.1, momentum=0.9): (0.1, 0.24, 0.341),
    Adagrad(0.1, betas=(0.9, 0.0)): (0.009990005, 0.0225007907, 0.0313091016),
    Adam(0.1): (0.0990050489, 0.2236048965, 0.3117476533),
    Yogi(0.1): (0.0990049999, 0.2231098153, 0.3105036776),
    SwaSgd(1.0, period=3, num_averaged=2): (1.0, 1.5, (1.5 + 1.25) / 2),
}


def walk(rule) -> list[float]:
    """Return the path of a server that starts at 0 with the mean updates ``DELTAS``."""
    x = Tree(x=torch.zeros(1, 1, dtype=torch.float64))
    moments, seen = rule.init(x), []
    for delta in DELTAS:
        x, moments = rule.step(x, Tree(x=torch.full((1, 1), -delta, dtype=torch.float64)), moments)
        seen.append(x["x"].item())
    return seen


@pytest.mark.parametrize("rule", KNOWN, ids=lambda rule: type(rule).__name__)
def test_server_optimizers_follow_the_known_path(rule):
    assert walk(rule) == pytest.approx(KNOWN[rule], abs=1e-9)


def test_fedavgm_without_momentum_is_fedavg_bit_for_bit():
    assert path(train(FedAvg(server_optimizer=Sgd(1.0, momentum=0.0)), Q2(), until=5)) == path(train(FedAvg(), Q2(), until=5))


@pytest.mark.parametrize(
    ("named", "rule"),
    [
        (FedAvgM(), Sgd(1.0, momentum=0.9)),
        (FedAdam(Adam(0.1)), Adam(0.1)),
        (FedYogi(Yogi(0.1)), Yogi(0.1)),
        (FedAdagrad(Adagrad(0.1)), Adagrad(0.1)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_algorithm_with_a_server_optimizer_equals_fedavg_with_it(named, rule):
    there = path(train(named, Q2(), until=5))
    assert there == path(train(FedAvg(server_optimizer=rule), Q2(), until=5)) != path(train(FedAvg(), Q2(), until=5))


def test_a_server_ends_with_the_mean_of_its_last_models_and_goes_on_from_it():
    """The plain reference keeps all models. The second model takes no step in round 3, as one without clients in the cohort."""
    rule, draws = SwaSgd(0.5, period=4, num_averaged=3), torch.Generator().manual_seed(0)
    grads = torch.randn(10, 2, 3, generator=draws)
    x, models = Tree(x=torch.zeros(2, 3)), [[torch.zeros(3)], [torch.zeros(3)]]
    moments = rule.init(x)
    for round, grad in enumerate(grads):
        is_active = torch.tensor([True, round != 3])
        after, next_moments = rule.step(x, Tree(x=grad), moments)
        x, moments = after.where(is_active, x), next_moments.where(is_active, moments)
        for row in torch.nonzero(is_active).flatten().tolist():
            path = models[row]
            path.append(path[-1] - 0.5 * grad[row])
            if (len(path) - 1) % 4 == 0:
                path[-1] = torch.stack(path[-3:]).mean(0)
            torch.testing.assert_close(x["x"][row], path[-1])
    assert x["x"].dtype == moments["mean.x"].dtype == torch.float32


@pytest.mark.parametrize("same", [SwaSgd(0.7, period=3, num_averaged=1), SwaSgd(0.7, period=6, num_averaged=6)])
def test_weight_averaging_is_plain_descent_before_the_first_mean_and_with_a_mean_of_one(same):
    assert path(train(FedAvg(server_optimizer=same), Q2(), until=5)) == path(train(FedAvg(server_optimizer=Sgd(0.7)), Q2(), until=5))


@dataclass(frozen=True)
class GoesOnFromEveryMean(SwaSgd):
    """Weight averaging that trains on from each mean, which is a decaying server step and no average of a path."""

    def step(self, params: Tree, grad: Tree, opt_state: Tree) -> tuple[Tree, Tree]:
        moved, state = super().step(params, grad, opt_state)
        return Tree({name: state[f"mean.{name}"] for name in moved}), state


def test_weight_averaging_that_goes_on_from_every_mean_is_found():
    assert walk(GoesOnFromEveryMean(1.0, 3, 3)) != pytest.approx(walk(SwaSgd(1.0, 3, 3)), abs=1e-9)


def test_the_defaults_are_those_of_the_papers():
    assert (Adam().betas, Adam().tau, Yogi().betas, Adagrad().betas[0]) == ((0.9, 0.99), 1e-3, (0.9, 0.99), 0.0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            Sgd(0.05, momentum=0.9, dampening=0.3, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.3, weight_decay=0.1),
        ),
        (AdamW(0.05, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1)),
    ],
)
def test_client_optimizers_equal_those_of_torch(ours, theirs):
    x = Tree(x=torch.linspace(-1, 2, 6, dtype=torch.float64).view(2, 3))
    leaf = x["x"].clone().requires_grad_()
    judge, moments = theirs([leaf]), ours.init(x)
    for step in range(6):
        leaf.grad = torch.sin(leaf.detach() * 3 + step)
        x, moments = ours.step(x, Tree(x=torch.sin(x["x"] * 3 + step)), moments)
        judge.step()
        if step == 0 and isinstance(ours, Sgd):
            leaf_state = judge.state[leaf]["momentum_buffer"]  # torch does not dampen its first step; fedrift always does
            leaf_state.mul_(1 - ours.dampening)
            with torch.no_grad():
                leaf.copy_(x["x"])
    assert torch.allclose(x["x"], leaf.detach(), atol=1e-12)


# Bugs of public implementations.


@dataclass(frozen=True)
class SquaresTheMomentum(Adam):
    def step(self, params, grad, moments):
        first = self.betas[0] * moments["m.x"] + (1 - self.betas[0]) * grad["x"]
        second = self.betas[1] * moments["v.x"] + (1 - self.betas[1]) * first**2
        return params - Tree(x=self.lr * first / (second.sqrt() + self.tau)), Tree({"m.x": first, "v.x": second})


@dataclass(frozen=True)
class StartsAtZero(Adam):
    def init(self, params):
        return super().init(params) * 0


@dataclass(frozen=True)
class CorrectsTheBias(Adam):
    def init(self, params):
        return Tree({**super().init(params), "t.x": params["x"] * 0})

    def step(self, params, grad, moments):
        t = int(moments["t.x"].max()) + 1
        _, new = super().step(params, grad, moments)
        first, second = new["m.x"] / (1 - self.betas[0] ** t), new["v.x"] / (1 - self.betas[1] ** t)
        return params - Tree(x=self.lr * first / (second.sqrt() + self.tau)), Tree({**new, "t.x": moments["t.x"] + 1})


@pytest.mark.parametrize("bug", [SquaresTheMomentum, StartsAtZero, CorrectsTheBias])
def test_injected_bugs_are_detected(bug):
    assert walk(bug(0.1)) != pytest.approx(KNOWN[Adam(0.1)], abs=1e-9)


def test_the_fused_step_of_adamw_equals_the_rule_and_changes_no_input():
    draw = torch.Generator().manual_seed(3)
    rule = AdamW(0.03, weight_decay=0.2)
    params = Tree({name: torch.randn(2, *shape, generator=draw, dtype=torch.float64) for name, shape in {"w": (3, 4), "b": (4,)}.items()})
    even, held = rule.init(params), rule.init(params)
    held["count"][1] = 5.0  # rows with different step counts use the plain rule; the first row is in both
    before = params.map(torch.clone)
    for _ in range(4):
        grad = params.map(
            lambda leaf: (
                torch.randn(leaf.shape, generator=draw, dtype=torch.float64).mT.contiguous().mT
                if leaf.ndim > 2
                else torch.randn(leaf.shape, generator=draw, dtype=torch.float64)
            )
        )
        (fused, even), (written, held) = rule.step(params, grad, even), rule.step(params, grad, held)
        assert all(torch.allclose(fused[name][0], written[name][0], rtol=1e-12, atol=1e-14) for name in params)
        assert any(not torch.allclose(fused[name][1], written[name][1], rtol=1e-4) for name in params)
    assert all(torch.equal(params[name], before[name]) for name in params)
