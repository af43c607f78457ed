"""The models of a round as they are worn: trained parts and, with them, what lies under adapters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..tree import Tree
from ..values import Round, State


def server_models(state: State) -> Tree:
    """The server's models, ``[M, ...]``."""
    return Tree({**state.server.params, **state.server.base})


def begun(start: Tree, like: Tree) -> Tree:
    """w_0 ``[1, ...]`` with all leaves of a worn model; what lies under adapters is zero at the beginning."""
    return Tree({name: start.get(name, torch.zeros_like(leaf)) for name, leaf in like.items()})


def client_models(done: Round) -> Tree:
    """The cohort's models as trained, before aggregation, ``[C, ...]``; what all have under them leads with 1."""
    groups = done.before.group[done.cohort]
    return Tree({**done.local, **done.before.server.under(groups)})


def one_client(done: Round, row: int) -> Tree:
    """The model of the cohort's client ``row``, ``[1, ...]``."""
    groups = done.before.group[done.cohort][row:row + 1]
    return Tree({**done.local.rows(slice(row, row + 1)), **done.before.server.under(groups)})


def sound(done: Round) -> Tensor:
    """Which clients of the cohort trained and sent numbers, ``[C]`` bool."""
    return (~done.report.failed & (done.report.steps > 0)).cpu()


def shares(state: State) -> Tensor:
    """The share of the fleet that each model serves, ``[M]`` float64."""
    return state.group.cpu().bincount(minlength=state.server.models).double() / len(state.group)


def mean_model(values: Tensor, state: State) -> Tensor:
    """The mean over the fleet of what each of its models has, ``[M, ...] -> [...]``; models that nobody shares say nothing."""
    share = shares(state).view(-1, *[1] * (values.ndim - 1))
    return torch.where(share > 0, values.cpu().double() * share, 0.0).sum(0)


def of_each(models: Tree, score: Callable[[Tree], Tensor]) -> Tensor:
    """``score`` of every model ``[1, ...]`` by itself, ``[M, ...]``; of models that are equal, as all are at first, it is asked
    once."""
    known: list[tuple[Tree, Tensor]] = []
    found = []
    for number in range(len(next(iter(models.values())))):
        one = models.rows(slice(number, number + 1))
        told = next((value for other, value in known if all(torch.equal(one[name], other[name]) for name in one)), None)
        if told is None:
            known.append((one, told := score(one)))
        found.append(told)
    return torch.stack(found)


def layer_name(layer: int) -> str:
    return f"layer {layer:02d}"
