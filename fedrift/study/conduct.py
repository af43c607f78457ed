"""A study from beginning to end, or from where it stands to its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..experiment import Experiment
from ..run import writable
from ..stock import Stock
from .book import Book
from .executors import Executor, Local
from .planning import Plan, choices, experiments_of, full_plan, tuning_plan, written
from .study import Study
from .work import Tell, unsettled

Begin = Callable[[str, Sequence[Experiment]], Tell]
"""Told what begins (``tuning`` or ``runs``) and its runs; gives back who is told of every round."""


def conduct(study: Study, stock: Stock, executor: Executor | None = None,
            begin: Begin = lambda what, experiments: lambda run, round: None) -> Book:
    """Run what is missing of a study. Killed at any moment, it goes on when asked again; a run that fails is noted and
    the study goes on without it."""
    executor = executor or Local()
    book = Book(writable(stock.runtime.root), study.name)
    tuning = tuning_plan(study, stock)
    book.forget_failures()
    chosen = []
    if tuning.entries:
        book.write(written(study, tuning, complete=False))
        carry(experiments_of(tuning, "trial"), stock, book, executor, begin, "tuning")
        chosen = choices(study, tuning, book)
    plan = full_plan(study, stock, tuning, chosen)
    book.write(written(study, plan, complete=True))
    carry(experiments_of(plan, "run"), stock, book, executor, begin, "runs")
    return book


def carry(experiments: list[Experiment], stock: Stock, book: Book, executor: Executor, begin: Begin, what: str) -> None:
    tell = begin(what, experiments)
    left = unsettled(experiments, book)
    if left:
        executor(left, stock, book, tell)


def foreseen(study: Study, stock: Stock) -> tuple[Plan, bool]:
    """What would be run, and whether that is known for sure: ids of what is still to be tuned are not."""
    book = Book(stock.runtime.root, study.name)
    tuning = tuning_plan(study, stock)
    known = all(book.run(entry).finished for entry in tuning.entries)
    chosen = choices(study, tuning, book) if tuning.entries and known else []
    return full_plan(study, stock, tuning, chosen), known
