"""No speed-up changes a result beyond rounding: two federated rounds under every option of the engine, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from fedrift.algorithms import MOON, FedAvg, Scaffold
from fedrift.fleet import SimulatedFleet
from fedrift.fleet.represent import mean_states
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Full, LastK, Lora
from fedrift.optimizers import AdamW, Sgd
from fedrift.rounds import begin, rounds
from fedrift.tree import Tree
from tests.models.networks import batch, network


@dataclass(frozen=True)
class PlainAdamW(AdamW):
    """The rule as it is written, whatever kernel there is."""

    def fused(self, params, grad, moments, count):
        return self.written(params, grad, moments, count)


OPTIONS = {"plain modules": {"lean": False}, "no prefix": {"prefix": False}, "slots": {"micro": 1}, "two at once": {"micro": 2},
           "plain optimiser": {"optimizer": PlainAdamW(0.01, weight_decay=0.1)},
           "none of it": {"lean": False, "prefix": False, "micro": 1}}
TUNES = {"lora": Lora(rank=2), "last_k": LastK(1), "full": Full()}
RULES = {"FedAvg": (FedAvg(), AdamW(0.01, weight_decay=0.1)), "Scaffold": (Scaffold(), Sgd(0.1)), "MOON": (MOON(), Sgd(0.1))}


def batches(round: int, cohort: torch.Tensor):
    """Three steps; the second client of the fleet is done after two."""
    for step in range(3):
        rows = torch.tensor([row for row, client in enumerate(cohort.tolist()) if step < 2 or client != 1], dtype=torch.long)
        if len(rows):
            whole = batch(3, seed=10 * round + step)
            part = {name: value[cohort[rows]] for name, value in whole.items()}
            yield {**part, "rows": rows, "weight": part["keep"][:, :, 1:].sum((1, 2)).double()}


def trained(kind: str, tune: str, rule: str, lean: bool = True, prefix: bool | None = None, micro: int | None = None,
            optimizer=None) -> Tree:
    model = StackedModel(network(kind), TUNES[tune], lean=lean, prefix=prefix)
    algorithm, usual = RULES[rule]
    fleet = SimulatedFleet(3, model, batches, optimizer or usual, clip=1.0, micro=micro,
                           represent=lambda params, read: mean_states(model.hidden, params, read))
    *_, last = rounds(begin(algorithm, model.template(), 3), fleet, algorithm, until=2, cohort=3, seed=0)
    return last.after.server.params


@pytest.fixture(scope="module")
def usual():
    kept: dict[tuple[str, ...], Tree] = {}

    def get(*which: str) -> Tree:
        if which not in kept:
            kept[which] = trained(*which)
        return kept[which]
    return get


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize(("kind", "rule"), [("llama", "FedAvg"), ("gpt2", "FedAvg"), ("qwen2", "FedAvg"), ("llama", "Scaffold"),
                                            ("llama", "MOON")])
def test_no_speed_up_changes_a_result_beyond_rounding(usual, kind, rule, tune, option):
    if "optimizer" in OPTIONS[option] and rule != "FedAvg":
        pytest.skip("the option is AdamW's")
    expected, found = usual(kind, tune, rule), trained(kind, tune, rule, **OPTIONS[option])
    for name, leaf in expected.items():
        assert (found[name] - leaf).abs().max() <= 1e-9 * leaf.abs().max(), name
