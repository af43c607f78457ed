"""Clients left out by a fork: they are called and train as before, and what they send counts for nothing.

Cohorts, batches and everybody else's work stay what they were, so that what differs is the absence and nothing beside it. Before
the server such a client is one that failed: weight 0, delta 0, its memory as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..experiment import Fork
from ..fleet import Fleet
from ..fleet.fleet import Rule
from ..tree import Tree
from ..values import Report, State

WHY = "left out by the replay"


@dataclass(frozen=True, eq=False)
class ForkedFleet:
    """A fleet from a fork on. ``sent``: the cohort and report that the first round takes from the record, if it does."""

    inner: Fleet
    fork: Fork
    sent: Callable[[], tuple[Tensor, Report]] | None = None

    @property
    def size(self) -> int:
        return self.inner.size

    def train(self, state: State, algorithm: Rule, cohort: Tensor) -> Report:
        """One round of local training, ``cohort [C] -> Report``."""
        if self.sent and state.round + 1 == self.fork.round:
            recorded, report = self.sent()
            if not torch.equal(recorded, cohort):
                raise ValueError(f"round {self.fork.round} was recorded of {recorded.tolist()}, and {cohort.tolist()} are called")
        else:
            report = self.inner.train(state, algorithm, cohort)
        gone = torch.isin(cohort, torch.tensor(self.fork.dropped(state.round + 1), dtype=torch.long))
        return without(report, state.memory.rows(cohort), gone) if gone.any() else report


def without(report: Report, old: Tree, gone: Tensor) -> Report:
    """The report in which those who are ``gone [C]`` failed; ``old [C, ...]``: what they remembered before."""
    here = ~gone.to(report.weight.device)
    zeros, said = report.delta.zeros(), report.why or ("",) * len(gone)
    return replace(report, delta=report.delta.where(here, zeros), gradient=report.gradient.where(here, zeros),
                   memory=report.memory.where(~gone, old), news=report.news.where(here, report.news.zeros()),
                   weight=report.weight * here, failed=report.failed | gone,
                   why=tuple(WHY if out else why for out, why in zip(gone.tolist(), said, strict=True)))


__all__ = ["ForkedFleet", "without"]
