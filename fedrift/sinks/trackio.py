"""trackio: `trackio show --project fedrift`; its database is where TRACKIO_DIR says."""

from __future__ import annotations

from .sink import Said, Sink


class Trackio(Sink):
    """The run's name is our id."""

    package, pip = "trackio", "trackio"

    def begin(self, run: str, name: str, asked: Said, again: bool) -> None:
        self.run = self.module.init(project="fedrift", name=run, group=name, config=asked, resume="allow", embed=False)

    def write(self, round: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=round)

    def end(self, summary: Said) -> None:
        self.run.finish()
