"""The update log: the update of every round as the server received it, and the state after the round.

    runs/<id>/updates/00000.parquet   the state before the first round
                      00007.parquet   the cohort of round 7, its update, and the state after it

The log is exact: aggregating a stored update again gives the stored state, bit for bit. Only the first file contains the persistent states
of all clients. Those of later rounds are reconstructed from the updates of the rounds in which each client participated.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.tree import Tree
from ..core.types import ClientStateStore, CohortUpdate, FederatedState, RoundResult
from .checkpoint import flatten_state, list_recorded_rounds, select_subtree, unflatten_state
from .parquet import load_arrays, save_arrays
from .run import Run

# The fields of a ``CohortUpdate`` that stay on the CPU, whatever the device of the server.
CPU_FIELDS = ("client_state", "steps", "loss", "tokens", "failed", "lr", "bytes_on_wire")
TREE_FIELDS = ("delta", "client_state", "state_delta", "mean_grad")


@dataclass(frozen=True)
class UpdateLog:
    """The recorded updates of a run.

    Example:
        >>> log = UpdateLog(find_run(Path("runs"), "ab12"))
        >>> cohort, update = log.load_update(7, torch.device("cpu"))
    """

    run: Run

    @property
    def folder(self) -> Path:
        """Return the folder of the log."""
        return self.run.folder / "updates"

    def path(self, round: int) -> Path:
        """Return the path of the file of a round."""
        return self.folder / f"{round:05}.parquet"

    @property
    def rounds(self) -> list[int]:
        """Return the recorded rounds, ascending. Each has the state after the round; each except the first also has the update."""
        return list_recorded_rounds(self.run)

    @property
    def num_bytes(self) -> int:
        """Return the size of the log on disk in bytes."""
        return sum(path.stat().st_size for path in self.folder.glob("[0-9]*.parquet"))

    def start(self, state: FederatedState) -> None:
        """Record the state from which the log begins, unless the previous round was recorded."""
        if state.round not in self.rounds:
            save_arrays(self.path(state.round), to_numpy(flatten_state(state)), {"round": state.round})

    def add_round(self, result: RoundResult) -> None:
        """Record one round; a round that is repeated after a crash replaces its file."""
        update = result.update
        tensors = {f"update.{tree}/{name}": leaf for tree in TREE_FIELDS for name, leaf in getattr(update, tree).items()}
        tensors |= {f"update.{f.name}": value for f in fields(CohortUpdate) if isinstance(value := getattr(update, f.name), Tensor)}
        tensors |= flatten_state(result.after, include_client_states=False)
        save_arrays(
            self.path(result.after.round),
            to_numpy({"cohort": result.cohort, **tensors}),
            {"round": result.after.round, "server_seed": update.server_seed, "notes": list(update.notes)},
        )

    def load_update(self, round: int, device: torch.device) -> tuple[Tensor, CohortUpdate]:
        """Load the cohort [C] of a round and its update, with the tensors of the server on ``device``.

        Raises:
            UserError: The update of this round was not recorded, or its file is damaged.
        """
        tensors, meta = self._read(round, "cohort", "update.")
        if "cohort" not in tensors:
            raise UserError(f"run {self.run.id} has no recorded updates of round {round}; it has those of rounds {self.rounds[1:]}")
        leaves = {name.removeprefix("update."): leaf for name, leaf in tensors.items()}
        vectors = {f.name: leaves[f.name].to("cpu" if f.name in CPU_FIELDS else device) for f in fields(CohortUpdate) if f.name in leaves}
        trees = {name: select_subtree(leaves, name).to(torch.device("cpu") if name in CPU_FIELDS else device) for name in TREE_FIELDS}
        return tensors["cohort"], CohortUpdate(**trees, **vectors, server_seed=meta["server_seed"], notes=tuple(meta["notes"]))  # type: ignore[arg-type]

    def load_state(self, round: int, device: torch.device) -> FederatedState:
        """Load the complete state of the run after a round.

        Raises:
            UserError: The rounds up to this one were not all recorded, or a file is damaged.
        """
        recorded = self.rounds
        if not recorded or set(range(recorded[0], round + 1)) - set(recorded) or round < recorded[0]:
            raise UserError(
                f"run {self.run.id} has no recorded state after round {round}; "
                + (f"its log begins at round {recorded[0]} and has {len(recorded) - 1} rounds" if recorded else "it has no updates at all")
            )
        first = recorded[0]
        initial = self._read(first, "client_states/", "cluster_ids")[0]
        client_states = ClientStateStore.from_rows(select_subtree(initial, "client_states"), len(initial["cluster_ids"]))
        for later in range(first + 1, round + 1) if client_states else ():
            tensors, _ = self._read(later, "cohort", "update.client_state/")
            client_states = client_states.update(tensors["cohort"], select_subtree(tensors, "update.client_state"))
        tensors, _ = self._read(round)
        return unflatten_state(tensors, round, device, client_states)

    def load_params(self, round: int) -> tuple[Tree, Tree, Tensor]:
        """Load the params and the merged base weights of the server after a round, both [M, ...], and the cluster id of each client [N]."""
        tensors, _ = self._read(round, "server.params/", "server.merged_base/", "cluster_ids")
        return select_subtree(tensors, "server.params"), select_subtree(tensors, "server.merged_base"), tensors["cluster_ids"]

    def _read(self, round: int, *prefixes: str) -> tuple[dict[str, Tensor], dict]:  # type: ignore[type-arg]
        arrays, meta = load_arrays(self.path(round), *prefixes)
        # clone: memory from numpy may be unaligned, and matrix products round differently on unaligned memory
        return {name: torch.from_numpy(array).clone() for name, array in arrays.items()}, meta


def to_numpy(tensors: dict[str, Tensor]) -> dict:  # type: ignore[type-arg]
    """Convert tensors on any device to numpy arrays."""
    return {name: leaf.detach().cpu().numpy() for name, leaf in tensors.items()}
