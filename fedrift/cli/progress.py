"""A progress bar over the rounds of a whole study, with the time that is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ..experiment import Experiment
    from ..study.work import Tell


class Watching:
    """Counts rounds; those done before this start count as done but not as speed."""

    def __init__(self) -> None:
        self.progress = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                                 TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False),
                                 console=Console(stderr=True), speed_estimate_period=600)

    def __enter__(self) -> Watching:
        self.progress.start()
        return self

    def __exit__(self, *what: object) -> None:
        self.progress.stop()

    def begin(self, what: str, experiments: Sequence[Experiment]) -> Tell:
        """A bar for the tuning stage or for the runs."""
        rounds = {experiment.id: max(experiment.plan.rounds, 1) for experiment in experiments}
        reached = dict.fromkeys(rounds, 0)
        total = sum(rounds.values())
        task = self.progress.add_task(f"{what} 0/{len(rounds)}", total=total)

        def tell(run: str, round: int) -> None:
            if reached.get(run) != round and run in reached:
                reached[run] = max(round, reached[run]) if round < rounds[run] else rounds[run]
                over = sum(reached[each] >= rounds[each] for each in rounds)
                self.progress.update(task, completed=sum(reached.values()), description=f"{what} {over}/{len(rounds)}")

        return tell
