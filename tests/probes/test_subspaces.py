"""Test the subspace metrics on adapters with known ranks and angles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedrift.core.tree import Tree
from fedrift.models.trainable import All
from fedrift.probes.lora import adapter_subspaces, product_svd, subspace_overlap
from tests.probes.rounds import make_round, noise, stacked

DOUBLE = torch.float64


def make_adapter_round(ups: list[torch.Tensor], downs: list[torch.Tensor]):
    """Return a round whose clients ended at these factors of one module in block 3, with the server at the first client's."""
    model = stacked()
    done = make_round(model, [0.0] * len(ups))
    path = "model.layers.3.q_proj"
    local = Tree({f"{path}.A": torch.stack(downs).to(DOUBLE), f"{path}.B": torch.stack(ups).to(DOUBLE)})
    zero = local.take(slice(0, 1)).zeros_like()
    put = lambda state, tree: replace(state, server=replace(state.server, params=tree))  # noqa: E731
    return replace(
        done, before=put(done.before, zero), after=put(done.after, local.take(slice(0, 1))), update=replace(done.update, delta=local)
    )


def columns(*which: int, tall: int = 6) -> torch.Tensor:
    return torch.eye(tall)[:, list(which)]


def test_a_product_is_decomposed_without_being_built():
    draw = torch.Generator().manual_seed(0)
    up, down = torch.randn(2, 9, 3, generator=draw, dtype=DOUBLE), torch.randn(2, 3, 7, generator=draw, dtype=DOUBLE)
    u, values, v = product_svd(up, down)
    assert torch.allclose(u @ torch.diag_embed(values) @ v.mT, up @ down)
    assert torch.allclose(values, torch.linalg.svdvals(up @ down)[:, :3])


def test_equal_spaces_have_angle_one_and_orthogonal_ones_zero():
    rows = columns(0, 1).T
    turn = torch.tensor([[1.0, 2], [0, 3]])
    same = adapter_subspaces(make_adapter_round([columns(0, 1), columns(0, 1) @ turn], [rows, rows]))
    assert same["adapters.angle"].item() == pytest.approx(1) and same["adapters.angle", "layer 03"].item() == pytest.approx(1)
    apart = adapter_subspaces(make_adapter_round([columns(0, 1), columns(2, 3)], [rows, rows]))
    assert apart["adapters.angle", "columns"].item() == pytest.approx(0, abs=1e-12)
    assert apart["adapters.angle", "rows"].item() == pytest.approx(1)
    assert apart["adapters.angle", "layer 03 columns"].item() == pytest.approx(0, abs=1e-12)
    assert apart["adapters.angle"].item() == pytest.approx(0.5)


def test_planes_that_share_a_line_have_similarity_one_half():
    rows = columns(0, 1).T
    reading = adapter_subspaces(make_adapter_round([columns(0, 1), columns(0, 4)], [rows, rows]))
    assert reading["adapters.angle", "columns"].item() == pytest.approx(0.5)


def test_lines_have_the_squared_cosine_of_their_angle():
    lines = torch.tensor([[1.0, 0], [1, 1]]).unsqueeze(-1)
    lines = lines / lines.norm(dim=1, keepdim=True)
    assert subspace_overlap(lines, torch.ones(2, 1, dtype=torch.bool)).item() == pytest.approx(0.5)


def test_a_direction_that_is_not_used_does_not_count():
    """A product of rank 1 in an adapter of rank 2 has one direction."""
    rows = columns(0, 1).T
    flat = torch.stack([torch.eye(6)[0], torch.zeros(6)], 1)
    reading = adapter_subspaces(make_adapter_round([flat, columns(0, 3)], [rows, rows]))
    assert reading["adapters.angle", "columns"].item() == pytest.approx(1)


def test_random_planes_have_the_similarity_of_chance():
    draw = torch.Generator().manual_seed(0)
    bases = torch.linalg.qr(torch.randn(8, 100, 4, generator=draw, dtype=DOUBLE))[0]
    assert subspace_overlap(bases, torch.ones(8, 4, dtype=torch.bool)).item() == pytest.approx(4 / 100, abs=0.01)


def test_ranks_of_the_product_of_the_server_are_recorded():
    up = torch.eye(4) * torch.tensor([4.0, 2, 1, 1])
    reading = adapter_subspaces(make_adapter_round([up, up], [torch.eye(4), torch.eye(4)]))
    assert reading["adapters.rank"].item() == pytest.approx(3.3636, abs=5e-5)
    assert reading["adapters.rank.stable"].item() == pytest.approx(22 / 16)
    assert reading["adapters.rank", "layer 03"] == reading["adapters.rank"]


def test_the_scale_and_the_basis_of_the_factors_do_not_matter():
    draw = torch.Generator().manual_seed(0)
    up, down = torch.randn(6, 3, generator=draw, dtype=DOUBLE), torch.randn(3, 5, generator=draw, dtype=DOUBLE)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=draw, dtype=DOUBLE))[0]
    one = adapter_subspaces(make_adapter_round([up, up], [down, down]))
    two = adapter_subspaces(make_adapter_round([7 * up @ turn, up], [turn.T @ down, down]))
    for name in ("adapters.rank", "adapters.rank.stable", "adapters.angle"):
        assert one[name].item() == pytest.approx(two[name].item())


def test_untrained_adapters_have_no_directions():
    reading = adapter_subspaces(make_adapter_round([torch.zeros(6, 2)] * 2, [columns(0, 1).T] * 2))
    assert reading["adapters.rank"].isnan() and reading["adapters.angle"].isnan()


def test_networks_without_adapters_have_no_values():
    model = stacked(tune=All())
    assert adapter_subspaces(make_round(model, [0.1, 0.1])) == {}


def test_failed_clients_do_not_count_and_diverged_values_are_missing():
    model = stacked()
    two = adapter_subspaces(make_round(model, [0.5, 0.5]))
    three = make_round(model, [0.5, 0.5, 9.0], failed=(2,))
    assert adapter_subspaces(three)["adapters.angle"].item() == pytest.approx(two["adapters.angle"].item())
    assert "adapters.angle" not in adapter_subspaces(make_round(model, [0.5, 0.5], failed=(0,)))
    broken = adapter_subspaces(make_round(model, [0.5, 0.5], server=float("inf")))
    assert broken["adapters.rank"].isnan()


def test_every_layer_is_the_mean_of_its_modules():
    model = stacked()
    done = make_round(model, [0.5, 0.5])
    reading = adapter_subspaces(done)
    assert {key[1] for key in reading if isinstance(key, tuple) and key[0] == "adapters.rank"} == {"layer 00", "layer 01", "layer 02"}
    layers = [reading["adapters.rank", f"layer {layer:02d}"].item() for layer in range(3)]
    assert reading["adapters.rank"].item() == pytest.approx(sum(layers) / 3)
    assert noise(model.init_params(), 0.0, 0).norm() == 0
