"""What clients would lose under each of the server's models: how they choose one."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from ..tree import Tree
from ..values import State
from .simulated import SimulatedFleet, taken_rows


@torch.no_grad()
def losses_of(fleet: SimulatedFleet, state: State, batches: int) -> Tensor:
    """Every client's loss under every model on the first batches it would train on next, ``[N, M]``; NaN without any."""
    server = state.server
    total = torch.zeros(fleet.size, server.models, dtype=torch.float64)
    count = torch.zeros(fleet.size, dtype=torch.float64)
    for cohort in torch.arange(fleet.size).split(fleet.micro or fleet.size):  # type: ignore[no-untyped-call]
        for batch in islice(fleet.batches(state.round, cohort), batches):
            rows, batch = taken_rows(batch, len(cohort))
            who = cohort[rows]
            weight = batch.get("weight", torch.ones(len(who))).double().cpu()
            count[who] += weight
            for model in range(server.models):
                group = torch.full((len(who),), model)
                found = fleet.objective(Tree({**server.params.rows(group), **server.under(group)}), batch)
                total[who, model] += found.double().cpu() * weight
    return total / count.where(count > 0, torch.nan).unsqueeze(1)


__all__ = ["losses_of"]
