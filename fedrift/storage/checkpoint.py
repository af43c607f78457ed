"""The checkpoint of a run: its state between two rounds, and the check that no stored rows were lost since.

    state.safetensors    the state except the persistent states of clients; the slot and the digest of the state of each client
    client_states.rows   the persistent states of clients, in slots of equal size (``fedrift.storage.tensors``)

A save writes only the states of clients that changed since the last one, to slots that the stored state does not use, and then replaces the
state file. A run that is killed at any point therefore has a complete checkpoint, either the previous or the new one.

Rows are written before the state, and the state contains a checksum of each file at that time. When a run resumes, its files must begin
with the same bytes. Later bytes may be incomplete, or belong to a round that is repeated.
"""

from __future__ import annotations

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


def summarize_history(
    run: Run, round: int, previous: Mapping[str, Any] | None = None, assignments: jsonl.AssignmentLog | None = None
) -> dict[str, Any]:
    """Return the checksums of a run's files after ``round``, as plain JSON for the metadata of the state that is stored next.

    Args:
        run: The run.
        round: The round of the state.
        previous: The summary in the stored state, so that only what was added since is read. None: it is read from the stored state.
        assignments: The cluster assignments of the run. None: they are read from the file.
    """
    if previous is None:
        previous = read_metadata(run.state_path)[0].get("history", {}) if run.state_path.is_file() else {}
    first = previous.get("updates")  # the log only grows, so its first round stays the same
    if first is None:
        first = min(list_recorded_rounds(run), default=None)
    return {
        **{name: jsonl.compute_checksum(run.folder / name, previous.get(name, jsonl.EMPTY_CHECKSUM)) for name in GROWING_FILES},
        "clustering": (assignments or jsonl.AssignmentLog(run)).checksum(round),
        "updates": first,
    }


def check_history(run: Run) -> None:
    """Check that a run still has everything that it wrote before its stored state; call this before ``Run.truncate_after``.

    If the state of a round was stored but its timing was not, the round gets an empty timing, because its duration is unknown.

    Raises:
        UserError: Rows, cluster assignments or updates are missing or changed.
    """
    if not run.state_path.exists():
        return
    metadata, digest = read_metadata(run.state_path)
    round, history = metadata.get("round"), metadata.get("history")
    if not isinstance(round, int):
        raise UserError(f"{run.state_path} does not contain its round number. {STATE_RECOVERY_HINT}")
    if digest is None:
        run.log_event(
            round, "state without digest", "an older version of fedrift stored the state without a digest, so damage cannot be detected"
        )
    if not isinstance(history, Mapping):
        return
    for name in GROWING_FILES:
        path = run.folder / name
        if not jsonl.has_prefix(path, history[name]):
            raise _resume_error(run, round, f"{name} {_describe_loss(run, name, round, history[name][0])}")
    if _repeats_records(run, round, history["records.jsonl"][0]):
        raise _resume_error(run, round, f"records of round {round} or earlier were repeated in records.jsonl after this round was stored")
    if jsonl.AssignmentLog(run).checksum(round) != history["clustering"]:
        raise _resume_error(run, round, f"clustering.json lacks some of the {history['clustering'][0]} assignments up to this round")
    first = history["updates"]
    missing = sorted(set(range(first, round + 1)) - set(list_recorded_rounds(run))) if first is not None else []
    if missing:
        raise _resume_error(run, round, f"the updates of {_format_rounds(missing)} are missing")
    timed_rounds = {row["round"] for row in run.timings()}
    missing = [earlier for earlier in range(round) if earlier not in timed_rounds]
    if missing:
        raise _resume_error(run, round, f"timings.jsonl has no line for {_format_rounds(missing)}")
    if round not in timed_rounds:  # the process was killed after it stored the state and before it stored the timing
        run.log_timing(round)


