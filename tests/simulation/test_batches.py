"""Test the order in which clients read their blocks, and the content of a stacked batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrift.algorithms import FedAvg
from fedrift.core.optimizers import Sgd
from fedrift.data.tokenization import Blocks
from fedrift.engine.loop import init_state, run_rounds
from fedrift.simulation import ClientSimulator
from fedrift.simulation.batches import TextBatches
from fedrift.simulation.simulator import client_losses_per_model
from tests.quadratics import clients, loss, params


def blocks_of(count: int, client: int, length: int = 4) -> Blocks:
    """Return blocks whose tokens are 100 * client + block number."""
    tokens = np.repeat(100 * client + np.arange(count)[:, None], length, axis=1)
    keep = np.ones_like(tokens, dtype=bool)
    if count:
        keep[-1, 2:] = False
    return Blocks(tokens, keep)


def batches(counts, **options) -> TextBatches:
    return TextBatches(tuple(blocks_of(count, client) for client, count in enumerate(counts)), seed=3, **options)


def seen(reader: TextBatches, round: int, cohort: list[int], client: int) -> list[int]:
    row, read = cohort.index(client), []
    for batch in reader(round, torch.tensor(cohort)):
        if row in batch["rows"].tolist():
            at = batch["rows"].tolist().index(row)
            read += batch["tokens"][at, batch["loss_mask"][at].any(1), 0].tolist()
    return read


def test_the_batches_of_a_client_do_not_depend_on_the_cohort():
    reader = batches((9, 7, 8), batch_size=2, local_steps=5)
    alone = seen(reader, 4, [1], 1)
    assert alone == seen(reader, 4, [0, 1], 1) == seen(reader, 4, [0, 1, 2], 1) == seen(reader, 4, [1, 2], 1)
    assert alone != seen(reader, 5, [1], 1)
    assert all(block // 100 == 1 for block in alone)


def test_every_block_is_read_before_one_is_repeated():
    read = seen(batches((5,), batch_size=2, local_steps=5), 0, [0], 0)
    assert sorted(read[:5]) == sorted(read[5:]) == list(range(5))


def test_an_epoch_reads_every_block_once():
    reader = batches((5, 2, 0), batch_size=2, local_epochs=1.0)
    steps = list(reader(0, torch.arange(3)))
    assert [batch["rows"].tolist() for batch in steps] == [[0, 1], [0], [0]]
    assert sorted(seen(reader, 0, [0, 1, 2], 0)) == list(range(5))
    assert steps[-1]["tokens"].shape[1] == 1  # the last batch has the one remaining block


def test_half_an_epoch_reads_half_the_blocks():
    assert len(seen(batches((8,), batch_size=2, local_epochs=0.5), 0, [0], 0)) == 4


@pytest.mark.parametrize(
    ("num_blocks", "batch_size", "epochs", "sizes"),
    [
        (5, 2, 1.0, [2, 2, 1]),
        (5, 2, 2.0, [2] * 5),  # the third batch has the last block of the first pass and the first one of the second
        (5, 3, 3.0, [3] * 5),
        (5, 4, 0.5, [3]),
        (7, 2, 1.5, [2, 2, 2, 2, 2, 1]),
        (3, 8, 2.0, [6]),
        (10, 2, 0.3, [2, 1]),  # 0.3 of 10 blocks are 3 and not 4, whatever the rounding of the product
        (10, 2, 1.1, [2, 2, 2, 2, 2, 1]),
        (1, 4, 0.001, [1]),
    ],
)
def test_local_epochs_take_as_many_steps_as_documented(num_blocks, batch_size, epochs, sizes):
    reader = batches((num_blocks,), batch_size=batch_size, local_epochs=epochs)
    assert [batch["tokens"].shape[1] for batch in reader(0, torch.tensor([0]))] == sizes
    read = seen(reader, 0, [0], 0)
    assert all(
        sorted(read[start : start + num_blocks]) == list(range(num_blocks)) for start in range(0, len(read) - num_blocks, num_blocks)
    )


def test_weight_counts_the_predicted_tokens_only():
    (batch,) = batches((1,), batch_size=1, local_steps=1)(0, torch.tensor([0]))
    assert batch["loss_mask"].tolist() == [[[True, True, False, False]]]
    assert batch["weight"].tolist() == [1]  # the first of the two tokens is context


def test_padding_sequences_of_a_batch_have_no_effect():
    (first, *_) = batches((4, 1), batch_size=3, local_epochs=1.0)(0, torch.arange(2))
    assert first["loss_mask"].any(2).tolist() == [[True, True, True], [True, False, False]]


def test_clients_without_blocks_take_no_step():
    assert list(batches((0, 0), batch_size=2, local_epochs=1.0)(0, torch.arange(2))) == []
    assert list(batches((0, 0), batch_size=2, local_steps=3)(0, torch.arange(2))) == []


def test_clients_of_equal_size_read_in_different_orders():
    reader = batches((9, 9), batch_size=3, local_steps=3)
    one, two = ([block % 100 for block in seen(reader, 0, [0, 1], client)] for client in (0, 1))
    assert sorted(one) == sorted(two)
    assert one != two


def test_a_reused_batch_trains_the_same_clients():
    both = clients((1.0, 1.0), (1.0, 1.0), steps=3)
    once = next(iter(both(0, torch.tensor([1]))))
    kept = {**once, "rows": torch.tensor([1])}
    client_pool = ClientSimulator(2, loss, lambda round, cohort: [kept] * 3, Sgd(0.1))
    (done,) = run_rounds(init_state(FedAvg(), params(0.0), 2), client_pool, FedAvg(), num_rounds=1, cohort_size=2, seed=0)
    assert kept.keys() == {*once, "rows"}
    assert done.update.steps.tolist() == [0, 3]  # the first client is inactive in every step
    assert client_losses_per_model(client_pool, done.after, 2).isnan().flatten().tolist() == [True, False]
    assert "rows" in kept
