"""Averaging factors beside averaging products, on adapters whose products are known."""

from __future__ import annotations

import pytest
import torch

from fedrift.probes.exact import ExactMean, averaged, exactly_averaged
from fedrift.probes.passages import passages
from fedrift.tree import Tree
from tests.probes.rounds import a_round, held_out, stacked

TEXT = passages(held_out(), 40)


def product(tree: Tree) -> torch.Tensor:
    return tree["m.B"] @ tree["m.A"]


def test_the_exact_mean_is_the_mean_of_the_products_and_the_hand_case_loses_all_of_it():
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    local = Tree({"m.A": torch.stack([one, two]), "m.B": torch.stack([one.T, two.T])})  # B_k A_k is the same for both
    share = torch.tensor([0.5, 0.5])
    assert torch.equal(product(exactly_averaged(local, share))[0], one.T @ one)
    assert not product(averaged(local, share)).any()


def test_shares_weigh_products_and_other_leaves():
    draw = torch.Generator().manual_seed(0)
    local = Tree({"m.A": torch.randn(3, 2, 5, generator=draw), "m.B": torch.randn(3, 4, 2, generator=draw),
                  "norm": torch.tensor([[1.0], [2.0], [4.0]])})
    share = torch.tensor([0.5, 0.25, 0.25])
    exact = exactly_averaged(local, share)
    assert torch.allclose(product(exact)[0], (share[:, None, None] * product(local)).sum(0), atol=1e-6)
    assert exact["norm"].item() == averaged(local, share)["norm"].item() == 2.0


def test_clients_that_agree_lose_nothing_and_the_loss_is_that_of_both_means():
    model = stacked()
    done = a_round(model, [0.6, 0.6, 0.6], failed=(2,))
    same = a_round(model, [0.0, 0.0])
    probe = ExactMean(model, TEXT)
    assert probe(same)["adapters.error.loss"] == pytest.approx(0, abs=1e-9)
    local, share = done.local.rows(torch.tensor([0, 1])), torch.tensor([0.5, 0.5])
    tokens, keep = TEXT.tokens[None], TEXT.counts[None]
    apart, exact = (model.sums(made, tokens, keep)[0].sum() / TEXT.counts[:, 1:].sum()
                    for made in (averaged(local, share), exactly_averaged(local, share)))
    assert probe(done)["adapters.error.loss"] == pytest.approx((apart - exact).item(), abs=1e-9) and apart != exact


def test_where_nobody_trained_nothing_is_said():
    model = stacked()
    assert ExactMean(model, TEXT)(a_round(model, [0.1, 0.1], failed=(0, 1))) == {}
