"""A client whose loss is finite and whose update is not: caught by the update, not by the loss; and what finite rows are."""

from __future__ import annotations

import torch

from fedrift.algorithms import FedAvg
from fedrift.core.optimizers import Sgd
from fedrift.core.tree import Tree
from fedrift.engine.loop import init_state, run_rounds
from fedrift.simulation import ClientSimulator


def test_an_infinite_gradient_at_a_finite_loss_is_left_out_of_the_mean():
    """The slope of sqrt(x) at 0 is infinite; the loss there is 0."""
    shift = torch.tensor([1.0, 0.0])

    def loss(params, batch):
        return (params["x"][:, 0] - batch["shift"]).sqrt()

    fleet = ClientSimulator(2, loss, lambda round, cohort: iter([{"shift": shift[cohort]}]), Sgd(0.5))
    (done,) = run_rounds(init_state(FedAvg(), Tree(x=torch.ones(1, 1)), 2), fleet, FedAvg(), num_rounds=1, cohort_size=2, seed=0)
    assert done.update.loss.isfinite().all()
    assert done.update.failed.tolist() == [True, False]
    assert done.after.server.params["x"].item() == 0.75  # the sound client's step alone


def test_rows_are_finite_by_their_numbers_and_not_by_their_sums():
    most = torch.finfo(torch.float32).max
    tree = Tree(a=torch.tensor([[most, most], [1.0, torch.inf], [torch.inf, -torch.inf], [torch.nan, 0.0], [1.0, 2.0]]))
    assert tree.is_finite().tolist() == [True, False, False, False, True]
    assert tree.take(slice(4, 5)).is_finite().tolist() == [True]
