"""Doing the runs of a study: claim one, carry it out, note what stopped it, go on with the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UserError
from ..experiment import Experiment
from ..run import Progress, carry_out
from ..stock import Stock
from ..store import Run
from ..store.claims import DEAD, Lost, claim, held
from .book import Book

DEATHS = 3  # workers that a run may cost before it counts as failed
Tell = Callable[[str, int], None]
"""Told the id of a run and the round that it has reached."""


def work(experiments: Sequence[Experiment], stock: Stock, book: Book, tell: Tell = lambda run, round: None,
         poll: float = 1.0, dead: float = DEAD) -> None:
    """Settle all runs: each is finished or failed at the end, by this worker or by another.

    A run that another worker has is waited for, and taken over should that worker die.
    """
    left = list(experiments)
    while left:
        left = [experiment for experiment in left if not settle(experiment, stock, book, tell, dead)]
        if left:
            time.sleep(poll)


def settle(experiment: Experiment, stock: Stock, book: Book, tell: Tell = lambda run, round: None, dead: float = DEAD) -> bool:
    """Do one run unless it is done; False if another worker has it."""
    run = Run(Path(stock.runtime.root), experiment.id)
    if run.finished or book.failure(run.id):
        tell(run.id, experiment.plan.rounds)
        return True
    mine = claim(run.folder, dead)
    if mine is None or run.status == "running":
        if mine:
            with held(mine):
                pass
        return False
    with held(mine):
        outside: list[Exception] = []  # an error of who is told: no run has failed by it

        def watch(told: Progress) -> None:
            mine.check()
            try:
                tell(run.id, told.round)
            except Exception as error:
                outside.append(error)
                raise

        try:
            if mine.generation >= DEATHS:
                raise UserError(f"{mine.generation} workers ended while they had this run; is there too little memory?")
            carry_out(experiment, stock, watch)
        except Lost:
            return False
        except Exception as error:
            if error in outside:
                raise
            note(book, run, error)
    tell(run.id, experiment.plan.rounds)
    return True


def note(book: Book, run: Run, error: Exception) -> None:
    """Store why a run stopped; if that fails, the run's own error is raised with the other as its note."""
    try:
        book.fail(run.id, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
    except Exception as second:
        error.add_note(f"This could not be stored in {book.folder / 'failures'}: {second}")
        raise error from None


def reached(run: Run) -> int:
    """The round that a run's rows have come to, without reading all of them."""
    try:
        with open(run.folder / "records.jsonl", "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 4096))
            lines = file.read().split(b"\n")
        return int(lines[-2][1:].split(b",", 1)[0])
    except (OSError, IndexError, ValueError):
        return 0


def unsettled(experiments: Sequence[Experiment], book: Book) -> list[Experiment]:
    """The runs that are neither finished nor failed."""
    return [experiment for experiment in experiments
            if not (book.run(experiment.id).finished or book.failure(experiment.id))]


def tell_all(experiments: Sequence[Experiment], book: Book, tell: Tell) -> int:
    """Tell how far every run is, by looking at the store; how many are left."""
    left = {experiment.id for experiment in unsettled(experiments, book)}
    for experiment in experiments:
        tell(experiment.id, reached(book.run(experiment.id)) if experiment.id in left else experiment.plan.rounds)
    return len(left)

