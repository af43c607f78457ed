"""What an executor is: it settles all runs of a list, wherever they are computed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing.connection import wait
from threading import Event, Thread
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from ..config.runtime import Runtime
from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..engine.cache import BatchCoordinator, ResourceCache
from .manifest import StudyManifest
from .worker import ProgressFn, report_progress, run_one, run_worker


@dataclass(frozen=True)
class Executor:
    """Called with the experiments, it comes back when each is finished or failed. Whichever executor, the runs are the
    same bit for bit where the threads are (``threads``); a study may be gone on with by another one."""

    def __call__(
        self, configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, on_progress: ProgressFn
    ) -> None:
        raise NotImplementedError


def ignore_message(message: str) -> None:
    """Nobody listens to a worker."""


def prepare_for_worker(runtime: Runtime, threads: int | None = None) -> Runtime:
    """The runtime for another process: absolute paths, nobody to talk to."""
    return replace(
        runtime,
        runs_dir=runtime.runs_dir.resolve(),
        cache_dir=runtime.cache_dir.resolve(),
        data_dir=runtime.data_dir.resolve() if runtime.data_dir else None,
        on_message=ignore_message,
        threads=runtime.threads if threads is None else threads,
    )


# One run after another in this process; corpus and model are loaded once.


@dataclass(frozen=True)
class Local(Executor):
    """Start the same command again, here or on another machine that sees the folder, and they share the runs."""

    def __call__(
        self, configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, on_progress: ProgressFn
    ) -> None:
        run_worker(configs, resources, manifest, on_progress)


# Several processes on this machine, each with its own model and one run at a time.

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Processes(Executor):
    """``num_workers`` (0: one a core), each pinned to ``threads``: small models are computed faster side by side than spread
    out."""

    num_workers: Annotated[int, Interval(ge=0, le=1024)] = 0
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1

    def __call__(
        self, configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, on_progress: ProgressFn
    ) -> None:
        count = min(self.num_workers or max(1, (os.cpu_count() or 1) // self.threads), len(configs))
        runtime, context = prepare_for_worker(resources.runtime, self.threads), create_worker_context()
        errors = context.SimpleQueue()  # those outside a run: whoever had one ends

        def start() -> Any:
            worker = context.Process(
                target=_run_worker_process, args=(list(configs), runtime, StudyManifest(runtime.runs_dir, manifest.name), errors)
            )
            before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
            os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(self.threads)))  # read by the libraries when they are imported
            try:
                worker.start()
            finally:
                for name, value in before.items():
                    os.environ.pop(name) if value is None else os.environ.update({name: value})
            return worker

        workers, deaths = [start() for _ in range(count)], 0
        try:
            while report_progress(configs, manifest, on_progress):
                wait([worker.sentinel for worker in workers], timeout=1.0)
                if not errors.empty():
                    raise errors.get()
                gone = [worker for worker in workers if not worker.is_alive()]
                deaths += sum(worker.exitcode != 0 for worker in gone)
                if deaths > 3 * count:
                    raise UserError(
                        f"{deaths} workers ended by themselves (exit code {gone[-1].exitcode}); is there too little "
                        "memory? Try fewer, executor.num_workers=1. What was done is kept"
                    )
                if gone:  # a run may have been taken with it: its claim passes to the next
                    workers = [worker for worker in workers if worker.is_alive()]
                    workers += [start() for worker in gone if worker.exitcode != 0]
                    if not workers and errors.empty() and report_progress(configs, manifest, on_progress):
                        raise UserError("all workers are at their end and runs are left; the same command goes on with them")
                    time.sleep(0.1)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()


def create_worker_context() -> Any:
    """How workers begin: forked from a clean process that has done the imports once, where there is such a thing."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _run_worker_process(configs: list[ExperimentConfig], runtime: Runtime, manifest: StudyManifest, errors: Any) -> None:
    """A worker's whole life; it ends with the process that began it, however that ends. An error outside a run is handed over."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    try:
        run_worker(configs, ResourceCache(runtime), manifest)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        sent = UserError(said) if isinstance(error, UserError) else RuntimeError(said)
        sent.add_note(f"In a worker:\n{text}")
        errors.put(sent)


# Several runs in this process at once, their training steps made as one forward pass: for devices that one run leaves idle.


@dataclass(frozen=True)
class Stacked(Executor):
    """``num_concurrent_runs`` under way at once, at most ``clients_per_pass`` of their clients in one pass. Passes join runs
    with the same model, kind of tuning, batch and length; others take turns. A run's numbers are those it has alone, up to
    rounding: not bit for bit, as the other executors' are. Worth it where a step costs the same whatever its size, as on a GPU
    with small models."""

    num_concurrent_runs: Annotated[int, Interval(ge=1, le=10000)] = 8
    clients_per_pass: Annotated[int, Interval(ge=1, le=10000)] = 64

    def __call__(
        self, configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, on_progress: ProgressFn
    ) -> None:
        alike = sorted(configs, key=lambda each: (each.model, repr(each.trainable), each.training.max_seq_length, each.training.batch_size))
        count = min(self.num_concurrent_runs, len(alike))
        meeting = BatchCoordinator(count, self.clients_per_pass)
        queue, left, errors = iter(alike), list[ExperimentConfig](), list[BaseException]()
        finished = [Event() for _ in range(count)]
        threads = [
            Thread(
                target=_run_worker_thread,
                args=(queue, replace(resources, coordinator=meeting), manifest, on_progress, left, errors, event),
                daemon=True,
            )
            for event in finished
        ]
        try:
            for thread in threads:
                thread.start()
            for event in finished:  # not Thread.join: interrupted, it takes a thread that goes on for one that has ended
                while not event.wait(0.5):  # a wait without end would not see Ctrl-C everywhere
                    pass
        except BaseException:
            meeting.cancel()
            for thread in threads:
                if thread.ident is not None:  # it was started: it gives its lease back before it ends
                    thread.join()
            raise
        if errors:
            raise errors[0]
        run_worker(left, resources, manifest, on_progress)  # what another worker had


def _run_worker_thread(
    queue: Iterator[ExperimentConfig],
    resources: ResourceCache,
    manifest: StudyManifest,
    on_progress: ProgressFn,
    skipped: list[ExperimentConfig],
    errors: list[BaseException],
    finished: Event,
) -> None:
    """One run after another until none is left. An error outside a run ends all: the other threads stop at their next step."""
    meeting: BatchCoordinator = resources.coordinator  # type: ignore[assignment]
    try:
        with meeting.participant():
            try:
                for experiment in queue:
                    if meeting.is_cancelled:
                        break
                    if not run_one(experiment, resources, manifest, on_progress):
                        skipped.append(experiment)
            except BaseException as error:
                if not meeting.is_cancelled:
                    errors.append(error)
                    meeting.cancel()
    finally:
        finished.set()


# Runs as tasks of a Ray cluster, a local one by default; a task whose worker dies is begun again and resumes.


@dataclass(frozen=True)
class Ray(Executor):
    """``address``: of a cluster (``auto``: the one this machine belongs to), none for a cluster in this machine of
    ``num_workers`` (0: one a core). Every node must see the folder of the runs at the same path."""

    address: str | None = None
    num_workers: Annotated[int, Interval(ge=0, le=1024)] = 0
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1
    num_gpus: Annotated[float, Interval(ge=0, le=1024)] = 0.0

    def __call__(
        self, configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, on_progress: ProgressFn
    ) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("executor=ray needs Ray, which comes with Flower: pip install 'fedrift[flower]'") from None
        runtime, ours = prepare_for_worker(resources.runtime, self.threads), not ray.is_initialized()
        if ours:
            here: dict[str, Any] = (
                {"address": self.address}
                if self.address
                else {
                    "num_cpus": self.threads * (self.num_workers or max(1, (os.cpu_count() or 1) // self.threads)),
                    "include_dashboard": False,
                }
            )
            ray.init(**here, log_to_driver=False, logging_level=logging.ERROR)
        try:
            task = ray.remote(num_cpus=self.threads, num_gpus=self.num_gpus, max_retries=3)(_run_ray_task)
            waiting = [task.remote(experiment, runtime, StudyManifest(runtime.runs_dir, manifest.name)) for experiment in configs]
            while waiting:
                ended, waiting = ray.wait(waiting, timeout=1.0)
                ray.get(ended)
                report_progress(configs, manifest, on_progress)
        except ray.exceptions.RayTaskError as error:  # raised in a worker, outside a run
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray: {error}; what was done is kept, the same command goes on") from error
        finally:
            if ours:
                ray.shutdown()


def _run_ray_task(config: ExperimentConfig, runtime: Runtime, manifest: StudyManifest) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(runtime.threads or 1))
    while not run_one(config, _load_resources(runtime), manifest):
        time.sleep(1.0)


@lru_cache(maxsize=1)
def _load_resources(runtime: Runtime) -> ResourceCache:
    """A worker of Ray's does many tasks: what they share is loaded by the first."""
    return ResourceCache(runtime)


