"""What a run had written when its state was stored, noted in the state: a run that lost rows since is refused, not resumed.

Rows are written first and the state second, so the files of a run begin with what they were when the state was stored. What
follows there may be torn or of a round that is repeated; what was there before has to be there still.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.tree import Tree
from ..core.types import ClientStateStore, FederatedState, ServerState
from . import jsonl
from .files import format_error
from .run import Run
from .tensors import STATE_RECOVERY_HINT, SlotFile, compute_record_digest, load_tensors, read_metadata, save_tensors

GROWING_FILES = ("records.jsonl", "events.jsonl")


def summarize_history(run: Run, round: int) -> dict[str, Any]:
    """How far the run's files have come after ``round``, plain JSON for the meta of the state that is about to be stored."""
    before = read_metadata(run.state_path)[0].get("history", {}) if run.state_path.is_file() else {}
    kept = list_recorded_rounds(run)
    return {
        **{name: jsonl.compute_checksum(run.folder / name, before.get(name, jsonl.EMPTY_CHECKSUM)) for name in GROWING_FILES},
        "clustering": _checksum_assignments(run, round),
        "updates": kept[0] if kept else None,
    }


def check_history(run: Run) -> None:
    """Raise UserError where a run that has a state lost something that it wrote before that state; call it before ``rewind``.

    A round whose state was stored, but not yet its timing, gets an empty timing: its seconds are not known.
    """
    if not run.state_path.exists():
        return
    meta, digest = read_metadata(run.state_path)
    round, noted = meta.get("round"), meta.get("history")
    if not isinstance(round, int):
        raise UserError(f"{run.state_path} does not say of which round it is. {STATE_RECOVERY_HINT}")
    if digest is None:
        run.log_event(round, "older state", "an older fedrift stored the state, without a digest: whether it is damaged is not known")
    if not isinstance(noted, Mapping):
        return
    for name in GROWING_FILES:
        path = run.folder / name
        if not jsonl.has_prefix(path, noted[name]):
            raise _resume_error(run, round, f"{name} {_describe_loss(run, name, round, noted[name][0])}")
    if _checksum_assignments(run, round) != noted["clustering"]:
        raise _resume_error(run, round, f"clustering.json has not the {noted['clustering'][0]} decisions that were made until then")
    first = noted["updates"]
    missing = sorted(set(range(first, round + 1)) - set(list_recorded_rounds(run))) if first is not None else []
    if missing:
        raise _resume_error(run, round, f"the updates of {_format_rounds(missing)} are missing")
    timed = {row["round"] for row in run.timings()}
    missing = [each for each in range(round) if each not in timed]
    if missing:
        raise _resume_error(run, round, f"timings.jsonl has no line of {_format_rounds(missing)}")
    if round not in timed:  # killed between the state and the timing
        run.log_timing(round)


def list_recorded_rounds(run: Run) -> list[int]:
    """The rounds whose updates are kept, ascending."""
    return sorted(int(path.stem) for path in (run.folder / "updates").glob("[0-9]*.parquet") if path.stem.isdigit())


def _resume_error(run: Run, round: int, reason: str) -> UserError:
    return UserError(
        f"run {run.id} cannot be resumed from round {round}, it would have a hole: {reason}. Put a copy of the file "
        f"back in {run.folder}, or begin the run again (`fedrift run --fresh`, or remove that folder)"
    )


def _describe_loss(run: Run, name: str, round: int, size: int) -> str:
    path = run.folder / name
    there = path.stat().st_size if path.exists() else 0
    if not there:
        return "is missing" if not path.exists() else "is empty"
    if there < size:
        return f"has {there:,} of the {size:,} bytes that it had then"
    return f"is not what it was then: something in its first {size:,} bytes was changed or removed"


def _format_rounds(rounds: list[int]) -> str:
    shown = ", ".join(map(str, rounds[:5])) + (f" and {len(rounds) - 5} more" if len(rounds) > 5 else "")
    return f"round{'s' if len(rounds) > 1 else ''} {shown}"


def _checksum_assignments(run: Run, last_round: int) -> list[int]:
    """The number of the clustering's decisions up to a round, and their checksum."""
    said = [row for row in run.cluster_assignments() if row["round"] <= last_round]
    return [len(said), zlib.crc32(jsonl.to_json(said).encode())]


# The state between two rounds, on disk: saved after a round, read by a run that resumes.
#
# state.safetensors   all but what clients keep; for each client the slot of its state and the digest of what is in it
# client_states.rows  what clients keep, in slots of one size (``fedrift.storage.tensors``)
#
# A save writes the state of those clients only that have changed since the last one, to slots that the stored state does not
# use, and then replaces the state. Killed at any moment, a run has the state before or the one after, and the slots of either.

