"""The state between two rounds, on disk: saved after a round, read by a run that resumes.

    state.safetensors   all but what clients keep; for each client the slot of its memory and the digest of what is in it
    memory.rows         what clients keep, in slots of one size (``fedrift.store.slots``)

A save writes the memory of those clients only that have changed since the last one, to slots that the stored state does not
use, and then replaces the state. Killed at any moment, a run has the state before or the one after, and the slots of either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..memory import Memory
from ..store import Run
from ..store.files import in_words
from ..store.slots import Slots, digest
from ..store.tensors import WAY_OUT, load_state, save_state
from ..tree import Tree
from ..values import Server, State
from .history import note_history

PARTS = tuple(f"server.{f.name}" for f in fields(Server))  # of a state, that are trees on the server's device
MISFITS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)  # what comes of leaves of other names or shapes
Layout = list[list[Any]]  # name, dtype and shape of each leaf of a client's memory


class Checkpoint:
    """The stored state of one run, and what this process knows to be in it. One process at a time writes a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.clients: tuple[Tree, ...] = ()  # as they were saved or loaded last
        self.slot = torch.zeros(0, dtype=torch.long)  # [N]
        self.digest = torch.zeros(0, 32, dtype=torch.uint8)  # [N, 32]

    def save(self, state: State) -> None:
        """Store all that a run is between two rounds."""
        tensors = named(state, memory=False)
        meta: dict[str, Any] = {"round": state.round, "history": note_history(self.run, state.round)}
        clients, slot, told = state.memory.clients if state.memory else (), self.slot, self.digest
        if clients:
            slot, told = self._write(clients)
            tensors |= {"memory.slot": slot, "memory.digest": told}
            meta["memory"] = layout(clients[0])
        save_state(self.run.state_path, tensors, meta | {"leaves": list(tensors)})
        self.clients, self.slot, self.digest = clients, slot, told

    def load(self, like: State) -> State | None:
        """The state that was stored last, None if none was; ``like``: round 0, for the device and for what old runs did not
        store."""
        if not self.run.state_path.exists():
            return None
        tensors, round, memory = self.read()
        try:
            expected, found = ({name: leaf.shape[1:] for name, leaf in tree.items()}
                               for tree in (like.server.params, tree_of(tensors, "server.params")))
            if expected != found:
                raise ValueError("its server.params have other leaves")
            return state_of(tensors, round, device(like), like.last, memory)
        except MISFITS as error:
            raise self._no_state(error) from error

    def read(self) -> tuple[dict[str, Tensor], int, Memory]:
        """What is stored: the tensors by name, the round, and what clients keep."""
        stored, said = load_state(self.run.state_path)
        try:
            # In the order they were in, for sums over leaves; and cloned: numbers read from a file may lie at odd addresses,
            # where matrix products round differently.
            tensors = {name: stored[name].clone() for name in said["leaves"]}
            round = int(said["round"])
            if "memory" not in said:  # nobody keeps anything, or the run is of a version that stored it among the tensors
                return tensors, round, Memory.of(tree_of(tensors, "memory"), len(tensors["group"]))
            slot, told = tensors.pop("memory.slot"), tensors.pop("memory.digest")
            memory = self._read(slot, told, said["memory"])
        except MISFITS as error:
            raise self._no_state(error) from error
        self.clients, self.slot, self.digest = memory.clients, slot, told
        return tensors, round, memory

    def _no_state(self, error: Exception) -> UserError:
        return UserError(f"{self.run.state_path} is not a state of this run ({in_words(error)}). {WAY_OUT}")

    def _write(self, clients: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """Write the memory of the clients that have changed; every client's slot ``[N]`` and digest ``[N, 32]``."""
        known = len(self.clients) == len(clients)
        slot = self.slot.clone() if known else torch.zeros(len(clients), dtype=torch.long)
        told = self.digest.clone() if known else torch.zeros(len(clients), 32, dtype=torch.uint8)
        alike: dict[int, list[int]] = {}  # clients that share one tree have one slot
        for client in changed(self.clients, clients) if known else range(len(clients)):
            alike.setdefault(id(clients[client]), []).append(client)
        records = [packed(clients[who[0]]) for who in alike.values()]
        if not records:
            return slot, told
        free, slots = self._free(len(records), len(records[0]))
        slots.write(dict(zip(free, records, strict=True)))
        for place, record, who in zip(free, records, alike.values(), strict=True):
            slot[who], told[who] = place, torch.frombuffer(bytearray(digest(record)), dtype=torch.uint8)
        return slot, told

    def _free(self, count: int, size: int) -> tuple[list[int], Slots]:
        """The first ``count`` slots that the stored state does not use, and the file."""
        slots = Slots(self.run.memory_path, size)
        if self.clients:
            used = self.slot
        elif self.run.state_path.exists():  # a state that this process does not know may use any slot
            used = torch.arange(len(slots))
        else:
            self.run.memory_path.unlink(missing_ok=True)  # what is there belongs to no state
            used = torch.arange(0)
        free = torch.ones(int(used.max()) + 1 + count if len(used) else count, dtype=torch.bool)
        free[used] = False
        return free.nonzero().flatten()[:count].tolist(), slots

    def _read(self, slot: Tensor, told: Tensor, leaves: Layout) -> Memory:
        """What all clients keep."""
        digests = {place: bytes(row.tolist()) for place, row in zip(slot.tolist(), told, strict=True)}
        records = Slots(self.run.memory_path, sum(nbytes(*leaf[1:]) for leaf in leaves)).read(digests)
        trees = {place: unpacked(record, leaves) for place, record in records.items()}
        return Memory(tuple(trees[place] for place in slot.tolist()))


def restored(run: Run, like: State) -> State | None:
    """The state that a run stored last, None if it stored none; ``like`` is as for ``Checkpoint.load``."""
    return Checkpoint(run).load(like)


def changed(before: Sequence[Tree], after: Sequence[Tree]) -> list[int]:
    """The clients whose tree is another one; a memory that stays is the same object (``Memory.put``)."""
    return [client for client, (old, new) in enumerate(zip(before, after, strict=True)) if old is not new]


def layout(tree: Tree) -> Layout:
    return [[name, str(leaf.dtype).removeprefix("torch."), list(leaf.shape)] for name, leaf in tree.items()]


def packed(tree: Tree) -> bytes:
    """The bytes of all leaves, one after the other."""
    return torch.cat([leaf.detach().cpu().contiguous().flatten().view(torch.uint8) for leaf in tree.values()]).numpy().tobytes()


def unpacked(record: bytes, leaves: Layout) -> Tree:
    """The tree that ``packed`` made bytes of; each leaf has an aligned memory of its own."""
    whole = torch.frombuffer(bytearray(record), dtype=torch.uint8)
    parts = whole.split([nbytes(*leaf[1:]) for leaf in leaves])  # type: ignore[no-untyped-call]
    return Tree({name: part.clone().view(getattr(torch, dtype)).view(shape)
                 for part, (name, dtype, shape) in zip(parts, leaves, strict=True)})


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    return int(getattr(torch, dtype).itemsize * torch.Size(shape).numel())


def named(state: State, memory: bool = True) -> dict[str, Tensor]:
    """All tensors of a state by ``<part>/<leaf>``, but ``group`` and ``last`` by their names. ``memory``: what all clients keep
    is copied into one tree ``[N, ...]`` among them."""
    trees: dict[str, Tree] = {part: getattr(state.server, part.partition(".")[2]) for part in PARTS}
    trees |= {"memory": state.memory.whole() if memory else Tree(), "moved": state.moved, "mitigation": state.mitigation,
              "averages": state.averages}
    tensors = {f"{part}/{name}": leaf for part, tree in trees.items() for name, leaf in tree.items()}
    return {**tensors, "group": state.group, "last": state.last}


def state_of(tensors: Mapping[str, Tensor], round: int, where: torch.device, last: Tensor, memory: Memory) -> State:
    """The state of tensors by name, the server's half on its device. ``last``: in its place, where it was not stored."""
    server = Server(*(tree_of(tensors, part).to(where) for part in PARTS))
    return State(round, server, memory, tensors["group"], tree_of(tensors, "moved").to(where), tree_of(tensors, "mitigation"),
                 tensors.get("last", last), tree_of(tensors, "averages"))


def tree_of(tensors: Mapping[str, Tensor], part: str) -> Tree:
    start = part + "/"
    return Tree({name[len(start):]: leaf for name, leaf in tensors.items() if name.startswith(start)})


def device(state: State) -> torch.device:
    return next(iter(state.server.params.values())).device


__all__ = ["Checkpoint", "named", "restored", "state_of", "tree_of"]
