"""Test the distance between the server states of a fork and its origin."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fedrift.core.tree import Tree
from fedrift.storage.jsonl import to_json
from fedrift.studies.fork_report import ForkReport, RunDifference, effective_weights, format_loss_change, model_distance

ONE = torch.zeros(4, dtype=torch.long)


def adapters(scale: float = 1.0, models: int = 1) -> Tree:
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(models, 2, 3, generator=draw), torch.randn(models, 4, 2, generator=draw)
    return Tree({"m.A": down / scale, "m.B": up * scale, "bias": torch.ones(models, 4)})


def test_the_basis_of_a_product_does_not_change_the_distance():
    one, two = (adapters(), Tree(), ONE), (adapters(8.0), Tree(), ONE)
    assert model_distance(one, two) < 1e-6
    merged = Tree({"m.base": effective_weights(adapters(), Tree())["m"]})
    flat = Tree({**adapters(), "m.B": torch.zeros(1, 4, 2)})
    assert model_distance(one, (flat, merged, ONE)) < 1e-6


def test_the_distance_is_the_root_mean_square_over_the_clients():
    def make_state(*biases, group):
        return Tree({"bias": torch.tensor(biases).view(-1, 1)}), Tree(), torch.tensor(group)

    assert model_distance(make_state(0.0, group=[0, 0, 0, 0]), make_state(3.0, 5.0, group=[0, 0, 1, 0])) == pytest.approx(
        math.sqrt((3 * 9 + 25) / 4)
    )
    assert model_distance(make_state(1.0, 2.0, group=[0, 1]), make_state(2.0, 1.0, group=[1, 0])) == 0  # the same models with other numbers


def test_the_sentence_states_the_effect_and_the_domain():
    rows = (
        RunDifference(6, 0.0, 4.5, 4.5, {"a": 0.0}),
        RunDifference(7, 0.25, 4.4, 4.3, {"a": -0.3, "b": 0.1, "c": math.nan}),
        RunDifference(8, 0.5, 4.4, math.nan, {"a": math.nan}),
        RunDifference(9, 0.75, 4.2, 4.2, {"a": 0.0001}),
    )
    said = ForkReport("o", "f", 7, "", "without client 3", True, rows, ())
    assert said.sentence == (
        "Without client 3 from round 7 on, the loss after round 7 is 4.300 nats per token instead of 4.400 (-0.100), most in a "
        "(-0.300); after round 9 it is 4.200 nats per token instead of 4.200 (+0.000). The server models differ from round 7 on; "
        "their final distance is 0.75 times the distance that the origin moved since round 6."
    )
    assert json.loads(to_json(said.to_json()))["rounds"][2]["fork"] is None
    assert "instead of" in format_loss_change(rows[1])
