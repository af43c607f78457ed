"""Doing the runs of a study: claim one, carry it out, note what stopped it, go on with the next."""

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

MAX_WORKER_DEATHS = 3  # workers that a run may cost before it counts as failed
ProgressFn = Callable[[str, int], None]
"""Told the id of a run and the round that it has reached."""


def run_worker(
    configs: Sequence[ExperimentConfig],
    resources: ResourceCache,
    manifest: StudyManifest,
    on_progress: ProgressFn = lambda run, round: None,
    poll_interval_s: float = 1.0,
    expiry_s: float = EXPIRY_S,
) -> None:
    """Settle all runs: each is finished or failed at the end, by this worker or by another.

    A run that another worker has is waited for, and taken over should that worker die.
    """
    left = list(configs)
    while left:
        left = [experiment for experiment in left if not run_one(experiment, resources, manifest, on_progress, expiry_s)]
        if left:
            time.sleep(poll_interval_s)


def run_one(
    config: ExperimentConfig,
    resources: ResourceCache,
    manifest: StudyManifest,
    on_progress: ProgressFn = lambda run, round: None,
    expiry_s: float = EXPIRY_S,
) -> bool:
    """Do one run unless it is done; False if another worker has it."""
    run = Run(Path(resources.runtime.runs_dir), config.id)
    if run.is_finished or manifest.get_failure(run.id):
        on_progress(run.id, config.training.num_rounds)
        return True
    mine = acquire_lease(run.folder, expiry_s)
    if mine is None or run.status == "running":
        if mine:
            with keep_alive(mine):
                pass
        return False
    with keep_alive(mine):
        outside: list[Exception] = []  # an error of who is told: no run has failed by it

        def watch(told: Progress) -> None:
            mine.ensure_held()
            try:
                on_progress(run.id, told.round)
            except Exception as error:
                outside.append(error)
                raise

        try:
            if mine.generation >= MAX_WORKER_DEATHS:
                raise UserError(f"{mine.generation} workers ended while they had this run; is there too little memory?")
            run_experiment(config, resources, watch)
        except LeaseLost:
            return False
        except Exception as error:
            if error in outside:
                raise
            save_failure(manifest, run, error)
    on_progress(run.id, config.training.num_rounds)
    return True


def save_failure(manifest: StudyManifest, run: Run, error: Exception) -> None:
    """Store why a run stopped; if that fails, the run's own error is raised with the other as its note."""
    try:
        manifest.record_failure(run.id, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
    except Exception as second:
        error.add_note(f"This could not be stored in {manifest.folder / 'failures'}: {second}")
        raise error from None


def read_last_recorded_round(run: Run) -> int:
    """The round that a run's rows have come to, without reading all of them."""
    try:
        with open(run.folder / "records.jsonl", "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 4096))
            lines = file.read().split(b"\n")
        return int(lines[-2][1:].split(b",", 1)[0])
    except (OSError, IndexError, ValueError):
        return 0


def list_pending(configs: Sequence[ExperimentConfig], manifest: StudyManifest) -> list[ExperimentConfig]:
    """The runs that are neither finished nor failed."""
    return [
        experiment for experiment in configs if not (manifest.get_run(experiment.id).is_finished or manifest.get_failure(experiment.id))
    ]


def report_progress(configs: Sequence[ExperimentConfig], manifest: StudyManifest, on_progress: ProgressFn) -> int:
    """Tell how far every run is, by looking at the store; how many are left."""
    left = {experiment.id for experiment in list_pending(configs, manifest)}
    for experiment in configs:
        on_progress(
            experiment.id,
            read_last_recorded_round(manifest.get_run(experiment.id)) if experiment.id in left else experiment.training.num_rounds,
        )
    return len(left)
