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

from ..errors import UserError
from ..memory import Memory
from ..store import Run
from ..store.arrays import load_arrays, save_arrays
from ..tree import Tree
from ..values import Report, Round, State
from .history import recorded_rounds
from .state import named, state_of, tree_of

HERE = ("memory", "steps", "loss", "tokens", "failed", "lr", "wire")  # of a report, that are on the CPU wherever the server is
TREES = ("delta", "memory", "news", "gradient")


@dataclass(frozen=True)
class Updates:
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
        return recorded_rounds(self.run)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("[0-9]*.parquet"))

    def begin(self, state: State) -> None:
        """Keep where recording begins, unless the round before was recorded."""
        if state.round not in self.rounds:
            save_arrays(self.path(state.round), numpied(named(state)), {"round": state.round})

    def add(self, done: Round) -> None:
        """Keep one more round; a round that is run again, as after a crash, takes its place."""
        report = done.report
        tensors = {f"report.{tree}/{name}": leaf for tree in TREES for name, leaf in getattr(report, tree).items()}
        tensors |= {f"report.{f.name}": value for f in fields(Report) if isinstance(value := getattr(report, f.name), Tensor)}
        tensors |= named(done.after, memory=False)
        save_arrays(self.path(done.after.round), numpied({"cohort": done.cohort, **tensors}),
                    {"round": done.after.round, "draw": report.draw, "why": list(report.why)})

    def report(self, round: int, where: torch.device) -> tuple[Tensor, Report]:
        """The cohort ``[C]`` of a round and what it sent, the server's half of it on the server's device."""
        tensors, meta = self._read(round, "cohort", "report.")
        if "cohort" not in tensors:
            raise UserError(f"run {self.run.id} kept no updates of round {round}; it has those of rounds {self.rounds[1:]}")
        said = {name.removeprefix("report."): leaf for name, leaf in tensors.items()}
        whole = {f.name: said[f.name].to("cpu" if f.name in HERE else where) for f in fields(Report) if f.name in said}
        trees = {name: tree_of(said, name).to(torch.device("cpu") if name in HERE else where) for name in TREES}
        return tensors["cohort"], Report(**trees, **whole, draw=meta["draw"], why=tuple(meta["why"]))  # type: ignore[arg-type]

    def state(self, round: int, where: torch.device) -> State:
        """All that the run was after a round."""
        kept = self.rounds
        if not kept or set(range(kept[0], round + 1)) - set(kept) or round < kept[0]:
            raise UserError(f"run {self.run.id} did not keep its state after round {round}; " + (
                f"its record begins at round {kept[0]} and has {len(kept) - 1} rounds" if kept else "it kept no updates at all"))
        first = kept[0]
        begun = self._read(first, "memory/", "group")[0]
        memory = Memory.of(tree_of(begun, "memory"), len(begun["group"]))
        for later in range(first + 1, round + 1) if memory else ():
            tensors, _ = self._read(later, "cohort", "report.memory/")
            memory = memory.put(tensors["cohort"], tree_of(tensors, "report.memory"))
        tensors, _ = self._read(round)
        return state_of(tensors, round, where, tensors["last"], memory)

    def params(self, round: int) -> tuple[Tree, Tree, Tensor]:
        """The server's params and what lies under them after a round, both ``[M, ...]``, and who shares which ``[N]``."""
        tensors, _ = self._read(round, "server.params/", "server.base/", "group")
        return tree_of(tensors, "server.params"), tree_of(tensors, "server.base"), tensors["group"]

    def _read(self, round: int, *starts: str) -> tuple[dict[str, Tensor], dict]:  # type: ignore[type-arg]
        arrays, meta = load_arrays(self.path(round), *starts)
        # cloned: torch's own memory is aligned, numpy's need not be, and there matrix products round differently
        return {name: torch.from_numpy(array).clone() for name, array in arrays.items()}, meta


def numpied(tensors: dict[str, Tensor]) -> dict:  # type: ignore[type-arg]
    return {name: leaf.detach().cpu().numpy() for name, leaf in tensors.items()}


__all__ = ["Updates"]
