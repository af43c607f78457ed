"""Test the client weights by tokens, by examples and uniform."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from fedrift.algorithms import FedAvg
from fedrift.core.errors import UserError
from fedrift.core.optimizers import Sgd
from fedrift.core.tree import Tree
from fedrift.engine.loop import init_state
from fedrift.simulation import ClientSimulator, simulator
from fedrift.simulation.batches import StragglingBatches, TextBatches

from .test_batches import blocks_of

NUM_BLOCKS = (40, 4, 123, 202)  # blocks of four clients
BLOCKS = tuple(blocks_of(count, client) for client, count in enumerate(NUM_BLOCKS))


def weighted_loss(params: Tree, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (params["x"][:, 0] - 1) ** 2 * batch["loss_mask"].any(2).any(1)


def weights(batches, weighting: str, cohort=(0, 1, 2, 3), micro: int | None = None) -> list[float]:
    simulator = ClientSimulator(4, weighted_loss, batches, Sgd(0.1), client_weighting=weighting, clients_per_pass=micro)
    state = init_state(FedAvg(), Tree(x=torch.zeros(1, 1)), 4)
    return simulator.train(state, FedAvg(), torch.tensor(cohort)).weight.tolist()


@pytest.mark.parametrize("micro", [None, 1])
@pytest.mark.parametrize("options", [{"local_steps": 4}, {"local_steps": 1}, {"local_epochs": 1.0}, {"local_epochs": 0.3}], ids=str)
def test_examples_are_all_blocks_of_a_client_for_any_number_of_steps(options, micro):
    """The weight is n_k of McMahan et al.; an earlier version counted the examples of the steps, 16 for all clients."""
    assert weights(TextBatches(BLOCKS, batch_size=4, seed=0, **options), "examples", micro=micro) == list(NUM_BLOCKS)
    assert weights(TextBatches(BLOCKS, batch_size=4, seed=0, **options), "examples", (1, 3), micro) == [4, 202]


def test_partial_work_has_the_full_weight_and_no_work_has_weight_zero():
    partial = StragglingBatches(BLOCKS, batch_size=4, seed=0, local_steps=4, straggler_fraction=1.0, straggler_policy="partial")
    dropped = StragglingBatches(BLOCKS, batch_size=4, seed=0, local_steps=4, straggler_fraction=1.0, straggler_policy="drop")
    assert weights(partial, "examples") == list(NUM_BLOCKS)
    assert weights(dropped, "examples") == [0, 0, 0, 0]
    assert weights(TextBatches((*BLOCKS[:3], blocks_of(0, 3)), batch_size=4, seed=0), "examples") == [*NUM_BLOCKS[:3], 0]


def test_tokens_are_those_that_a_client_trained_on_in_the_round():
    """Three of the four tokens of a block are predicted; the last block of a client has two tokens."""
    steps = weights(TextBatches(BLOCKS, batch_size=4, seed=0, local_steps=1), "tokens")
    assert all(10 <= weight <= 12 for weight in steps)
    assert weights(TextBatches(BLOCKS, batch_size=4, seed=0, local_epochs=1.0), "tokens") == [3 * count - 2 for count in NUM_BLOCKS]
    assert weights(TextBatches(BLOCKS, batch_size=4, seed=0, local_epochs=1.0), "uniform") == [1, 1, 1, 1]


def test_batches_without_numbers_of_examples_are_refused():
    def batches(round, cohort):
        for batch in TextBatches(BLOCKS, batch_size=4, seed=0)(round, cohort):
            yield {name: leaf for name, leaf in batch.items() if name != "num_examples"}

    assert len(weights(batches, "tokens")) == 4
    with pytest.raises(UserError, match="no 'num_examples'"):
        weights(batches, "examples")


def test_the_simulator_reads_the_keys_that_its_docstring_names():
    keys = set(re.findall(r"``(\w+) \[", simulator.Batches.__doc__)) - {"round"}
    assert keys == {"weight", "num_examples", "rows"}
    assert all(f'"{key}"' in inspect.getsource(simulator) for key in keys)