# Workers as jobs of a SLURM cluster, through submitit; each claims runs until none are left.


@dataclass(frozen=True)
class Slurm(Executor):
    """``num_jobs`` workers of ``timeout_min`` each with ``threads`` cores. ``submitit_parameters``: other settings of
    submitit's, e.g. ``{slurm_partition: gpu, gpus_per_node: 1}``. ``cluster`` ``local`` and ``debug`` try it without SLURM. A
    job that runs out of time leaves its run to the next; when all are gone the same command asks for new ones."""

    num_jobs: Annotated[int, Interval(ge=1, le=10000)] = 4
    timeout_min: Annotated[int, Ge(1)] = 240
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    submitit_parameters: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self, configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, on_progress: ProgressFn
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("executor=slurm needs submitit: pip install 'fedrift[slurm]'") from None
        runtime = prepare_for_worker(resources.runtime, self.threads)
        there = StudyManifest(runtime.runs_dir, manifest.name)
        executor = submitit.AutoExecutor(folder=there.folder / "slurm", cluster=self.cluster)
        executor.update_parameters(
            name=f"fedrift-{manifest.name}", timeout_min=self.timeout_min, cpus_per_task=self.threads, **self.submitit_parameters
        )
        count = min(self.num_jobs, len(configs))
        with executor.batch():
            jobs = [executor.submit(_run_slurm_job, list(configs), runtime, there) for _ in range(count)]
        try:
            while report_progress(configs, manifest, on_progress):
                if all(job.done() for job in jobs) and report_progress(configs, manifest, on_progress):
                    raise UserError(
                        f"all {count} jobs are over and runs are left: {_describe_job_error(jobs)} Logs are in "
                        f"{there.folder / 'slurm'}; the same command submits new jobs, which resume"
                    )
                time.sleep(1.0 if self.cluster != "slurm" else 10.0)
        except BaseException:
            for job in jobs:
                job.cancel(check=False)
            raise


def _run_slurm_job(configs: list[ExperimentConfig], runtime: Runtime, manifest: StudyManifest) -> None:
    run_worker(configs, ResourceCache(runtime), manifest)


def _describe_job_error(jobs: Sequence[Any]) -> str:
    error = next((error for job in jobs if (error := job.exception())), None)
    return f"{str(error).strip().splitlines()[-1]}." if error else "their time was up."


# Where a study's runs are done. On the command line ``executor=processes`` is the class named in ``__all__``.

__all__ = ["Local", "Processes", "Ray", "Slurm", "Stacked"]
