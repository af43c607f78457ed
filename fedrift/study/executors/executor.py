"""What an executor is: it settles all runs of a list, wherever they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...experiment import Experiment
from ...runtime import Runtime
from ...stock import Stock
from ..book import Book
from ..work import Tell


@dataclass(frozen=True)
class Executor:
    """Called with the experiments, it comes back when each is finished or failed. Whichever executor, the runs are the
    same bit for bit where the threads are (``threads``); a study may be gone on with by another one."""

    def __call__(self, experiments: Sequence[Experiment], stock: Stock, book: Book, tell: Tell) -> None:
        raise NotImplementedError


def silent(message: str) -> None:
    """Nobody listens to a worker."""


def sendable(runtime: Runtime, threads: int | None = None) -> Runtime:
    """The runtime for another process: absolute paths, nobody to talk to."""
    return replace(runtime, root=runtime.root.resolve(), cache=runtime.cache.resolve(),
                   data=runtime.data.resolve() if runtime.data else None, say=silent,
                   threads=runtime.threads if threads is None else threads)
