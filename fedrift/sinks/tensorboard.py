"""TensorBoard: `tensorboard --logdir runs/sinks/tensorboard`."""

from __future__ import annotations

import json

from .sink import Said, Sink


class TensorBoard(Sink):
    """One folder a run."""

    package, pip = "torch.utils.tensorboard", "tensorboard"

    def begin(self, run: str, name: str, asked: Said, again: bool) -> None:
        self.writer = self.module.SummaryWriter(str(self.folder / f"{run}"))
        if not again:
            self.writer.add_text("experiment", f"{name}\n\n```json\n{json.dumps(asked, indent=1)}\n```", 0)

    def write(self, round: int, numbers: dict[str, float]) -> None:
        for metric, value in numbers.items():
            self.writer.add_scalar(metric, value, round)
        self.writer.flush()

    def end(self, summary: Said) -> None:
        self.writer.close()
