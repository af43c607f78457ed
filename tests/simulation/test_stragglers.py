"""Test that stragglers take the first of their steps, which do not depend on whether their work is used."""

from __future__ import annotations

import numpy as np
import torch

from fedrift.simulation.batches import StragglingBatches

from .test_batches import blocks_of

CLIENTS = 40


def reader(share: float, late="partial", steps: int = 6, seed: int = 3, **options) -> StragglingBatches:
    blocks = tuple(blocks_of(5, client) for client in range(CLIENTS))
    return StragglingBatches(blocks, batch_size=2, seed=seed, local_steps=steps, straggler_fraction=share, straggler_policy=late, **options)


def count_steps(batches: StragglingBatches, round: int = 0) -> np.ndarray:
    """Return the number of steps of every client, ``[N]``."""
    count = np.zeros(CLIENTS, dtype=int)
    for batch in batches(round, torch.arange(CLIENTS)):
        count[batch["rows"].numpy()] += 1
    return count


def test_no_client_straggles_at_fraction_0_and_every_client_at_1():
    assert (count_steps(reader(0.0)) == 6).all()
    assert (count_steps(reader(1.0)) < 6).all()


def test_the_steps_of_stragglers_are_uniformly_distributed():
    steps = np.concatenate([count_steps(reader(0.9), round) for round in range(50)])
    assert abs((steps < 6).mean() - 0.9) < 0.03
    late = steps[steps < 6]
    assert set(late) == {1, 2, 3, 4, 5}
    assert np.abs(np.bincount(late, minlength=6)[1:] / len(late) - 0.2).max() < 0.04


def test_stragglers_depend_on_seed_client_and_round_only():
    first = count_steps(reader(0.5))
    assert (first == count_steps(reader(0.5))).all()
    assert (first != count_steps(reader(0.5), round=1)).any()
    assert (first != count_steps(reader(0.5, seed=4))).any()
    alone = sum(1 for _ in reader(0.5)(0, torch.tensor([7])))
    assert alone == first[7]


def test_the_dropped_clients_are_those_with_partial_work():
    kept, dropped = count_steps(reader(0.5)), count_steps(reader(0.5, "drop"))
    assert ((kept < 6) == (dropped == 0)).all()
    assert (dropped[kept == 6] == 6).all()


def test_a_straggler_takes_the_first_of_its_steps():
    whole, part = reader(0.0), reader(1.0)
    for client in range(CLIENTS):
        done = part.block_order(client, 2)
        assert len(done) % 2 == 0 and 0 < len(done) < 12
        assert (done == whole.block_order(client, 2)[: len(done)]).all()


def test_epochs_are_cut_short_too():
    whole, part = count_steps(reader(0.0, local_epochs=2.0)), count_steps(reader(1.0, local_epochs=2.0))
    assert (whole == 5).all()
    assert ((part >= 1) & (part < 5)).all()


def test_a_single_step_is_taken_or_dropped():
    assert (count_steps(reader(1.0, steps=1)) == 1).all()
    assert (count_steps(reader(1.0, "drop", steps=1)) == 0).all()


def test_a_client_without_data_or_steps_takes_no_steps():
    assert (count_steps(reader(1.0, steps=0)) == 0).all()