def _repeats_records(run: Run, round: int, size: int) -> bool:
    """Return whether records of a round or earlier that follow the first ``size`` bytes of records.jsonl repeat ones before.

    A round is stored after its records. Only the end of the run and callbacks add others of it, and they repeat none.
    """
    added = run.read_added_records(size)[0]
    keys = {record[:4] for record in added if record.round <= round}
    return bool(keys) and not keys.isdisjoint(record[:4] for record in run.read_added_records(0)[0][: -len(added)])


def list_recorded_rounds(run: Run) -> list[int]:
    """Return the rounds in the update log, ascending."""
    return sorted(int(path.stem) for path in (run.folder / "updates").glob("[0-9]*.parquet") if path.stem.isdigit())


def _resume_error(run: Run, round: int, reason: str) -> UserError:
    return UserError(
        f"run {run.id} cannot be resumed from round {round} because stored data is missing or changed: {reason}. Restore a copy "
        f"of the file in {run.folder}, or start the run again (`fedrift run --fresh`, or remove that folder)"
    )


def _describe_loss(run: Run, name: str, round: int, size: int) -> str:
    path = run.folder / name
    actual_size = path.stat().st_size if path.exists() else 0
    if not actual_size:
        return "is missing" if not path.exists() else "is empty"
    if actual_size < size:
        return f"has {actual_size:,} of the {size:,} bytes that it had after this round"
    return f"was changed: something in its first {size:,} bytes differs from what was stored after this round"


def _format_rounds(rounds: list[int]) -> str:
    shown = ", ".join(map(str, rounds[:5])) + (f" and {len(rounds) - 5} more" if len(rounds) > 5 else "")
    return f"round{'s' if len(rounds) > 1 else ''} {shown}"


SERVER_PARTS = tuple(f"server.{f.name}" for f in fields(ServerState))  # the parts of a state that are on the device of the server
# the exceptions that leaves with other names or shapes cause
LAYOUT_ERRORS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)
LeafLayout = list[list[Any]]  # name, dtype and shape of each leaf of the persistent state of a client


