"""Test the loss barriers of known loss functions, and of adapters with known products."""

from __future__ import annotations

import pytest
import torch

from fedrift.core.tree import Tree
from fedrift.models.trainable import All
from fedrift.probes.context import Passages, select_passages
from fedrift.probes.mode_connectivity import LossBarriers, barrier_height, interpolate
from tests.probes.rounds import held_out, make_round, noise, stacked

BARRIER_TEXT = select_passages(held_out(), 40)


class Landscape:
    """A model whose loss per token is a function of one weight."""

    def __init__(self, loss) -> None:
        self.loss = loss

    def sequence_losses(self, params, tokens, keep):
        count = keep[:, :, 1:].sum(2)
        return self.loss(params["x"].double()).view(-1, 1) * count, count


def double_well(x: torch.Tensor) -> torch.Tensor:
    return (x**2 - 1) ** 2


def make_round_on_line(places: list[float], server: float):
    """Return a round with clients at these places on a line, and the new global model at ``server``."""
    model = stacked()
    done = make_round(model, [0.0] * len(places))
    state = done.before
    at = lambda *x: Tree(x=torch.tensor(x, dtype=torch.float64).view(-1, 1))  # noqa: E731
    put = lambda state, tree: type(state)(state.round, type(state.server)(tree, Tree(), Tree()), Tree(), state.cluster_ids)  # noqa: E731
    update = type(done.update)(**{**done.update.__dict__, "delta": at(*places)})
    return type(done)(put(state, at(0.0)), put(done.after, at(server)), done.cohort, update)


def probe(loss, points: int = 5) -> LossBarriers:
    return LossBarriers(Landscape(loss), BARRIER_TEXT, points)


def test_the_barrier_is_the_maximum_above_the_chord():
    assert barrier_height(torch.tensor([1.0, 1, 1])) == 0
    assert barrier_height(torch.tensor([0.0, 1, 0])) == 1
    assert barrier_height(torch.tensor([0.0, 1, 2])) == 0
    assert barrier_height(torch.tensor([0.0, 2, 2])) == 1
    assert barrier_height(torch.tensor([1.0, 0, 1])) == 0  # a minimum between the ends is not a barrier
    assert barrier_height(torch.tensor([0.0, torch.nan, 1])).isnan()


def test_identical_models_have_no_barrier():
    reading = probe(double_well)(make_round_on_line([1.0, 1.0, 1.0], 1.0))
    assert reading["barrier.server"].tolist() == [0, 0, 0] and reading["barrier.clients"] == 0


def test_the_minima_of_a_double_well_have_a_barrier_of_one():
    reading = probe(double_well)(make_round_on_line([-1.0, 1.0], 1.0))
    assert reading["barrier.server"].tolist() == pytest.approx([1, 0])
    assert reading["barrier.clients"] == pytest.approx(1)


def test_clients_are_compared_in_a_ring():
    """Clients are at -1, 1 and 1: two of three pairs have the maximum between them."""
    assert probe(double_well)(make_round_on_line([-1.0, 1.0, 1.0], 1.0))["barrier.clients"] == pytest.approx(2 / 3)


def test_a_convex_loss_has_no_barrier():
    reading = probe(lambda x: x**2)(make_round_on_line([-3.0, 1.0, 5.0], 0.5))
    assert reading["barrier.server"].tolist() == [0, 0, 0]


def test_more_points_find_a_maximum_beside_the_midpoint():
    hill = lambda x: torch.exp(-(((x - 0.1) / 0.03) ** 2))  # noqa: E731
    walk = make_round_on_line([0.0, 1.0], 1.0)
    assert probe(hill, points=3)(walk)["barrier.clients"] == pytest.approx(0, abs=1e-4)
    assert probe(hill, points=11)(walk)["barrier.clients"] == pytest.approx(1, abs=1e-3)


def test_a_client_that_failed_has_no_barrier():
    done = make_round_on_line([-1.0, 9.0, 1.0], 1.0)
    update = type(done.update)(**{**done.update.__dict__, "failed": torch.tensor([False, True, False])})
    reading = probe(double_well)(type(done)(done.before, done.after, done.cohort, update))
    assert reading["barrier.server"].isnan().tolist() == [False, True, False]
    assert reading["barrier.clients"] == pytest.approx(1)


@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_interpolation_of_adapters_mixes_their_products(x):
    draw = torch.Generator().manual_seed(0)
    one, two = (
        Tree(
            {
                "m.A": torch.randn(1, 2, 5, generator=draw),
                "m.B": torch.randn(1, 4, 2, generator=draw),
                "m.base": torch.randn(1, 4, 5, generator=draw),
            }
        )
        for _ in range(2)
    )
    mixed = interpolate(one, two, x)
    expected = (1 - x) * one["m.B"] @ one["m.A"] + x * two["m.B"] @ two["m.A"]
    assert torch.allclose(mixed["m.B"] @ mixed["m.A"], expected, atol=1e-6)
    assert torch.allclose(mixed["m.base"], (1 - x) * one["m.base"] + x * two["m.base"])
    if 0 < x < 1:  # interpolated factors are another model
        factors = ((1 - x) * one["m.B"] + x * two["m.B"]) @ ((1 - x) * one["m.A"] + x * two["m.A"])
        assert not torch.allclose(factors, expected, atol=0.1)


@pytest.mark.parametrize("tune", [None, All()], ids=repr)
def test_an_interpolated_model_has_the_loss_of_its_merged_weights(tune):
    model = stacked("untied", tune)
    one, two = (model.init_params() + noise(model.init_params(), 0.2, seed) for seed in (1, 2))
    found = LossBarriers(model, BARRIER_TEXT).mean_loss(interpolate(one, two, 0.4))
    if tune:
        merged = 0.6 * one + 0.4 * two
        assert found == pytest.approx(LossBarriers(model, BARRIER_TEXT).mean_loss(merged), rel=1e-12)
        return
    plain = stacked("untied").network
    with torch.no_grad():
        for path in model.modules:
            change = sum(share * each[f"{path}.B"][0] @ each[f"{path}.A"][0] for share, each in ((0.6, one), (0.4, two)))
            plain.get_submodule(path).base.weight += model.trainable.scale * change
    logits = plain(input_ids=BARRIER_TEXT.tokens).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), BARRIER_TEXT.tokens[:, 1:].flatten(), reduction="none")
    assert found == pytest.approx(losses[BARRIER_TEXT.mask[:, 1:].flatten()].mean().item(), rel=1e-9)


def test_the_stated_number_of_tokens_is_evaluated():
    sent = []

    class Counting(Landscape):
        def sequence_losses(self, params, tokens, keep):
            sent.append(tokens.numel())
            return super().sequence_losses(params, tokens, keep)

    for places in ([-1.0, 1.0], [-1.0, 1.0, 0.5, 0.2]):
        sent.clear()
        looking = LossBarriers(Counting(double_well), BARRIER_TEXT)
        looking(make_round_on_line(places, 1.0))
        assert sum(sent) == looking.forward_tokens(len(places))


def test_real_clients_have_finite_barriers():
    model = stacked()
    reading = LossBarriers(model, BARRIER_TEXT)(make_round(model, [0.3, 0.3, 0.3]))
    assert reading["barrier.server"].isfinite().all() and reading["barrier.clients"] >= 0
    assert isinstance(BARRIER_TEXT, Passages)
