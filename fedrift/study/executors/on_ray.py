"""Runs as tasks of a Ray cluster, a local one by default; a task whose worker dies is begun again and resumes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from annotated_types import Interval

from ...errors import UserError
from ...experiment import Experiment
from ...runtime import Runtime
from ...stock import Stock
from ..book import Book
from ..work import Tell, settle, tell_all
from .executor import Executor, sendable


@dataclass(frozen=True)
class Ray(Executor):
    """``address``: of a cluster (``auto``: the one this machine belongs to), none for a cluster in this machine of
    ``workers`` (0: one a core). Every node must see the folder of the runs at the same path."""

    address: str | None = None
    workers: Annotated[int, Interval(ge=0, le=1024)] = 0
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1
    gpus: Annotated[float, Interval(ge=0, le=1024)] = 0.0

    def __call__(self, experiments: Sequence[Experiment], stock: Stock, book: Book, tell: Tell) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("executor=ray needs Ray, which comes with Flower: pip install 'fedrift[flower]'") from None
        runtime, ours = sendable(stock.runtime, self.threads), not ray.is_initialized()
        if ours:
            here: dict[str, Any] = {"address": self.address} if self.address else {
                "num_cpus": self.threads * (self.workers or max(1, (os.cpu_count() or 1) // self.threads)),
                "include_dashboard": False}
            ray.init(**here, log_to_driver=False, logging_level=logging.ERROR)
        try:
            task = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=3)(_settle)
            waiting = [task.remote(experiment, runtime, Book(runtime.root, book.name)) for experiment in experiments]
            while waiting:
                ended, waiting = ray.wait(waiting, timeout=1.0)
                ray.get(ended)
                tell_all(experiments, book, tell)
        except ray.exceptions.RayTaskError as error:  # raised in a worker, outside a run
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray: {error}; what was done is kept, the same command goes on") from error
        finally:
            if ours:
                ray.shutdown()


def _settle(experiment: Experiment, runtime: Runtime, book: Book) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(runtime.threads or 1))
    while not settle(experiment, _stock(runtime), book):
        time.sleep(1.0)


@lru_cache(maxsize=1)
def _stock(runtime: Runtime) -> Stock:
    """A worker of Ray's does many tasks: what they share is loaded by the first."""
    return Stock(runtime)
