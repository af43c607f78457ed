"""Several processes on this machine, each with its own model and one run at a time."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Annotated, Any

from annotated_types import Interval

from ...errors import UserError
from ...experiment import Experiment
from ...runtime import Runtime
from ...stock import Stock
from ..book import Book
from ..work import Tell, tell_all, work
from .executor import Executor, sendable

PINS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Processes(Executor):
    """``workers`` (0: one a core), each pinned to ``threads``: small models are computed faster side by side than spread out."""

    workers: Annotated[int, Interval(ge=0, le=1024)] = 0
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1

    def __call__(self, experiments: Sequence[Experiment], stock: Stock, book: Book, tell: Tell) -> None:
        count = min(self.workers or max(1, (os.cpu_count() or 1) // self.threads), len(experiments))
        runtime, context = sendable(stock.runtime, self.threads), ready()
        errors = context.SimpleQueue()  # those outside a run: whoever had one ends

        def start() -> Any:
            worker = context.Process(target=_work, args=(list(experiments), runtime, Book(runtime.root, book.name), errors))
            before = {name: os.environ.get(name) for name in PINS}
            os.environ.update(dict.fromkeys(PINS, str(self.threads)))  # read by the libraries when they are imported
            try:
                worker.start()
            finally:
                for name, value in before.items():
                    os.environ.pop(name) if value is None else os.environ.update({name: value})
            return worker

        workers, deaths = [start() for _ in range(count)], 0
        try:
            while tell_all(experiments, book, tell):
                wait([worker.sentinel for worker in workers], timeout=1.0)
                if not errors.empty():
                    raise errors.get()
                gone = [worker for worker in workers if not worker.is_alive()]
                deaths += sum(worker.exitcode != 0 for worker in gone)
                if deaths > 3 * count:
                    raise UserError(f"{deaths} workers ended by themselves (exit code {gone[-1].exitcode}); is there too little "
                                    "memory? Try fewer, executor.workers=1. What was done is kept")
                if gone:  # a run may have been taken with it: its claim passes to the next
                    workers = [worker for worker in workers if worker.is_alive()]
                    workers += [start() for worker in gone if worker.exitcode != 0]
                    if not workers and errors.empty() and tell_all(experiments, book, tell):
                        raise UserError("all workers are at their end and runs are left; the same command goes on with them")
                    time.sleep(0.1)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()


def ready() -> Any:
    """How workers begin: forked from a clean process that has done the imports once, where there is such a thing."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _work(experiments: list[Experiment], runtime: Runtime, book: Book, errors: Any) -> None:
    """A worker's whole life; it ends with the process that began it, however that ends. An error outside a run is handed over."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    try:
        work(experiments, Stock(runtime), book)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        sent = UserError(said) if isinstance(error, UserError) else RuntimeError(said)
        sent.add_note(f"In a worker:\n{text}")
        errors.put(sent)
