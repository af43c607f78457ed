"""Test the path of the server and the updates of products, on steps with known lengths and angles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedrift.algorithms import FedAvg, LocalOnly
from fedrift.core.tree import Tree
from fedrift.core.types import RoundResult
from fedrift.probes import update_geometry
from fedrift.probes.base import MetricHistory
from fedrift.probes.lora import ProductGeometry, product_gram, product_gram_by_layer
from fedrift.probes.lora import product_efficiency as of_products
from fedrift.probes.updates import ServerPath, path_efficiency
from tests.laws.federation import SCALE, data, train
from tests.probes.test_update import make_round


def make_path_round(before: list[list[float]], now: list[list[float]], last: list[list[float]] | None) -> RoundResult:
    """Return a round in which the M models moved from ``before`` to ``now``, after they had moved by ``last``."""
    done = make_round([[1, 0], [0, 1], [1, 1]])
    start, end = (Tree(x=torch.tensor(rows, dtype=torch.float64)) for rows in (before, now))
    group = torch.arange(3) if len(before) > 1 else torch.zeros(3, dtype=torch.long)
    moved = Tree() if last is None else Tree(x=torch.tensor(last, dtype=torch.float64))
    before = replace(done.before, server=replace(done.before.server, params=start), server_delta=moved, cluster_ids=group)
    after = replace(done.after, server=replace(done.after.server, params=end), server_delta=end - start, cluster_ids=group)
    return replace(done, before=before, after=after)


ZERO = Tree(x=torch.zeros(1, 2, dtype=torch.float64))


def test_step_length_path_length_and_turn_are_recorded():
    reading = ServerPath(ZERO)(make_path_round([[3, 4]], [[6, 8]], [[4, -3]]))
    assert reading["update.step"].item() == pytest.approx(5)
    assert reading["update.distance_from_start"].item() == pytest.approx(10)
    assert reading["update.turn"].item() == pytest.approx(0)
    assert ServerPath(ZERO)(make_path_round([[0, 0]], [[1, 1]], [[-1, -1]]))["update.turn"].item() == pytest.approx(-1)


def test_the_first_round_has_no_turn_and_an_unchanged_model_no_direction():
    assert "update.turn" not in ServerPath(ZERO)(make_path_round([[0, 0]], [[1, 1]], None))
    reading = ServerPath(ZERO)(make_path_round([[0, 0]] * 3, [[1, 0], [0, 2], [0, 0]], [[1, 0], [0, -1], [1, 1]]))
    assert reading["update.turn"].item() == pytest.approx(0)  # mean of 1 and -1; the third model has none
    assert reading["update.step"].item() == pytest.approx(1)


def test_efficiency_is_one_on_a_straight_line_and_falls_on_return():
    past = MetricHistory(total={("update.step", ""): 3.0})
    assert path_efficiency({"update.step": 1.0, "update.distance_from_start": 4.0}, past) == {"update.efficiency": 1.0}
    assert path_efficiency({"update.step": 1.0, "update.distance_from_start": 2.0}, past) == {"update.efficiency": 0.5}
    assert path_efficiency({"update.step": 0.0, "update.distance_from_start": 0.0}, MetricHistory()) == {}


def test_pairs_of_clients_have_a_mean_cosine():
    assert update_geometry(make_round([[1, 0], [0, 1], [1, 0]]))["update.pairwise"].item() == pytest.approx(1 / 3)
    assert update_geometry(make_round([[1, 0], [-2, 0]]))["update.pairwise"].item() == pytest.approx(-1)
    assert "update.pairwise" not in update_geometry(make_round([[1, 0]]))


def test_layers_are_recorded_separately():
    done = make_round([[1, 0], [0, 1]])
    delta = Tree(
        {
            "model.layers.3.q.A": torch.tensor([[1.0, 0], [0, 1]]),
            "h.11.B": torch.tensor([[1.0, 0], [1, 0]]),
            "h.2.idle": torch.zeros(2, 2),
            "norm": torch.tensor([[1.0, 0], [-1, 0]]),
        }
    ).to(torch.float64)
    reading = update_geometry(replace(done, update=replace(done.update, delta=delta)))
    assert reading["update.diversity", "layer 03"].item() == pytest.approx(2)
    assert reading["update.consensus", "layer 11"].item() == pytest.approx(1)
    assert not any("layer 02" in key for key in reading if isinstance(key, tuple))  # no client changed it
    assert reading["update.diversity"].item() == pytest.approx(3 / (2 * 0.25 + 1))  # the leaves of the norm cancel


def dense(start: Tree, moves: Tree) -> torch.Tensor:
    """Return s (B_k A_k - B A) as matrices, ``[n, O I]``."""
    after = start + moves
    return SCALE * (after["m.B"] @ after["m.A"] - start["m.B"] @ start["m.A"]).flatten(1)


def test_products_of_factors_equal_those_of_the_matrices():
    draw = torch.Generator().manual_seed(1)
    start, moves = (
        Tree({"m.A": torch.randn(4, 2, 5, generator=draw), "m.B": torch.randn(4, 3, 2, generator=draw)}).to(torch.float64) for _ in range(2)
    )
    full = dense(start, moves)
    assert torch.allclose(SCALE**2 * product_gram(start, moves), full @ full.T, atol=1e-10)


def test_tiny_changes_of_large_factors_are_accurate():
    draw = torch.Generator().manual_seed(1)
    start = Tree({"m.A": torch.randn(2, 2, 5, generator=draw), "m.B": torch.randn(2, 3, 2, generator=draw)}).to(torch.float64)
    moves = 1e-9 * start
    gram, whole = product_gram(start, moves), start["m.B"] @ start["m.A"]
    assert gram.diagonal() == pytest.approx((4e-18 * whole.flatten(1).square().sum(1)).tolist(), rel=1e-6)


@pytest.mark.parametrize("algorithm", [FedAvg(), LocalOnly()], ids=lambda one: type(one).__name__)
def test_clients_and_the_server_are_measured_in_the_space_of_products(algorithm):
    done = train(algorithm, data(), until=3)
    reading = ProductGeometry(SCALE)(done[2])
    start = done[2].before.server.params.take(done[2].before.cluster_ids[done[2].cohort])
    update = dense(start, done[2].update.delta)
    mean = update.mean(0)
    assert reading["product.norm"].tolist() == pytest.approx(update.norm(dim=1).tolist())
    assert reading["product.cosine"].tolist() == pytest.approx((update @ mean / update.norm(dim=1) / mean.norm()).tolist())
    assert reading["product.consensus"].item() == pytest.approx((mean.norm() / update.norm(dim=1).mean()).item())
    moves = [dense(each.before.server.params, each.after.server.params - each.before.server.params) for each in done[1:]]
    turns = torch.nn.functional.cosine_similarity(moves[1], moves[0])
    assert reading["product.turn"].item() == pytest.approx(turns.mean().item())
    assert "product.turn" not in ProductGeometry(SCALE)(done[0])
    pairs = [torch.nn.functional.cosine_similarity(update[one], update[two], dim=0) for one in range(len(update)) for two in range(one)]
    assert reading["product.pairwise"].item() == pytest.approx(torch.stack(pairs).mean().item())


def test_the_path_of_the_products_equals_that_of_the_matrices():
    done = train(FedAvg(), data(), until=3)
    start = done[0].before.server.params
    reading = ProductGeometry(SCALE, start)(done[2])
    before, after = done[2].before.server.params, done[2].after.server.params
    assert reading["product.step"].item() == pytest.approx(dense(before, after - before).norm().item())
    assert reading["product.distance_from_start"].item() == pytest.approx(dense(start, after - start).norm().item())
    past = MetricHistory({("product.step", ""): 3.0})
    assert of_products({"product.step": 1.0, "product.distance_from_start": 2.0}, past) == {"product.efficiency": 0.5}


def test_layers_of_products_are_recorded_separately():
    draw = torch.Generator().manual_seed(1)
    start, moves = (
        Tree(
            {
                f"layers.{layer}.{leaf}": torch.randn(shape, generator=draw, dtype=torch.float64)
                for layer in (0, 1)
                for leaf, shape in (("A", (2, 2, 5)), ("B", (2, 3, 2)))
            }
        )
        for _ in range(2)
    )
    grams = product_gram_by_layer(start, moves)
    assert list(grams) == ["layer 00", "layer 01"]
    assert torch.allclose(grams["layer 00"] + grams["layer 01"], product_gram(start, moves))


def test_the_basis_of_a_product_does_not_matter():
    """(B Q, Q^-1 A) is the same model as (B, A): metrics of products are equal, metrics of factors differ."""
    one = torch.eye(2, dtype=torch.float64)
    turned = torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    start = Tree({"m.A": torch.stack([one, one]), "m.B": torch.stack([one, one])})
    ends = Tree({"m.A": torch.stack([2 * one, 2 * turned.inverse()]), "m.B": torch.stack([one, turned])})
    gram = product_gram(start, ends - start)
    assert (gram / gram[0, 0]).flatten().tolist() == pytest.approx([1, 1, 1, 1])


def test_without_adapters_there_are_no_products():
    assert ProductGeometry(1.0)(make_round([[1, 0], [0, 1]])) == {}
