"""Averaging factors beside averaging products, on adapters whose products are known."""

from __future__ import annotations

import pytest
import torch

from fedrift.core.tree import Tree
from fedrift.probes.context import select_passages
from fedrift.probes.lora import ExactMean, average_params, average_products
from tests.probes.rounds import a_round, held_out, stacked

TEXT = select_passages(held_out(), 40)


def factor_product(tree: Tree) -> torch.Tensor:
    return tree["m.B"] @ tree["m.A"]


def test_the_exact_mean_is_the_mean_of_the_products_and_the_hand_case_loses_all_of_it():
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    local = Tree({"m.A": torch.stack([one, two]), "m.B": torch.stack([one.T, two.T])})  # B_k A_k is the same for both
    share = torch.tensor([0.5, 0.5])
    assert torch.equal(factor_product(average_products(local, share))[0], one.T @ one)
    assert not factor_product(average_params(local, share)).any()


def test_shares_weigh_products_and_other_leaves():
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


def test_clients_that_agree_lose_nothing_and_the_loss_is_that_of_both_means():
    model = stacked()
    done = a_round(model, [0.6, 0.6, 0.6], failed=(2,))
    same = a_round(model, [0.0, 0.0])
    probe = ExactMean(model, TEXT)
    assert probe(same)["adapters.error.loss"] == pytest.approx(0, abs=1e-9)
    local, share = done.client_params.take(torch.tensor([0, 1])), torch.tensor([0.5, 0.5])
    tokens, keep = TEXT.tokens[None], TEXT.mask[None]
    apart, exact = (
        model.sequence_losses(made, tokens, keep)[0].sum() / TEXT.mask[:, 1:].sum()
        for made in (average_params(local, share), average_products(local, share))
    )
    assert probe(done)["adapters.error.loss"] == pytest.approx((apart - exact).item(), abs=1e-9) and apart != exact


def test_where_nobody_trained_nothing_is_said():
    model = stacked()
    assert ExactMean(model, TEXT)(a_round(model, [0.1, 0.1], failed=(0, 1))) == {}
