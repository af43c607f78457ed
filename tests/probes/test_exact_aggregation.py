"""Test the comparison of averaged factors with averaged products, on adapters with known products."""

from __future__ import annotations

import pytest
import torch

from fedrift.core.tree import Tree
from fedrift.probes.context import select_passages
from fedrift.probes.lora import ExactMean, average_params, average_products
from tests.probes.rounds import held_out, make_round, stacked

TEXT = select_passages(held_out(), 40)


def factor_product(tree: Tree) -> torch.Tensor:
    return tree["m.B"] @ tree["m.A"]


def test_the_exact_mean_is_the_mean_of_the_products():
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    local = Tree({"m.A": torch.stack([one, two]), "m.B": torch.stack([one.T, two.T])})  # B_k A_k is equal for both clients
    share = torch.tensor([0.5, 0.5])
    assert torch.equal(factor_product(average_products(local, share))[0], one.T @ one)
    assert not factor_product(average_params(local, share)).any()


def test_products_and_other_leaves_are_weighted_by_shares():
    draw = torch.Generator().manual_seed(0)
    local = Tree(
        {
            "m.A": torch.randn(3, 2, 5, generator=draw),
            "m.B": torch.randn(3, 4, 2, generator=draw),
            "norm": torch.tensor([[1.0], [2.0], [4.0]]),
        }
    )
    share = torch.tensor([0.5, 0.25, 0.25])
    exact = average_products(local, share)
    assert torch.allclose(factor_product(exact)[0], (share[:, None, None] * factor_product(local)).sum(0), atol=1e-6)
    assert exact["norm"].item() == average_params(local, share)["norm"].item() == 2.0


def test_equal_clients_have_no_aggregation_error():
    model = stacked()
    done = make_round(model, [0.6, 0.6, 0.6], failed=(2,))
    same = make_round(model, [0.0, 0.0])
    probe = ExactMean(model, TEXT)
    assert probe(same)["adapters.error.loss"] == pytest.approx(0, abs=1e-9)
    local, share = done.client_params.take(torch.tensor([0, 1])), torch.tensor([0.5, 0.5])
    tokens, keep = TEXT.tokens[None], TEXT.mask[None]
    apart, exact = (
        model.sequence_losses(made, tokens, keep)[0].sum() / TEXT.mask[:, 1:].sum()
        for made in (average_params(local, share), average_products(local, share))
    )
    assert probe(done)["adapters.error.loss"] == pytest.approx((apart - exact).item(), abs=1e-9) and apart != exact


def test_a_round_without_participants_has_no_values():
    model = stacked()
    assert ExactMean(model, TEXT)(make_round(model, [0.1, 0.1], failed=(0, 1))) == {}
