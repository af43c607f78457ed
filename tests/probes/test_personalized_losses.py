"""Test losses on own and on other text against plain sums."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedrift.data.tokenization import Blocks
from fedrift.probes import evaluate_personalized


def make_probe(mix, table, domains=(0, 1, 2)):
    """Return models with known losses on three domains of one block with one predicted token each."""
    held = SimpleNamespace(
        client_domain_tokens=np.array(mix, dtype=float),
        domains=("a", "b", "c"),
        domain_ids=np.array(domains),
        blocks=Blocks(np.zeros((len(domains), 2), dtype=int), np.ones((len(domains), 2), dtype=bool)),
    )
    sums = torch.tensor(table, dtype=torch.float64)[:, : len(domains)]
    return SimpleNamespace(held_out=held, all_text=held, personalized_params=None, prefix="final.", all_block_losses=lambda state: sums)


def test_own_text_is_weighted_by_present_and_other_text_by_missing_domains():
    losses = make_probe([[10, 0, 0], [5, 5, 0], [1, 1, 2]], [[1.0, 2.0, 4.0], [3.0, 5.0, 7.0]])
    found = evaluate_personalized(losses, SimpleNamespace(cluster_ids=torch.tensor([0, 1, 0])))
    assert found["final.loss.own"].tolist() == pytest.approx([1, (3 + 5) / 2, (1 + 2 + 2 * 4) / 4])
    assert found["final.loss.cross"].tolist() == pytest.approx(
        [(2 + 4) / 2, (0.5 * 3 + 0.5 * 5 + 1 * 7) / 2, (0.75 * 1 + 0.75 * 2 + 0.5 * 4) / 2]
    )


def test_missing_text_has_no_value():
    losses = make_probe([[10, 0, 0], [0, 0, 0]], [[1.0, 2.0, float("nan")]], domains=(0, 1))
    found = evaluate_personalized(losses, SimpleNamespace(cluster_ids=torch.tensor([0, 0])))
    assert found["final.loss.own"][0] == 1 and torch.isnan(found["final.loss.own"][1])  # a client without text
    assert torch.isnan(found["final.loss.cross"][0])  # no client trains on b and c has no held-out text, so no other text remains
