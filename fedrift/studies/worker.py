"""Execution of the runs of a study by one worker: acquire a run, execute it, record its failure if it fails, and take the next one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..engine.cache import ResourceCache
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
