"""Whom the final models serve, client by client: on text like the client's own, and on all the text that it has not."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..tree import Tree
from ..values import State
from .loss import Losses, by_domain, named, shares
from .probe import Reading


def served(losses: Losses, state: State) -> Reading:
    """``loss.own`` and ``loss.cross`` of every client ``[N]`` under the model that it uses, nats per token.

    Own: on text mixed as the client's own and as it writes it. Cross: on text as found, the mean over the domains by 1 - q_kj,
    what client k lacks of domain j, q_kj being the share of its training tokens; of a client of one domain it is the plain mean
    over all others. NaN where a client has no text, or lacks none. Domains without held-out text, and those that nobody
    trains on, say nothing.
    """
    held = losses.held_out
    sums, group = (worn_by_row(losses, state), torch.arange(len(state.group))) if losses.wear else (
        losses.by_row(state), state.group)
    amount, tokens = shares(losses.whole, sums, group)
    there = (np.bincount(held.domain, minlength=len(held.names)) > 0) & (held.mix.sum(0) > 0)
    mix = torch.from_numpy(held.mix * there).double()
    lacks = (1 - mix / mix.sum(1, keepdim=True)).clamp_min(0) * torch.from_numpy(there)
    table = by_domain(held, sums[:, :len(held.blocks)])[group]
    cross = (table * lacks).where(lacks != 0, 0.0).sum(1) / lacks.sum(1)
    return named({"loss.own": amount.sum(1) / tokens.sum(1), "loss.cross": cross}, losses.prefix)


@torch.no_grad()
def worn_by_row(losses: Losses, state: State) -> Tensor:
    """The summed loss of every client's own model on every block, ``[N, E']``; one client after another."""
    assert losses.wear is not None
    every, rows = np.arange(len(losses.whole.blocks))[None], []
    for client in range(len(state.group)):
        one = torch.tensor([client])
        group = state.group[one]
        shared = state.server.params.rows(group)
        memory = state.memory.rows(one).to(next(iter(shared.values())).device)
        params = Tree({**losses.wear(shared, memory), **state.server.under(group)})
        rows.append(losses.positions(params, every).sum(2).double())
    return torch.cat(rows)


__all__ = ["served"]
