"""Test that no optimization changes a result beyond rounding: two federated rounds with every option of the engine, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from shutil import which
from threading import Thread

import pytest
import torch

from fedrift.algorithms import MOON, FedAvg, Scaffold
from fedrift.core.optimizers import AdamW, Sgd
from fedrift.core.tree import Tree
from fedrift.engine.loop import init_state, run_rounds
from fedrift.models import head
from fedrift.models.batched_model import BatchCoordinator, BatchedModel
from fedrift.models.stacked_model import StackedModel, mean_hidden_states
from fedrift.models.trainable import All, LastBlocks, Lora
from fedrift.simulation import ClientSimulator
from tests.models.networks import batch, network


@dataclass(frozen=True)
class PlainAdamW(AdamW):
    """AdamW as written in its paper, without a fused kernel."""

    def _fused_step(self, params, grad, opt_state, count):
        return self._unfused_step(params, grad, opt_state, count)


OPTIONS = {
    "plain modules": {"fused": False},
    "no prefix": {"use_prefix_cache": False},
    "slots": {"clients_per_pass": 1},
    "two at once": {"clients_per_pass": 2},
    "plain optimiser": {"optimizer": PlainAdamW(0.01, weight_decay=0.1)},
    "none of it": {"fused": False, "use_prefix_cache": False, "clients_per_pass": 1},
}
TUNES = {"lora": Lora(r=2), "last_k": LastBlocks(1), "full": All()}
PLACES = [("llama", "FedAvg"), ("gpt2", "FedAvg"), ("qwen2", "FedAvg"), ("llama", "Scaffold"), ("llama", "MOON")]
RULES = {"FedAvg": (FedAvg(), AdamW(0.01, weight_decay=0.1)), "Scaffold": (Scaffold(), Sgd(0.1)), "MOON": (MOON(), Sgd(0.1))}


def batches(round: int, cohort: torch.Tensor):
    """Three steps; the second client of the fleet is done after two."""
    for step in range(3):
        rows = torch.tensor([row for row, client in enumerate(cohort.tolist()) if step < 2 or client != 1], dtype=torch.long)
        if len(rows):
            whole = batch(3, seed=10 * round + step)
            part = {name: value[cohort[rows]] for name, value in whole.items()}
            yield {**part, "rows": rows, "weight": part["loss_mask"][:, :, 1:].sum((1, 2)).double()}


def trained(kind: str, tune: str, rule: str, fused: bool = True, use_prefix_cache: bool | None = None, **more) -> Tree:
    return federated(StackedModel(network(kind), TUNES[tune], fused, use_prefix_cache), rule, **more)


def federated(model: StackedModel, rule: str, clients_per_pass: int | None = None, optimizer=None) -> Tree:
    """The server's params after two rounds."""
    algorithm, reference_params = RULES[rule]
    simulator = ClientSimulator(
        3,
        model,
        batches,
        optimizer or reference_params,
        max_grad_norm=1.0,
        clients_per_pass=clients_per_pass,
        represent_fn=lambda params, read: mean_hidden_states(model.hidden_states, params, read),
    )
    *_, last = run_rounds(init_state(algorithm, model.init_params(), 3), simulator, algorithm, num_rounds=2, cohort_size=3, seed=0)
    return last.after.server.params


def same(found: Tree, expected: Tree) -> None:
    for name, leaf in expected.items():
        assert (found[name] - leaf).abs().max() <= 1e-9 * leaf.abs().max(), name


@pytest.fixture(scope="module")
def reference_params():
    kept: dict[tuple[str, ...], Tree] = {}

    def get(*which: str) -> Tree:
        if which not in kept:
            kept[which] = trained(*which)
        return kept[which]

    return get


# By default every pair of problem and option, of trainable and option, and of problem and trainable once; all triples with `-m slow`.
CASES = [
    pytest.param(
        kind, rule, tune, option, id=f"{kind}-{rule}-{tune}-{option}", marks=() if place == (world + number) % 3 else pytest.mark.slow
    )
    for world, (kind, rule) in enumerate(PLACES)
    for place, tune in enumerate(TUNES)
    for number, option in enumerate(OPTIONS)
    if rule == "FedAvg" or "optimizer" not in OPTIONS[option]
]  # this option exists for AdamW only

PROBLEMS = pytest.mark.parametrize(("kind", "rule"), PLACES)


@pytest.mark.sample(10)
@pytest.mark.parametrize(("kind", "rule", "tune", "option"), CASES)
def test_no_speed_up_changes_a_result_beyond_rounding(reference_params, kind, rule, tune, option):
    same(trained(kind, tune, rule, **OPTIONS[option]), reference_params(kind, tune, rule))


@pytest.mark.parametrize("tune", TUNES)
@PROBLEMS
def test_logits_can_be_computed_in_chunks(reference_params, monkeypatch, kind, rule, tune):
    """Seven positions per chunk, which divide none of the batches."""
    made = []
    monkeypatch.setattr(head, "LOGITS_PER_CHUNK", 1)
    monkeypatch.setattr(head, "max", lambda least, most: made.append(7) or 7, raising=False)
    found = trained(kind, tune, rule)
    assert made or tune == "full"  # a trained head computes all logits
    same(found, reference_params(kind, tune, rule))


@pytest.mark.sample(5)
@pytest.mark.parametrize("tune", TUNES)
@PROBLEMS
def test_runs_that_share_passes_keep_their_results(reference_params, kind, rule, tune):
    """Two runs of one network share every step: six clients in a pass, and each run keeps its own numbers."""
    plain, meeting, found = StackedModel(network(kind), TUNES[tune]), BatchCoordinator(2, max_clients=64), dict[int, Tree]()

    def work(seat: int) -> None:
        with meeting.participant():
            found[seat] = federated(BatchedModel(plain, meeting), rule)

    threads = [Thread(target=work, args=(seat,)) for seat in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 6 in meeting.pass_sizes
    for run in found.values():
        same(run, reference_params(kind, tune, rule))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tune"), [("llama", "lora"), ("gpt2", "lora"), ("qwen2", "lora"), ("llama", "last_k"), ("llama", "full")])
def test_compiled_blocks_keep_the_results(reference_params, kind, tune):
    """As with `--compile`: plain modules, no prefix cache, every block compiled."""
    if not (which("g++") or which("clang++") or which("c++")):
        pytest.skip("torch.compile needs a C++ compiler on a CPU, but none is installed")
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters
    counted.clear()
    model = StackedModel(network(kind), TUNES[tune], fused=False, use_prefix_cache=False)
    model.compile()
    same(federated(model, "FedAvg"), reference_params(kind, tune, "FedAvg"))
    assert counted["stats"]["unique_graphs"] > 0  # at least one block was compiled