class Checkpoint:
    """The stored state of one run, and what this process knows about it. Only one process at a time may write a run.

    Example:
        >>> checkpoint = Checkpoint(run)
        >>> checkpoint.save(state)
        >>> state = checkpoint.load(template=initial_state)
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.assignments = jsonl.AssignmentLog(run)
        self.history: dict[str, Any] | None = None  # the summary in the stored state; None: not known to this process
        self.client_states: tuple[Tree, ...] = ()  # N trees, as they were last saved or loaded
        self.slots = torch.zeros(0, dtype=torch.long)  # [N] slot of each client's state
        self.digests = torch.zeros(0, 32, dtype=torch.uint8)  # [N, 32] digest of each client's state

    def save(self, state: FederatedState) -> None:
        """Store the complete state of a run between two rounds."""
        tensors = flatten_state(state, include_client_states=False)
        history = summarize_history(self.run, state.round, self.history, self.assignments)
        metadata: dict[str, Any] = {"round": state.round, "history": history}
        client_states, slots, digests = state.client_states.states if state.client_states else (), self.slots, self.digests
        if client_states:
            slots, digests = self._write_client_states(client_states)
            tensors |= {"client_states.slot": slots, "client_states.digest": digests}
            metadata["client_states"] = get_layout(client_states[0])
        save_tensors(self.run.state_path, tensors, metadata | {"tensor_names": list(tensors)})
        self.client_states, self.slots, self.digests, self.history = client_states, slots, digests, history

    def load(self, template: FederatedState) -> FederatedState | None:
        """Load the stored state, or return None if none was stored.

        Args:
            template: The state of round 0, which determines the device and the expected shapes.

        Raises:
            UserError: The stored state is damaged, or does not belong to this run.
        """
        if not self.run.state_path.exists():
            return None
        tensors, round, client_states = self.read()
        try:
            expected, actual = (
                {name: leaf.shape[1:] for name, leaf in tree.items()}
                for tree in (template.server.params, select_subtree(tensors, "server.params"))
            )
            if expected != actual:
                raise ValueError("its server.params have other names or shapes")
            return unflatten_state(tensors, round, template.server.params.device, client_states)
        except LAYOUT_ERRORS as error:
            raise self._invalid_state_error(error) from error

    def read(self) -> tuple[dict[str, Tensor], int, ClientStateStore]:
        """Read the stored tensors by name, the round, and the persistent states of clients."""
        stored, metadata = load_tensors(self.run.state_path)
        try:
            # The original order matters for sums over leaves. Clone, because memory from a file may be unaligned, and
            # matrix products round differently on unaligned memory.
            tensors = {name: stored[name].clone() for name in metadata["tensor_names"]}
            round = int(metadata["round"])
            if "client_states" not in metadata:  # clients have no persistent state
                return tensors, round, ClientStateStore.replicate(Tree(), len(tensors["cluster_ids"]))
            slots, digests = tensors.pop("client_states.slot"), tensors.pop("client_states.digest")
            client_states = self._read_client_states(slots, digests, metadata["client_states"])
        except LAYOUT_ERRORS as error:
            raise self._invalid_state_error(error) from error
        self.client_states, self.slots, self.digests = client_states.states, slots, digests
        return tensors, round, client_states

    def _invalid_state_error(self, error: Exception) -> UserError:
        return UserError(f"{self.run.state_path} is not a state of this run ({format_error(error)}). {STATE_RECOVERY_HINT}")

    def _write_client_states(self, client_states: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """Write the states of changed clients; return the slot [N] and the digest [N, 32] of every client."""
        is_known = len(self.client_states) == len(client_states)
        slots = self.slots.clone() if is_known else torch.zeros(len(client_states), dtype=torch.long)
        digests = self.digests.clone() if is_known else torch.zeros(len(client_states), 32, dtype=torch.uint8)
        clients_by_tree: dict[int, list[int]] = {}  # clients that share one tree share one slot
        for client in find_changed(self.client_states, client_states) if is_known else range(len(client_states)):
            clients_by_tree.setdefault(id(client_states[client]), []).append(client)
        records = [pack_tree(client_states[clients[0]]) for clients in clients_by_tree.values()]
        if not records:
            return slots, digests
        free_slots, file = self._find_free_slots(len(records), len(records[0]))
        file.write(dict(zip(free_slots, records, strict=True)))
        for free_slot, record, clients in zip(free_slots, records, clients_by_tree.values(), strict=True):
            slots[clients], digests[clients] = free_slot, torch.frombuffer(bytearray(compute_record_digest(record)), dtype=torch.uint8)
        return slots, digests

    def _find_free_slots(self, count: int, record_size: int) -> tuple[list[int], SlotFile]:
        """Return the first ``count`` slots that the stored state does not use, and the slot file."""
        file = SlotFile(self.run.client_state_path, record_size)
        if self.client_states:
            used = self.slots
        elif self.run.state_path.exists():  # a state that this process has not loaded may use any slot
            used = torch.arange(len(file))
        else:
            self.run.client_state_path.unlink(missing_ok=True)  # without a state, an existing slot file is obsolete
            used = torch.arange(0)
        is_free = torch.ones(int(used.max()) + 1 + count if len(used) else count, dtype=torch.bool)
        is_free[used] = False
        return is_free.nonzero().flatten()[:count].tolist(), file

    def _read_client_states(self, slots: Tensor, digest_rows: Tensor, leaf_layout: LeafLayout) -> ClientStateStore:
        """Read the persistent states of all clients."""
        digest_by_slot = {slot: bytes(digest.tolist()) for slot, digest in zip(slots.tolist(), digest_rows, strict=True)}
        records = SlotFile(self.run.client_state_path, sum(count_bytes(*leaf[1:]) for leaf in leaf_layout)).read(digest_by_slot)
        trees = {slot: unpack_tree(record, leaf_layout) for slot, record in records.items()}
        return ClientStateStore(tuple(trees[slot] for slot in slots.tolist()))


def load_checkpoint(run: Run, template: FederatedState) -> FederatedState | None:
    """Load the last stored state of a run, or return None if it has none; ``template`` is as in ``Checkpoint.load``."""
    return Checkpoint(run).load(template)


def find_changed(before: Sequence[Tree], after: Sequence[Tree]) -> list[int]:
    """Return the clients whose state changed; unchanged states are the same object (``ClientStateStore.update``)."""
    return [client for client, (old_tree, new_tree) in enumerate(zip(before, after, strict=True)) if old_tree is not new_tree]


def get_layout(tree: Tree) -> LeafLayout:
    """Return the name, dtype and shape of each leaf."""
    return [[name, str(leaf.dtype).removeprefix("torch."), list(leaf.shape)] for name, leaf in tree.items()]


def pack_tree(tree: Tree) -> bytes:
    """Return the bytes of all leaves, concatenated."""
    # A tensor of one element and stride 0 counts as contiguous in torch 2.13, but cannot be viewed as bytes: clone it with strides of 1.
    leaves = (leaf.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format) for leaf in tree.values())
    return torch.cat([leaf.view(torch.uint8) for leaf in leaves]).numpy().tobytes()


def unpack_tree(record: bytes, leaf_layout: LeafLayout) -> Tree:
    """Return the tree that ``pack_tree`` converted to bytes; each leaf has its own aligned memory."""
    buffer = torch.frombuffer(bytearray(record), dtype=torch.uint8)
    parts = buffer.split([count_bytes(*leaf[1:]) for leaf in leaf_layout])  # type: ignore[no-untyped-call]
    return Tree(
        {name: part.clone().view(getattr(torch, dtype)).view(shape) for part, (name, dtype, shape) in zip(parts, leaf_layout, strict=True)}
    )


def count_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the size of a tensor in bytes."""
    return int(getattr(torch, dtype).itemsize * torch.Size(shape).numel())