SERVER_PARTS = tuple(f"server.{f.name}" for f in fields(ServerState))  # of a state, that are trees on the server's device
# what comes of leaves of other names or shapes
LAYOUT_ERRORS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)
LeafLayout = list[list[Any]]  # name, dtype and shape of each leaf of a client's memory


class Checkpoint:
    """The stored state of one run, and what this process knows to be in it. One process at a time writes a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.client_states: tuple[Tree, ...] = ()  # as they were saved or loaded last
        self.slots = torch.zeros(0, dtype=torch.long)  # [N]
        self.digests = torch.zeros(0, 32, dtype=torch.uint8)  # [N, 32]

    def save(self, state: FederatedState) -> None:
        """Store all that a run is between two rounds."""
        tensors = flatten_state(state, include_client_states=False)
        meta: dict[str, Any] = {"round": state.round, "history": summarize_history(self.run, state.round)}
        clients, slot, told = state.client_states.states if state.client_states else (), self.slots, self.digests
        if clients:
            slot, told = self._write_client_states(clients)
            tensors |= {"client_states.slot": slot, "client_states.digest": told}
            meta["client_states"] = get_layout(clients[0])
        save_tensors(self.run.state_path, tensors, meta | {"leaves": list(tensors)})
        self.client_states, self.slots, self.digests = clients, slot, told

    def load(self, template: FederatedState) -> FederatedState | None:
        """The state that was stored last, None if none was; ``like``: round 0, for the device and for what old runs did not
        store."""
        if not self.run.state_path.exists():
            return None
        tensors, round, memory = self.read()
        try:
            expected, found = (
                {name: leaf.shape[1:] for name, leaf in tree.items()}
                for tree in (template.server.params, select_subtree(tensors, "server.params"))
            )
            if expected != found:
                raise ValueError("its server.params have other leaves")
            return unflatten_state(tensors, round, get_device(template), template.last_round_seen, memory)
        except LAYOUT_ERRORS as error:
            raise self._invalid_state_error(error) from error

    def read(self) -> tuple[dict[str, Tensor], int, ClientStateStore]:
        """What is stored: the tensors by name, the round, and what clients keep."""
        stored, said = load_tensors(self.run.state_path)
        try:
            # In the order they were in, for sums over leaves; and cloned: numbers read from a file may lie at odd addresses,
            # where matrix products round differently.
            tensors = {name: stored[name].clone() for name in said["leaves"]}
            round = int(said["round"])
            if "client_states" not in said:  # nobody keeps anything
                return tensors, round, ClientStateStore.replicate(Tree(), len(tensors["cluster_ids"]))
            slot, told = tensors.pop("client_states.slot"), tensors.pop("client_states.digest")
            memory = self._read_client_states(slot, told, said["client_states"])
        except LAYOUT_ERRORS as error:
            raise self._invalid_state_error(error) from error
        self.client_states, self.slots, self.digests = memory.states, slot, told
        return tensors, round, memory

    def _invalid_state_error(self, error: Exception) -> UserError:
        return UserError(f"{self.run.state_path} is not a state of this run ({format_error(error)}). {STATE_RECOVERY_HINT}")

    def _write_client_states(self, client_states: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """Write the memory of the clients that have changed; every client's slot ``[N]`` and digest ``[N, 32]``."""
        known = len(self.client_states) == len(client_states)
        slot = self.slots.clone() if known else torch.zeros(len(client_states), dtype=torch.long)
        told = self.digests.clone() if known else torch.zeros(len(client_states), 32, dtype=torch.uint8)
        alike: dict[int, list[int]] = {}  # clients that share one tree have one slot
        for client in find_changed(self.client_states, client_states) if known else range(len(client_states)):
            alike.setdefault(id(client_states[client]), []).append(client)
        records = [pack_tree(client_states[who[0]]) for who in alike.values()]
        if not records:
            return slot, told
        free, slots = self._find_free_slots(len(records), len(records[0]))
        slots.write(dict(zip(free, records, strict=True)))
        for place, record, who in zip(free, records, alike.values(), strict=True):
            slot[who], told[who] = place, torch.frombuffer(bytearray(compute_record_digest(record)), dtype=torch.uint8)
        return slot, told

    def _find_free_slots(self, count: int, record_size: int) -> tuple[list[int], SlotFile]:
        """The first ``count`` slots that the stored state does not use, and the file."""
        slots = SlotFile(self.run.client_state_path, record_size)
        if self.client_states:
            used = self.slots
        elif self.run.state_path.exists():  # a state that this process does not know may use any slot
            used = torch.arange(len(slots))
        else:
            self.run.client_state_path.unlink(missing_ok=True)  # what is there belongs to no state
            used = torch.arange(0)
        free = torch.ones(int(used.max()) + 1 + count if len(used) else count, dtype=torch.bool)
        free[used] = False
        return free.nonzero().flatten()[:count].tolist(), slots

    def _read_client_states(self, slots: Tensor, digest_rows: Tensor, leaf_layout: LeafLayout) -> ClientStateStore:
        """What all clients keep."""
        digests = {place: bytes(row.tolist()) for place, row in zip(slots.tolist(), digest_rows, strict=True)}
        records = SlotFile(self.run.client_state_path, sum(count_bytes(*leaf[1:]) for leaf in leaf_layout)).read(digests)
        trees = {place: unpack_tree(record, leaf_layout) for place, record in records.items()}
        return ClientStateStore(tuple(trees[place] for place in slots.tolist()))


