"""The flight recorder: every round's report as the server received it, and the state that the server made of it.

    runs/<id>/updates/00000.parquet   the state before the first round
                      00007.parquet   the cohort of round 7, its report, and the state after it

Bit for bit: whoever reads a report back and absorbs it anew gets the state that is stored beside it. What clients keep is in the
reports of the rounds in which they took part, and is put together from those; whole it is stored only where recording began.
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

# Of a report, that are on the CPU wherever the server is.
CPU_FIELDS = ("client_state", "steps", "loss", "tokens", "failed", "lr", "bytes_on_wire")
TREE_FIELDS = ("delta", "client_state", "state_delta", "mean_grad")


@dataclass(frozen=True)
class UpdateLog:
    """What a run has kept of its rounds."""

    run: Run

    @property
    def folder(self) -> Path:
        return self.run.folder / "updates"

    def path(self, round: int) -> Path:
        return self.folder / f"{round:05}.parquet"

    @property
    def rounds(self) -> list[int]:
        """The rounds after which the state is kept, ascending; with their reports, all but the one where recording began."""
        return list_recorded_rounds(self.run)

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("[0-9]*.parquet"))

    def start(self, state: FederatedState) -> None:
        """Keep where recording begins, unless the round before was recorded."""
        if state.round not in self.rounds:
            save_arrays(self.path(state.round), to_numpy(flatten_state(state)), {"round": state.round})

    def add_round(self, result: RoundResult) -> None:
        """Keep one more round; a round that is run again, as after a crash, takes its place."""
        report = result.report
        tensors = {f"report.{tree}/{name}": leaf for tree in TREE_FIELDS for name, leaf in getattr(report, tree).items()}
        tensors |= {f"report.{f.name}": value for f in fields(CohortUpdate) if isinstance(value := getattr(report, f.name), Tensor)}
        tensors |= flatten_state(result.after, include_client_states=False)
        save_arrays(
            self.path(result.after.round),
            to_numpy({"cohort": result.cohort, **tensors}),
            {"round": result.after.round, "server_seed": report.server_seed, "notes": list(report.notes)},
        )

    def load_update(self, round: int, device: torch.device) -> tuple[Tensor, CohortUpdate]:
        """The cohort ``[C]`` of a round and what it sent, the server's half of it on the server's device."""
        tensors, meta = self._read(round, "cohort", "report.")
        if "cohort" not in tensors:
            raise UserError(f"run {self.run.id} kept no updates of round {round}; it has those of rounds {self.rounds[1:]}")
        said = {name.removeprefix("report."): leaf for name, leaf in tensors.items()}
        whole = {f.name: said[f.name].to("cpu" if f.name in CPU_FIELDS else device) for f in fields(CohortUpdate) if f.name in said}
        trees = {name: select_subtree(said, name).to(torch.device("cpu") if name in CPU_FIELDS else device) for name in TREE_FIELDS}
        return tensors["cohort"], CohortUpdate(**trees, **whole, server_seed=meta["server_seed"], notes=tuple(meta["notes"]))  # type: ignore[arg-type]

    def load_state(self, round: int, device: torch.device) -> FederatedState:
        """All that the run was after a round."""
        kept = self.rounds
        if not kept or set(range(kept[0], round + 1)) - set(kept) or round < kept[0]:
            raise UserError(
                f"run {self.run.id} did not keep its state after round {round}; "
                + (f"its record begins at round {kept[0]} and has {len(kept) - 1} rounds" if kept else "it kept no updates at all")
            )
        first = kept[0]
        begun = self._read(first, "client_states/", "cluster_ids")[0]
        memory = ClientStateStore.from_rows(select_subtree(begun, "client_states"), len(begun["cluster_ids"]))
        for later in range(first + 1, round + 1) if memory else ():
            tensors, _ = self._read(later, "cohort", "report.client_state/")
            memory = memory.update(tensors["cohort"], select_subtree(tensors, "report.client_state"))
        tensors, _ = self._read(round)
        return unflatten_state(tensors, round, device, tensors["last_round_seen"], memory)

    def load_params(self, round: int) -> tuple[Tree, Tree, Tensor]:
        """The server's params and what lies under them after a round, both ``[M, ...]``, and who shares which ``[N]``."""
        tensors, _ = self._read(round, "server.params/", "server.merged_base/", "cluster_ids")
        return select_subtree(tensors, "server.params"), select_subtree(tensors, "server.merged_base"), tensors["cluster_ids"]

    def _read(self, round: int, *starts: str) -> tuple[dict[str, Tensor], dict]:  # type: ignore[type-arg]
        arrays, meta = load_arrays(self.path(round), *starts)
        # cloned: torch's own memory is aligned, numpy's need not be, and there matrix products round differently
        return {name: torch.from_numpy(array).clone() for name, array in arrays.items()}, meta


def to_numpy(tensors: dict[str, Tensor]) -> dict:  # type: ignore[type-arg]
    return {name: leaf.detach().cpu().numpy() for name, leaf in tensors.items()}


__all__ = ["UpdateLog"]
