"""Several runs in this process at once, their training steps made as one forward pass: for devices that one run leaves idle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Thread
from typing import Annotated

from annotated_types import Interval

from ...experiment import Experiment
from ...stock import Meeting, Stock
from ..book import Book
from ..work import Tell, settle, work
from .executor import Executor


@dataclass(frozen=True)
class Stacked(Executor):
    """``runs`` under way at once, at most ``clients`` of them in one pass. Passes join runs with the same model, kind of tuning,
    batch and length; others take turns. A run's numbers are those it has alone, up to rounding: not bit for bit, as
    the other executors' are. Worth it where a step costs the same whatever its size, as on a GPU with small models."""

    runs: Annotated[int, Interval(ge=1, le=10000)] = 8
    clients: Annotated[int, Interval(ge=1, le=10000)] = 64

    def __call__(self, experiments: Sequence[Experiment], stock: Stock, book: Book, tell: Tell) -> None:
        alike = sorted(experiments, key=lambda each: (each.model, repr(each.tune), each.plan.seq_len, each.plan.batch))
        count = min(self.runs, len(alike))
        meeting = Meeting(count, self.clients)
        queue, left, errors = iter(alike), list[Experiment](), list[BaseException]()
        threads = [Thread(target=_work, args=(queue, replace(stock, meeting=meeting), book, tell, left, errors), daemon=True)
                   for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)  # a wait without end would not see Ctrl-C everywhere
        except BaseException:
            meeting.stop()
            for thread in threads:
                thread.join()
            raise
        if errors:
            raise errors[0]
        work(left, stock, book, tell)  # what another worker had


def _work(queue: Iterator[Experiment], stock: Stock, book: Book, tell: Tell, left: list[Experiment],
          errors: list[BaseException]) -> None:
    """One run after another until none is left. An error outside a run ends all: the other threads stop at their next step."""
    meeting: Meeting = stock.meeting  # type: ignore[assignment]
    with meeting.seat():
        try:
            left.extend(experiment for experiment in queue if not settle(experiment, stock, book, tell))
        except BaseException as error:
            if not meeting.stopped:
                errors.append(error)
                meeting.stop()
