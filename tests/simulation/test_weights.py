"""What clients count with in the mean: the tokens they learnt from, the examples they hold, or all alike."""

from __future__ import annotations

import pytest
import torch

from fedrift.algorithms import FedAvg
from fedrift.core.errors import UserError
from fedrift.core.optimizers import Sgd
from fedrift.core.tree import Tree
from fedrift.engine.loop import init_state
from fedrift.simulation import ClientSimulator
from fedrift.simulation.batches import StragglingBatches, TextBatches

from .test_batches import blocks_of

HELD = (40, 4, 123, 202)  # blocks of four clients
BLOCKS = tuple(blocks_of(count, client) for client, count in enumerate(HELD))


def weighted_loss(params: Tree, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (params["x"][:, 0] - 1) ** 2 * batch["loss_mask"].any(2).any(1)


def weights(batches, weighting: str, cohort=(0, 1, 2, 3), micro: int | None = None) -> list[float]:
    fleet = ClientSimulator(4, weighted_loss, batches, Sgd(0.1), client_weighting=weighting, clients_per_pass=micro)
    state = init_state(FedAvg(), Tree(x=torch.zeros(1, 1)), 4)
    return fleet.train(state, FedAvg(), torch.tensor(cohort)).weight.tolist()


@pytest.mark.parametrize("micro", [None, 1])
@pytest.mark.parametrize("options", [{"local_steps": 4}, {"local_steps": 1}, {"local_epochs": 1.0}, {"local_epochs": 0.3}], ids=str)
def test_examples_are_those_that_a_client_holds_however_long_it_works(options, micro):
    """McMahan et al.'s n_k; with fixed steps it was the examples of those steps, 16 for all."""
    assert weights(TextBatches(BLOCKS, batch_size=4, seed=0, **options), "examples", micro=micro) == list(HELD)
    assert weights(TextBatches(BLOCKS, batch_size=4, seed=0, **options), "examples", (1, 3), micro) == [4, 202]


def test_a_client_that_did_a_part_of_its_work_counts_with_all_it_holds_and_one_that_did_none_with_nothing():
    partial = StragglingBatches(BLOCKS, batch_size=4, seed=0, local_steps=4, straggler_fraction=1.0, straggler_policy="partial")
    dropped = StragglingBatches(BLOCKS, batch_size=4, seed=0, local_steps=4, straggler_fraction=1.0, straggler_policy="drop")
    assert weights(partial, "examples") == list(HELD)
    assert weights(dropped, "examples") == [0, 0, 0, 0]
    assert weights(TextBatches((*BLOCKS[:3], blocks_of(0, 3)), batch_size=4, seed=0), "examples") == [*HELD[:3], 0]


def test_tokens_are_those_that_a_client_learnt_from_in_the_round():
    """Three of a block's four tokens are predicted; the last block of a client has two."""
    steps = weights(TextBatches(BLOCKS, batch_size=4, seed=0, local_steps=1), "tokens")
    assert all(10 <= weight <= 12 for weight in steps)
    assert weights(TextBatches(BLOCKS, batch_size=4, seed=0, local_epochs=1.0), "tokens") == [3 * count - 2 for count in HELD]
    assert weights(TextBatches(BLOCKS, batch_size=4, seed=0, local_epochs=1.0), "uniform") == [1, 1, 1, 1]


def test_batches_that_do_not_say_what_is_held_are_refused():
    def batches(round, cohort):
        for batch in TextBatches(BLOCKS, batch_size=4, seed=0)(round, cohort):
            yield {name: leaf for name, leaf in batch.items() if name != "num_examples"}

    assert len(weights(batches, "tokens")) == 4
    with pytest.raises(UserError, match="no 'num_examples'"):
        weights(batches, "examples")
