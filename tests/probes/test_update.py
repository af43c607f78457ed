"""Test the update metrics on updates with known angles."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedrift.algorithms import FedAvg
from fedrift.core.tree import Tree
from fedrift.probes import update_geometry
from fedrift.probes.base import to_records
from tests.quadratics import clients, train


def make_round(updates: list[list[float]], failed: tuple[int, ...] = ()):
    """Return a round in which the clients sent these updates."""
    width = len(updates[0])
    done = train(FedAvg(), clients([[1] * width] * len(updates), [[0] * width] * len(updates)), until=1)[0]
    out = torch.zeros(len(updates), dtype=torch.bool).index_fill(0, torch.tensor(failed, dtype=torch.long), True)
    delta = Tree(x=torch.tensor(updates, dtype=torch.float64))
    return replace(done, update=replace(done.update, delta=delta, failed=out))


def test_identical_updates_agree_fully():
    reading = update_geometry(make_round([[3, 4]] * 5))
    assert reading["update.norm"].tolist() == pytest.approx([5] * 5)
    assert reading["update.cosine"].tolist() == pytest.approx([1] * 5)
    assert reading["update.consensus"] == pytest.approx(1)
    assert reading["update.diversity"] == pytest.approx(1)
    assert reading["update.divergence"] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("count", [2, 5, 10])
def test_orthogonal_updates_have_the_cosine_of_chance(count):
    reading = update_geometry(make_round(torch.eye(count).tolist()))
    assert reading["update.cosine"].tolist() == pytest.approx([count**-0.5] * count)
    assert reading["update.consensus"] == pytest.approx(count**-0.5)
    assert reading["update.diversity"] == pytest.approx(count)
    assert reading["update.divergence"] == pytest.approx(2**0.5)


def test_opposite_updates_cancel():
    reading = update_geometry(make_round([[1, 0], [-1, 0]]))
    assert reading["update.consensus"] == pytest.approx(0, abs=1e-9)
    assert reading["update.divergence"] == pytest.approx(2)


def test_a_failed_client_has_no_number_and_does_not_count():
    whole = update_geometry(make_round([[1, 0], [0, 1]]))
    reading = update_geometry(make_round([[1, 0], [9, 9], [0, 1]], failed=(1,)))
    assert reading["update.norm"][1].isnan()
    assert reading["update.consensus"] == whole["update.consensus"]


def test_values_are_recorded_for_their_clients():
    rows = to_records({"a": 1.5, "b": torch.tensor([1.0, 2.0]), ("c", "sport"): torch.tensor(3.0), "d": torch.arange(3.0)}, 7, [0, 2], 3)
    assert [(row.metric, row.domain, row.client, row.value) for row in rows] == [
        ("a", "", -1, 1.5),
        ("b", "", 0, 1.0),
        ("b", "", 2, 2.0),
        ("c", "sport", -1, 3.0),
        ("d", "", 0, 0.0),
        ("d", "", 1, 1.0),
        ("d", "", 2, 2.0),
    ]
    with pytest.raises(ValueError, match=r"'a' has 4 values; .* each of the 2 clients of the cohort, .* all 3 clients"):
        to_records({"a": torch.zeros(4)}, 7, [0, 2], 3)


def test_a_client_that_does_not_tell_its_steps_has_trained_and_its_gradient_is_unknown():
    done = make_round([[3, 4], [3, 4]])
    update = replace(done.update, steps=torch.tensor([math.nan, 5.0]), mean_grad=Tree(x=torch.tensor([[0.0, 0.0], [6.0, 8.0]])))
    reading = update_geometry(replace(done, update=update))
    assert reading["update.norm"].tolist() == pytest.approx([5, 5])
    assert reading["gradient.norm"][0].isnan() and reading["gradient.norm", ""] == pytest.approx(10)
    assert "gradient.norm.variance" not in reading
