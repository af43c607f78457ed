"""Test that a client with a finite loss and a non-finite update fails, and how finite rows are detected."""

from __future__ import annotations

import torch

from fedrift.algorithms import FedAvg
from fedrift.core.optimizers import Sgd
from fedrift.core.tree import Tree
from fedrift.engine.loop import init_state, run_rounds
from fedrift.simulation import ClientSimulator


def test_a_client_with_an_infinite_gradient_is_excluded_from_the_mean():
    """The derivative of sqrt(x) at 0 is infinite, and the loss there is 0."""
    shift = torch.tensor([1.0, 0.0])

    def loss(params, batch):
        return (params["x"][:, 0] - batch["shift"]).sqrt()

    simulator = ClientSimulator(2, loss, lambda round, cohort: iter([{"shift": shift[cohort]}]), Sgd(0.5))
    (done,) = run_rounds(init_state(FedAvg(), Tree(x=torch.ones(1, 1)), 2), simulator, FedAvg(), num_rounds=1, cohort_size=2, seed=0)
    assert done.update.loss.isfinite().all()
    assert done.update.failed.tolist() == [True, False]
    assert done.after.server.params["x"].item() == 0.75  # the step of the other client only


def test_a_row_is_finite_if_its_numbers_are_although_their_sum_is_not():
    most = torch.finfo(torch.float32).max
    tree = Tree(a=torch.tensor([[most, most], [1.0, torch.inf], [torch.inf, -torch.inf], [torch.nan, 0.0], [1.0, 2.0]]))
    assert tree.is_finite().tolist() == [True, False, False, False, True]
    assert tree.take(slice(4, 5)).is_finite().tolist() == [True]
