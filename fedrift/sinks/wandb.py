"""Weights & Biases: project ``fedrift``. WANDB_MODE=offline keeps it on this machine; `wandb sync` sends it later."""

from __future__ import annotations

from .sink import Said, Sink


class Wandb(Sink):
    """The run has our id there too, so that one that resumes goes on in the same place."""

    package, pip = "wandb", "wandb"

    def begin(self, run: str, name: str, asked: Said, again: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = self.module.init(project="fedrift", id=run, name=f"{name} {run[:6]}", config=asked, dir=str(self.folder),
                                     resume="allow", reinit="create_new")

    def write(self, round: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=round)

    def end(self, summary: Said) -> None:
        self.run.summary.update(summary)
        self.run.finish(exit_code=0 if summary else 1)
