"""Executors: the places where the runs of a study are executed.

The command line selects one by name: ``executor=processes`` is the class ``Processes``. ``__all__`` lists the available classes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from ..config.runtime import Runtime
from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..core.registry import import_files, imported_files
from ..engine.cache import ResourceCache, create_coordinator
from ..engine.callbacks import Progress
from ..engine.run import run_experiment
from ..storage import Run
from ..storage.leases import EXPIRY_S, LeaseLost, acquire_lease, keep_alive
from .manifest import StudyManifest

MAX_WORKER_DEATHS = 3  # a run counts as failed after this many workers ended unexpectedly during it
ProgressFn = Callable[[str, int], None]
"""Called with the id of a run and the round that it has reached."""


def run_worker(
    configs: Sequence[ExperimentConfig],
    resources: ResourceCache,
    manifest: StudyManifest,
    on_progress: ProgressFn = lambda run_id, round: None,
    poll_interval_s: float = 1.0,
    expiry_s: float = EXPIRY_S,
) -> None:
    """Execute runs until every run is finished or failed.

    If another worker holds a run, this worker waits for it, and takes the run over if the other worker dies.

    Args:
        configs: The experiments.
        resources: The shared resources.
        manifest: The manifest of the study.
        on_progress: Called with the id of a run and the round that it has reached.
        poll_interval_s: The time between two attempts to acquire the remaining runs, in seconds.
        expiry_s: The age of a lease, in seconds, after which its worker counts as dead.
    """
    pending = list(configs)
    while pending:
        pending = [config for config in pending if not run_one(config, resources, manifest, on_progress, expiry_s)]
        if pending:
            time.sleep(poll_interval_s)


def run_one(
    config: ExperimentConfig,
    resources: ResourceCache,
    manifest: StudyManifest,
    on_progress: ProgressFn = lambda run_id, round: None,
    expiry_s: float = EXPIRY_S,
) -> bool:
    """Execute one run unless it is done; return False if another worker holds it.

    Args:
        config: The experiment.
        resources: The shared resources.
        manifest: The manifest of the study.
        on_progress: Called with the id of the run and the round that it has reached.
        expiry_s: The age of a lease, in seconds, after which its worker counts as dead.
    """
    run = Run(Path(resources.runtime.runs_dir), config.id)
    if run.is_finished or manifest.get_failure(run.id):
        on_progress(run.id, config.training.num_rounds)
        return True
    lease = acquire_lease(run.folder, expiry_s)
    if lease is None or run.status == "running":
        if lease:
            with keep_alive(lease):
                pass
        return False
    with keep_alive(lease):
        callback_errors: list[Exception] = []  # an error of ``on_progress`` is not a failure of the run

        def watch(progress: Progress) -> None:
            lease.ensure_held()
            try:
                on_progress(run.id, progress.round)
            except Exception as error:
                callback_errors.append(error)
                raise

        try:
            if lease.generation >= MAX_WORKER_DEATHS:
                raise UserError(
                    f"{lease.generation} workers ended unexpectedly during this run, perhaps because memory ran out; use fewer workers"
                )
            run_experiment(config, resources, watch)
        except LeaseLost:
            return False
        except Exception as error:
            if error in callback_errors:
                raise
            save_failure(manifest, run, error)
    on_progress(run.id, config.training.num_rounds)
    return True


def save_failure(manifest: StudyManifest, run: Run, error: Exception) -> None:
    """Record why a run failed; if that is impossible, raise the error of the run with a note on the second error."""
    try:
        manifest.record_failure(run.id, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
    except Exception as storage_error:
        error.add_note(f"The failure could not be stored in {manifest.folder / 'failures'}: {storage_error}")
        raise error from None


def read_last_recorded_round(run: Run) -> int:
    """Return the last recorded round of a run, from the end of its records file only."""
    try:
        with open(run.folder / "records.jsonl", "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 4096))
            lines = file.read().split(b"\n")
        return int(lines[-2][1:].split(b",", 1)[0])
    except (OSError, IndexError, ValueError):
        return 0


def list_pending(configs: Sequence[ExperimentConfig], manifest: StudyManifest) -> list[ExperimentConfig]:
    """Return the runs that are neither finished nor failed."""
    return [config for config in configs if not (manifest.get_run(config.id).is_finished or manifest.get_failure(config.id))]


def report_progress(configs: Sequence[ExperimentConfig], manifest: StudyManifest, on_progress: ProgressFn) -> int:
    """Report the last recorded round of every run, and return the number of pending runs."""
    pending_ids = {config.id for config in list_pending(configs, manifest)}
    for config in configs:
        on_progress(
            config.id, read_last_recorded_round(manifest.get_run(config.id)) if config.id in pending_ids else config.training.num_rounds
        )
    return len(pending_ids)


# What a run imports first. The fork server imports it once, and its workers do not import it again.
WORKER_MODULES = (__name__, "fedrift.engine.build", "fedrift.engine.loop", "fedrift.engine.fork", "transformers.modeling_utils", "peft")


@dataclass(frozen=True)
class Executor:
    """Base class of executors.

    An executor is called with experiments and returns when each of them is finished or failed. With equal numbers of threads
    (``threads``) all executors except ``Stacked`` produce identical runs, bit for bit, and a study may be continued by another executor.

    Example:
        >>> @dataclass(frozen=True)
        ... class Reversed(Executor):
        ...     def __call__(self, configs, resources, manifest, on_progress):
        ...         run_worker(list(reversed(configs)), resources, manifest, on_progress)
    """

    def __call__(
        self, configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, on_progress: ProgressFn
    ) -> None:
        """Execute the runs.

        Args:
            configs: The experiments.
            resources: The shared resources, and the runtime.
            manifest: The manifest of the study.
            on_progress: Called with the id of a run and the round that it has reached.
        """
        raise NotImplementedError


def ignore_message(message: str) -> None:
    """Discard a message; worker processes have no console."""


def prepare_for_worker(runtime: Runtime, threads: int | None = None) -> Runtime:
    """Return the runtime for another process: its paths are absolute and its messages are discarded."""
    return replace(
        runtime,
        runs_dir=runtime.runs_dir.resolve(),
        cache_dir=runtime.cache_dir.resolve(),
        data_dir=runtime.data_dir.resolve() if runtime.data_dir else None,
        on_message=ignore_message,
        threads=runtime.threads if threads is None else threads,
    )


@dataclass(frozen=True)
class Local(Executor):
    """Execute one run after another in this process; datasets and models are loaded once.

    Several processes may execute the same study at once, also on other machines that share the folder of runs.
    """

    def __call__(
        self, configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, on_progress: ProgressFn
    ) -> None:
        run_worker(configs, resources, manifest, on_progress)


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Processes(Executor):
    """Execute runs in several processes on this machine, each with its own model and one run at a time.

    Small models are trained faster in parallel processes with one thread each than in one process with many threads.

    Attributes:
        num_workers: The number of processes; 0 means one per ``threads`` CPU cores.
        threads: The number of threads per process.
    """

    num_workers: Annotated[int, Interval(ge=0, le=1024)] = 0
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1

    def __call__(
        self, configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, on_progress: ProgressFn
    ) -> None:
        count = min(self.num_workers or max(1, (os.cpu_count() or 1) // self.threads), len(configs))
        runtime, context = prepare_for_worker(resources.runtime, self.threads), create_worker_context()
        errors = context.SimpleQueue()  # errors outside a run, which end their worker
        pickled_configs = pickle.dumps(list(configs))  # a worker must load the user's files before it can unpickle their classes

        def start() -> Any:
            worker = context.Process(
                target=_run_worker_process,
                args=(imported_files(), pickled_configs, runtime, StudyManifest(runtime.runs_dir, manifest.name), errors),
            )
            previous = {name: os.environ.get(name) for name in THREAD_VARIABLES}
            os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(self.threads)))  # libraries read these variables on import
            try:
                worker.start()
            finally:
                for name, value in previous.items():
                    os.environ.pop(name) if value is None else os.environ.update({name: value})
            return worker

        workers, deaths = [start() for _ in range(count)], 0
        try:
            while report_progress(configs, manifest, on_progress):
                wait([worker.sentinel for worker in workers], timeout=1.0)
                if not errors.empty():
                    raise errors.get()
                ended = [worker for worker in workers if not worker.is_alive()]
                deaths += sum(worker.exitcode != 0 for worker in ended)
                if deaths > 3 * count:
                    raise UserError(
                        f"{deaths} workers ended unexpectedly (exit code {ended[-1].exitcode}), perhaps because memory ran out. "
                        "Use fewer workers, e.g. executor.num_workers=1; finished runs are not lost"
                    )
                if ended:  # the next worker takes over the lease of an interrupted run
                    workers = [worker for worker in workers if worker.is_alive()]
                    workers += [start() for worker in ended if worker.exitcode != 0]
                    if not workers and errors.empty() and report_progress(configs, manifest, on_progress):
                        raise UserError("all workers have ended, but some runs are not finished; run the same command again to continue")
                    time.sleep(0.1)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()


def create_worker_context() -> Any:
    """Return the multiprocessing context: on Linux a fork server that imports ``WORKER_MODULES`` once, elsewhere new processes."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(WORKER_MODULES))
    return context


