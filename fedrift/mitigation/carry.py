"""From one grouping to the next: which model goes where, who is held back, and what becomes of the server's state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..algorithms import FedAvg
from ..tree import Tree
from ..values import Server, State
from .decision import Decision


def carried(state: State, decision: Decision, algorithm: FedAvg) -> State:
    """The state under a new grouping: every model with its moments, its last move and what is merged under it.

    What the server keeps as a mean of its members' memories (SCAFFOLD's c) is told anew from the members there are now. Where
    nothing changes, nothing is touched.
    """
    group, parents = (decision.group, decision.parents) if decision.parents is not None else follow(
        state.group.numpy(), decision.group, state.server.models, decision.models)
    assert parents is not None
    new, rows = torch.as_tensor(group).long(), torch.as_tensor(parents).long()
    server, moved = state.server, state.moved
    if not torch.equal(rows, torch.arange(server.models)):
        server, moved = taken(server, rows), moved.rows(rows.to(device(moved)) if moved else rows)
        state = replace(state, averages=Tree())
    if not torch.equal(new, state.group):
        server = algorithm.regroup(server, state.memory.whole(), new)
        state = replace(state, averages=Tree())  # of other members: the round loop computes them anew
    return replace(state, server=server, moved=moved, group=new, mitigation=decision.keep)


def taken(server: Server, rows: torch.Tensor) -> Server:
    """The server with these of its models."""
    rows = rows.to(device(server.params))
    return Server(*(tree.rows(rows) for tree in (server.params, server.shared, server.moments, server.base)))


def follow(old: np.ndarray, new: np.ndarray, former: int, models: int) -> tuple[np.ndarray, np.ndarray]:
    """Models go with their clients: the new groups ``[N]``, numbered after the old they overlap most, and ``parents [M]``.

    Numbers are given so that as many clients as can be keep theirs (Kuhn, Naval Research Logistics 2, 1955); a group left over
    begins as the model that most of its members had.
    """
    from scipy.optimize import linear_sum_assignment

    both = np.zeros((models, former), dtype=np.int64)
    np.add.at(both, (new, old), 1)
    number = np.full(models, -1)
    for group, before in zip(*linear_sum_assignment(-both), strict=True):
        if before < models and both[group, before]:
            number[group] = before
    free = [one for one in range(models) if one not in set(number.tolist())]
    number[number < 0] = free
    parents = np.empty(models, dtype=np.int64)
    parents[number] = both.argmax(axis=1)
    return number[new], parents


def hysteresis(apart: np.ndarray, now: np.ndarray, ratio: float) -> np.ndarray:
    """Who is nearest to which group, ``apart [N, M] -> [N]``; a client leaves its own for one at less than ``ratio`` of its
    distance only."""
    rows = np.arange(len(apart))
    best = apart.argmin(axis=1)
    return np.where(apart[rows, best] < ratio * apart[rows, now], best, now)


def device(tree: Tree) -> torch.device:
    return next(iter(tree.values())).device


__all__ = ["carried", "follow", "hysteresis", "taken"]
