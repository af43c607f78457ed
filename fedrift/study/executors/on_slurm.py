"""Workers as jobs of a SLURM cluster, through submitit; each claims runs until none are left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from ...errors import UserError
from ...experiment import Experiment
from ...runtime import Runtime
from ...stock import Stock
from ..book import Book
from ..work import Tell, tell_all, work
from .executor import Executor, sendable


@dataclass(frozen=True)
class Slurm(Executor):
    """``jobs`` workers of ``minutes`` each with ``threads`` cores. ``more``: other settings of submitit's, e.g.
    ``{slurm_partition: gpu, gpus_per_node: 1}``. ``cluster`` ``local`` and ``debug`` try it without SLURM. A job that
    runs out of time leaves its run to the next; when all are gone the same command asks for new ones."""

    jobs: Annotated[int, Interval(ge=1, le=10000)] = 4
    minutes: Annotated[int, Ge(1)] = 240
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    more: dict[str, Any] = field(default_factory=dict)

    def __call__(self, experiments: Sequence[Experiment], stock: Stock, book: Book, tell: Tell) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("executor=slurm needs submitit: pip install 'fedrift[slurm]'") from None
        runtime = sendable(stock.runtime, self.threads)
        there = Book(runtime.root, book.name)
        executor = submitit.AutoExecutor(folder=there.folder / "slurm", cluster=self.cluster)
        executor.update_parameters(name=f"fedrift-{book.name}", timeout_min=self.minutes, cpus_per_task=self.threads, **self.more)
        count = min(self.jobs, len(experiments))
        with executor.batch():
            jobs = [executor.submit(_work, list(experiments), runtime, there) for _ in range(count)]
        try:
            while tell_all(experiments, book, tell):
                if all(job.done() for job in jobs) and tell_all(experiments, book, tell):
                    raise UserError(f"all {count} jobs are over and runs are left: {_told(jobs)} Logs are in "
                                    f"{there.folder / 'slurm'}; the same command submits new jobs, which resume")
                time.sleep(1.0 if self.cluster != "slurm" else 10.0)
        except BaseException:
            for job in jobs:
                job.cancel(check=False)
            raise


def _work(experiments: list[Experiment], runtime: Runtime, book: Book) -> None:
    work(experiments, Stock(runtime), book)


def _told(jobs: Sequence[Any]) -> str:
    error = next((error for job in jobs if (error := job.exception())), None)
    return f"{str(error).strip().splitlines()[-1]}." if error else "their time was up."