def flatten_state(state: FederatedState, include_client_states: bool = True) -> dict[str, Tensor]:
    """Return all tensors of a state by name: ``<part>/<leaf>``, ``cluster_ids`` and ``last_participation``.

    Args:
        state: The state.
        include_client_states: Whether to copy the persistent states of all clients into one tree [N, ...].
    """
    trees: dict[str, Tree] = {part: getattr(state.server, part.partition(".")[2]) for part in SERVER_PARTS}
    trees |= {
        "client_states": state.client_states.gather_all() if include_client_states else Tree(),
        "server_delta": state.server_delta,
        "clustering_state": state.clustering_state,
        "client_means": state.client_means,
    }
    tensors = {f"{part}/{name}": leaf for part, tree in trees.items() for name, leaf in tree.items()}
    return {**tensors, "cluster_ids": state.cluster_ids, "last_participation": state.last_participation}


def unflatten_state(tensors: Mapping[str, Tensor], round: int, device: torch.device, client_states: ClientStateStore) -> FederatedState:
    """Build a state from its tensors by name.

    Args:
        tensors: The tensors, as ``flatten_state`` names them.
        round: The number of completed rounds.
        device: The device of the server.
        client_states: The persistent states of all clients.
    """
    server = ServerState(*(select_subtree(tensors, part).to(device) for part in SERVER_PARTS))
    return FederatedState(
        round,
        server,
        client_states,
        tensors["cluster_ids"],
        select_subtree(tensors, "server_delta").to(device),
        select_subtree(tensors, "clustering_state"),
        tensors["last_participation"],
        select_subtree(tensors, "client_means"),
    )


def select_subtree(tensors: Mapping[str, Tensor], prefix: str) -> Tree:
    """Return the tensors named ``<prefix>/<leaf>`` as a tree of leaves."""
    full_prefix = prefix + "/"
    return Tree({name[len(full_prefix) :]: leaf for name, leaf in tensors.items() if name.startswith(full_prefix)})
