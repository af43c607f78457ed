"""The state between two rounds, on disk: saved after a round, read by a run that resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from ..memory import Memory
from ..store import Run
from ..store.tensors import load_state, save_state
from ..tree import Tree
from ..values import Server, State

PARTS = tuple(f"server.{f.name}" for f in fields(Server))  # of a state, that are trees on the server's device


def keep(run: Run, state: State) -> None:
    """Store all that a run is between two rounds."""
    tensors = named(state)
    save_state(run.state_path, tensors, {"round": state.round, "leaves": list(tensors)})


def restored(run: Run, like: State) -> State | None:
    """The state that was stored last, None if none was; ``like``: round 0, for the device and for what old runs did not store."""
    if not run.state_path.exists():
        return None
    stored, said = load_state(run.state_path)
    # In the order they were in, for sums over leaves; and cloned: numbers read from a file may lie at odd addresses,
    # where matrix products round differently.
    tensors = {name: stored[name].clone() for name in said["leaves"]}
    return state_of(tensors, said["round"], device(like), like.last)


def named(state: State) -> dict[str, Tensor]:
    """All tensors of a state by ``<part>/<leaf>``, but ``group`` and ``last`` by their names."""
    trees: dict[str, Tree] = {part: getattr(state.server, part.partition(".")[2]) for part in PARTS}
    trees |= {"memory": state.memory.whole(), "moved": state.moved, "mitigation": state.mitigation}
    tensors = {f"{part}/{name}": leaf for part, tree in trees.items() for name, leaf in tree.items()}
    return {**tensors, "group": state.group, "last": state.last}


def state_of(tensors: Mapping[str, Tensor], round: int, where: torch.device, last: Tensor) -> State:
    """What ``named`` took apart, the server's half on its device. ``last``: in its place, where it was not stored."""
    server = Server(*(tree_of(tensors, part).to(where) for part in PARTS))
    memory = Memory.of(tree_of(tensors, "memory"), len(tensors["group"]))
    return State(round, server, memory, tensors["group"], tree_of(tensors, "moved").to(where), tree_of(tensors, "mitigation"),
                 tensors.get("last", last))


def tree_of(tensors: Mapping[str, Tensor], part: str) -> Tree:
    start = part + "/"
    return Tree({name[len(start):]: leaf for name, leaf in tensors.items() if name.startswith(start)})


def device(state: State) -> torch.device:
    return next(iter(state.server.params.values())).device