def load_checkpoint(run: Run, template: FederatedState) -> FederatedState | None:
    """The state that a run stored last, None if it stored none; ``like`` is as for ``Checkpoint.load``."""
    return Checkpoint(run).load(template)


def find_changed(before: Sequence[Tree], after: Sequence[Tree]) -> list[int]:
    """The clients whose tree is another one; a memory that stays is the same object (``Memory.put``)."""
    return [client for client, (old, new) in enumerate(zip(before, after, strict=True)) if old is not new]


def get_layout(tree: Tree) -> LeafLayout:
    return [[name, str(leaf.dtype).removeprefix("torch."), list(leaf.shape)] for name, leaf in tree.items()]


def pack_tree(tree: Tree) -> bytes:
    """The bytes of all leaves, one after the other."""
    return (
        torch.cat(
            [leaf.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8) for leaf in tree.values()]
        )
        .numpy()
        .tobytes()
    )


def unpack_tree(record: bytes, leaf_layout: LeafLayout) -> Tree:
    """The tree that ``packed`` made bytes of; each leaf has an aligned memory of its own."""
    whole = torch.frombuffer(bytearray(record), dtype=torch.uint8)
    parts = whole.split([count_bytes(*leaf[1:]) for leaf in leaf_layout])  # type: ignore[no-untyped-call]
    return Tree(
        {name: part.clone().view(getattr(torch, dtype)).view(shape) for part, (name, dtype, shape) in zip(parts, leaf_layout, strict=True)}
    )


def count_bytes(dtype: str, shape: Sequence[int]) -> int:
    return int(getattr(torch, dtype).itemsize * torch.Size(shape).numel())


def flatten_state(state: FederatedState, include_client_states: bool = True) -> dict[str, Tensor]:
    """All tensors of a state by ``<part>/<leaf>``, but ``cluster_ids`` and ``last_round_seen`` by their names. ``client_states``: what
    all clients keep is copied into one tree ``[N, ...]`` among them."""
    trees: dict[str, Tree] = {part: getattr(state.server, part.partition(".")[2]) for part in SERVER_PARTS}
    trees |= {
        "client_states": state.client_states.gather_all() if include_client_states else Tree(),
        "server_delta": state.server_delta,
        "clustering_state": state.clustering_state,
        "client_means": state.client_means,
    }
    tensors = {f"{part}/{name}": leaf for part, tree in trees.items() for name, leaf in tree.items()}
    return {**tensors, "cluster_ids": state.cluster_ids, "last_round_seen": state.last_round_seen}


def unflatten_state(
    tensors: Mapping[str, Tensor], round: int, device: torch.device, last_round_seen: Tensor, client_states: ClientStateStore
) -> FederatedState:
    """The state of tensors by name, the server's half on its device. ``last``: in its place, where it was not stored."""
    server = ServerState(*(select_subtree(tensors, part).to(device) for part in SERVER_PARTS))
    return FederatedState(
        round,
        server,
        client_states,
        tensors["cluster_ids"],
        select_subtree(tensors, "server_delta").to(device),
        select_subtree(tensors, "clustering_state"),
        tensors["last_round_seen"],
        select_subtree(tensors, "client_means"),
    )


def select_subtree(tensors: Mapping[str, Tensor], prefix: str) -> Tree:
    start = prefix + "/"
    return Tree({name[len(start) :]: leaf for name, leaf in tensors.items() if name.startswith(start)})


def get_device(state: FederatedState) -> torch.device:
    return next(iter(state.server.params.values())).device


__all__ = [
    "Checkpoint",
    "check_history",
    "flatten_state",
    "list_recorded_rounds",
    "load_checkpoint",
    "select_subtree",
    "summarize_history",
    "unflatten_state",
]