def _run_worker_process(files: dict[str, str], pickled_configs: bytes, runtime: Runtime, manifest: StudyManifest, errors: Any) -> None:
    """Run a worker process until all runs are done; it exits when its parent exits, and reports an error outside a run to the parent."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    try:
        import_files(files)
        run_worker(pickle.loads(pickled_configs), ResourceCache(runtime), manifest)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        report = UserError(message) if isinstance(error, UserError) else RuntimeError(message)
        report.add_note(f"Traceback of the worker:\n{text}")
        errors.put(report)


@dataclass(frozen=True)
class Stacked(Executor):
    """Execute several runs at once in this process and combine their training steps into one forward pass.

    This is useful if the time of a step does not depend on its size, as on a GPU with small models. A pass combines runs with the same
    model, trainable parameters, batch size and sequence length; other runs take turns. The results of a run equal those of the other
    executors up to rounding, but not bit for bit.

    Attributes:
        num_concurrent_runs: The number of concurrent runs.
        clients_per_pass: The maximum number of clients in one pass.
    """

    num_concurrent_runs: Annotated[int, Interval(ge=1, le=10000)] = 8
    clients_per_pass: Annotated[int, Interval(ge=1, le=10000)] = 64

    def __call__(
        self, configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, on_progress: ProgressFn
    ) -> None:
        ordered = sorted(
            configs, key=lambda config: (config.model, repr(config.trainable), config.training.max_seq_length, config.training.batch_size)
        )
        count = min(self.num_concurrent_runs, len(ordered))
        coordinator = create_coordinator(count, self.clients_per_pass)
        queue, skipped, errors = iter(ordered), list[ExperimentConfig](), list[BaseException]()
        finished = [Event() for _ in range(count)]
        threads = [
            Thread(
                target=_run_worker_thread,
                args=(queue, replace(resources, coordinator=coordinator), manifest, on_progress, skipped, errors, event),
                daemon=True,
            )
            for event in finished
        ]
        try:
            for thread in threads:
                thread.start()
            for event in finished:  # not Thread.join: after an interrupt it treats a running thread as ended
                while not event.wait(0.5):  # on some systems Ctrl-C does not interrupt a wait without a timeout
                    pass
        except BaseException:
            coordinator.cancel()
            for thread in threads:
                if thread.ident is not None:  # a started thread releases its lease before it ends
                    thread.join()
            raise
        if errors:
            raise errors[0]
        run_worker(skipped, resources, manifest, on_progress)  # runs that another worker held


def _run_worker_thread(
    queue: Iterator[ExperimentConfig],
    resources: ResourceCache,
    manifest: StudyManifest,
    on_progress: ProgressFn,
    skipped: list[ExperimentConfig],
    errors: list[BaseException],
    finished: Event,
) -> None:
    """Execute runs from the queue until it is empty; an error outside a run stops all threads at their next step."""
    coordinator = resources.coordinator
    assert coordinator is not None
    try:
        with coordinator.participant():
            try:
                for config in queue:
                    if coordinator.is_cancelled:
                        break
                    if not run_one(config, resources, manifest, on_progress):
                        skipped.append(config)
            except BaseException as error:
                if not coordinator.is_cancelled:
                    errors.append(error)
                    coordinator.cancel()
    finally:
        finished.set()


@dataclass(frozen=True)
class Ray(Executor):
    """Execute runs as tasks of a Ray cluster; a task whose worker dies is restarted, and its run resumes.

    Every node must see the folder of runs at the same path.

    Attributes:
        address: The address of a cluster; ``auto`` is the cluster that this machine belongs to. None starts a cluster on this machine.
        num_workers: The number of workers of a local cluster; 0 means one per ``threads`` CPU cores.
        threads: The number of threads per run.
        num_gpus: The number of GPUs per run.
    """

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
            raise UserError("executor=ray needs Ray, which is installed with Flower: pip install 'fedrift[flower]'") from None
        runtime, owns_cluster = prepare_for_worker(resources.runtime, self.threads), not ray.is_initialized()
        if owns_cluster:
            cluster_options: dict[str, Any] = (
                {"address": self.address}
                if self.address
                else {
                    "num_cpus": self.threads * (self.num_workers or max(1, (os.cpu_count() or 1) // self.threads)),
                    "include_dashboard": False,
                }
            )
            ray.init(**cluster_options, log_to_driver=False, logging_level=logging.ERROR)
        try:
            task = ray.remote(num_cpus=self.threads, num_gpus=self.num_gpus, max_retries=3)(_run_ray_task)
            pending = [task.remote(config, runtime, StudyManifest(runtime.runs_dir, manifest.name)) for config in configs]
            while pending:
                done, pending = ray.wait(pending, timeout=1.0)
                ray.get(done)
                report_progress(configs, manifest, on_progress)
        except ray.exceptions.RayTaskError as error:  # an error outside a run
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray failed: {error}. Finished runs are not lost; run the same command again to continue") from error
        finally:
            if owns_cluster:
                ray.shutdown()


def _run_ray_task(config: ExperimentConfig, runtime: Runtime, manifest: StudyManifest) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(runtime.threads or 1))
    while not run_one(config, _load_resources(runtime), manifest):
        time.sleep(1.0)


@lru_cache(maxsize=1)
def _load_resources(runtime: Runtime) -> ResourceCache:
    """Load the shared resources once per Ray worker, which executes many tasks."""
    return ResourceCache(runtime)


@dataclass(frozen=True)
class Slurm(Executor):
    """Execute runs in jobs of a SLURM cluster, through submitit; each job executes runs until none is pending.

    If a job reaches its time limit, another job resumes its run. When all jobs have ended, the same command submits new ones.

    Attributes:
        num_jobs: The number of jobs.
        timeout_min: The time limit of a job, in minutes.
        threads: The number of CPU cores per job.
        cluster: ``slurm``, or ``local`` or ``debug`` to test without SLURM.
        submitit_parameters: Other settings of submitit, e.g. ``{slurm_partition: gpu, gpus_per_node: 1}``.
    """

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
        worker_manifest = StudyManifest(runtime.runs_dir, manifest.name)
        executor = submitit.AutoExecutor(folder=worker_manifest.folder / "slurm", cluster=self.cluster)
        executor.update_parameters(
            name=f"fedrift-{manifest.name}", timeout_min=self.timeout_min, cpus_per_task=self.threads, **self.submitit_parameters
        )
        count = min(self.num_jobs, len(configs))
        with executor.batch():
            jobs = [executor.submit(_run_slurm_job, list(configs), runtime, worker_manifest) for _ in range(count)]
        try:
            while report_progress(configs, manifest, on_progress):
                if all(job.done() for job in jobs) and report_progress(configs, manifest, on_progress):
                    raise UserError(
                        f"all {count} jobs have ended, but some runs are not finished: {_describe_job_error(jobs)} The logs are in "
                        f"{worker_manifest.folder / 'slurm'}. Run the same command again to submit new jobs, which resume the runs"
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
    return f"{str(error).strip().splitlines()[-1]}." if error else "the time limit was reached."


__all__ = ["Local", "Processes", "Ray", "Slurm", "Stacked"]
