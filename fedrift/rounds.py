"""The round loop: a generator of rounds that owns nothing.

No file, no print, no model, no early stop: whoever iterates decides what to store, show and when
to end. ``State`` is a value, so a run that resumes is a run that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .algorithms.fedavg import FedAvg, members, pool
from .fleet.fleet import Fleet
from .memory import Memory
from .seeds import number, numpy_stream
from .tree import Tree
from .values import Draw, Regroup, Report, Round, State


def begin(algorithm: FedAvg, params: Tree, size: int) -> State:
    """Round 0, from one set of params ``[1, ...]``: each group of clients gets its copy."""
    group = algorithm.groups(size)
    models = params.rows(torch.zeros(int(group.max()) + 1, dtype=torch.long))
    memory = Memory.alike(algorithm.memory(params.to(torch.device("cpu"))), size)
    return State(0, algorithm.begin(models), memory, group)


def anybody(state: State, count: int, seed: int) -> Tensor:
    """A cohort of the whole fleet, whoever shares which model, ``[C]``."""
    return sample(len(state.group), count, seed, state.round)


def stay(done: Round) -> State:
    """No mitigation: everybody goes on sharing the model they share."""
    return done.after


def rounds(state: State, fleet: Fleet, algorithm: FedAvg, *, until: int, cohort: int, seed: int,
           regroup: Regroup = stay, draw: Draw = anybody) -> Iterator[Round]:
    """Yield round after round, from ``state`` up to and including ``until``."""
    state = with_averages(state, algorithm)
    while state.round < until:
        who = draw(state, cohort, seed)
        report = replace(fleet.train(state, algorithm, who), draw=number(seed, "server", state.round))
        server = algorithm.absorb(state.server, report)
        after = replace(state, round=state.round + 1, server=server, memory=state.memory.put(who, report.memory),
                        moved=server.params - state.server.params, last=counted(state, who, report),
                        averages=averages_after(state, algorithm, who, report))
        done = Round(state, after, who, report)
        done = replace(done, after=with_averages(regroup(done), algorithm))
        yield done
        state = done.after


def counted(state: State, who: Tensor, report: Report) -> Tensor:
    """The last round in which each client's report counted, this one included, ``[N]``."""
    last = state.last if len(state.last) else torch.zeros_like(state.group, device="cpu")
    return last.index_fill(0, who[~report.failed], state.round + 1)


def with_averages(state: State, algorithm: FedAvg) -> State:
    """The state with the averages that the algorithm asks for, computed from all clients where the state has none."""
    if state.averages or not algorithm.averaged(state.memory.rows(slice(0, 1))):
        return state
    every = algorithm.averaged(state.memory.whole())
    like = every.map(lambda leaf: leaf.new_zeros((state.server.models, *leaf.shape[1:]), dtype=torch.float64))
    return replace(state, averages=members(every, state.group.cpu(), like))


def averages_after(state: State, algorithm: FedAvg, who: Tensor, report: Report) -> Tree:
    """The averages after a round, from what the cohort ``who [C]`` kept before and after it."""
    if not state.averages:
        return state.averages
    new, old = algorithm.averaged(report.memory), algorithm.averaged(state.memory.rows(who))
    share = None if report.share is None else report.share.cpu()
    here = replace(report, group=report.group.cpu(), population=report.population.cpu(), weight=report.weight.cpu(), share=share)
    return state.averages + pool(new.to(torch.float64) - old.to(torch.float64), here) / here.population.clamp_min(1)


def sample(size: int, count: int, seed: int, round: int) -> Tensor:
    """``count`` of the clients, without replacement, ascending ``[C]``.

    Only seed and round decide, so that all algorithms see the same cohorts.
    """
    if not 1 <= count <= size:
        raise ValueError(f"a cohort takes 1 to {size} clients, not {count}")
    drawn = numpy_stream(seed, "cohort", round).permutation(size)[:count]
    return torch.from_numpy(drawn).sort().values
