"""One run after another in this process; corpus and model are loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...experiment import Experiment
from ...stock import Stock
from ..book import Book
from ..work import Tell, work
from .executor import Executor


@dataclass(frozen=True)
class Local(Executor):
    """Start the same command again, here or on another machine that sees the folder, and they share the runs."""

    def __call__(self, experiments: Sequence[Experiment], stock: Stock, book: Book, tell: Tell) -> None:
        work(experiments, stock, book, tell)
