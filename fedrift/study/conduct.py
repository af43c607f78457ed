"""A study from beginning to end, or from where it stands to its end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ..errors import UserError
from ..experiment import Experiment
from ..run import check_stored, describe_finished, writable
from ..stock import Stock
from ..store import move_aside
from .book import Book
from .executors import Executor, Local
from .planning import Plan, choices, experiments_of, full_plan, tuning_plan, written
from .study import Study
from .work import Tell, unsettled

Begin = Callable[[str, Sequence[Experiment]], Tell]
"""Told what begins (``tuning`` or ``runs``) and its runs; gives back who is told of every round."""


def conduct(study: Study, stock: Stock, executor: Executor | None = None,
            begin: Begin = lambda what, experiments: lambda run, round: None, fresh: bool = False) -> Book:
    """Run what is missing of a study. Killed at any moment, it goes on when asked again; a run that fails is noted and
    the study goes on without it.

    Args:
        study: The study.
        stock: What runs share, and the runtime.
        executor: Where its runs are done.
        begin: Told what begins.
        fresh: Whether stored runs are moved aside and run anew.
    """
    executor = executor or Local()
    book = Book(writable(stock.runtime.root), study.name)
    earlier = {entry.run for entry in book.read()["runs"]} if book.there else set()
    tuning = tuning_plan(study, stock)
    book.forget_failures()
    chosen = []
    if tuning.entries:
        book.write(written(study, tuning, complete=False))
        first = experiments_of(tuning, "trial")
        carry(replaced(first, book, stock) if fresh else first, stock, book, executor, begin, "tuning")
        chosen = choices(study, tuning, book)
    plan = full_plan(study, stock, tuning, chosen)
    unused = [id for id in earlier - plan.experiments.keys() - tuning.experiments.keys() if book.run(id).finished]
    if unused:
        stock.runtime.say(f"{len(unused)} finished runs that study {study.name} had before are not part of it now: they answer "
                          "other settings, or are of an older fedrift whose defaults or numbers differ. They stay where they are")
    book.write(written(study, plan, complete=True))
    runs = experiments_of(plan, "run")
    trials = {entry.run for entry in tuning.entries}
    carry(replaced(runs, book, stock, but=trials) if fresh else runs, stock, book, executor, begin, "runs")
    return book


def carry(experiments: list[Experiment], stock: Stock, book: Book, executor: Executor, begin: Begin, what: str) -> None:
    """Settle some runs; those that are finished already have to be what is asked, and are counted."""
    for experiment in experiments:
        if book.run(experiment.id).finished:
            check_stored(experiment, book.run(experiment.id), stock.runtime)
    left = unsettled(experiments, book)
    kept = {experiment.id for experiment in experiments if book.run(experiment.id).finished}
    if kept:
        ways = sorted({describe_finished(book.run(id)) for id in kept})
        more = f" (and {len(ways) - 1} other ways)" if len(ways) > 1 else ""
        stock.runtime.say(f"{what}: {len(kept)} of {len(kept) + len(left)} are {ways[0]}{more}: not run again; --fresh runs them")
    tell = begin(what, experiments)
    if left:
        executor(left, stock, book, tell)
        lost = unsettled(left, book)
        if lost:
            raise UserError(f"{what}: {len(lost)} of {len(left)} ended neither finished nor failed, the first is run "
                            f"{lost[0].id}; the same command goes on with them")


def replaced(experiments: list[Experiment], book: Book, stock: Stock, but: Collection[str] = ()) -> list[Experiment]:
    """The experiments, after their stored runs have been moved aside."""
    stored = [run for experiment in experiments if experiment.id not in but and (run := book.run(experiment.id)).folder.exists()]
    places = [move_aside(run) for run in stored]
    if places:
        stock.runtime.say(f"{len(places)} stored runs are now in {places[0].parent}")
    return experiments


def foreseen(study: Study, stock: Stock) -> tuple[Plan, bool]:
    """What would be run, and whether that is known for sure: ids of what is still to be tuned are not."""
    book = Book(stock.runtime.root, study.name)
    tuning = tuning_plan(study, stock)
    known = all(book.run(entry).finished for entry in tuning.entries)
    chosen = choices(study, tuning, book) if tuning.entries and known else []
    return full_plan(study, stock, tuning, chosen), known
