"""A study from beginning to end, or from where it stands to its end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..engine.cache import ResourceCache
from ..engine.run import check_stored_run, describe_finished_run, ensure_runs_dir
from ..storage import move_aside
from .executors import Executor, Local
from .manifest import StudyManifest
from .plan import StudyPlan, build_manifest_content, plan_study, plan_tuning, select_configs, select_settings
from .spec import Study
from .worker import ProgressFn, list_pending

StartFn = Callable[[str, Sequence[ExperimentConfig]], ProgressFn]
"""Told what begins (``tuning`` or ``runs``) and its runs; gives back who is told of every round."""


def run_study(
    study: Study,
    resources: ResourceCache,
    executor: Executor | None = None,
    on_start: StartFn = lambda what, experiments: lambda run, round: None,
    fresh: bool = False,
) -> StudyManifest:
    """Run what is missing of a study. Killed at any moment, it goes on when asked again; a run that fails is noted and
    the study goes on without it.

    Args:
        study: The study.
        resources: What runs share, and the runtime.
        executor: Where its runs are done.
        on_start: Told what begins.
        fresh: Whether stored runs are moved aside and run anew.
    """
    executor = executor or Local()
    book = StudyManifest(ensure_runs_dir(resources.runtime.runs_dir), study.name)
    earlier = {entry.run for entry in book.read()["runs"]} if book.exists else set()
    tuning = plan_tuning(study, resources)
    book.clear_failures()
    chosen = []
    if tuning.entries:
        book.write(build_manifest_content(study, tuning, complete=False))
        first = select_configs(tuning, "trial")
        run_phase(move_stored_aside(first, book, resources) if fresh else first, resources, book, executor, on_start, "tuning")
        chosen = select_settings(study, tuning, book)
    plan = plan_study(study, resources, tuning, chosen)
    unused = [id for id in earlier - plan.configs.keys() - tuning.configs.keys() if book.get_run(id).is_finished]
    if unused:
        resources.runtime.on_message(
            f"{len(unused)} finished runs that study {study.name} had before are not part of it now: they answer "
            "other settings, or are of an older fedrift whose defaults or numbers differ. They stay where they are"
        )
    book.write(build_manifest_content(study, plan, complete=True))
    runs = select_configs(plan, "run")
    trials = {entry.run for entry in tuning.entries}
    run_phase(move_stored_aside(runs, book, resources, excluded_ids=trials) if fresh else runs, resources, book, executor, on_start, "runs")
    return book


def run_phase(
    configs: list[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, executor: Executor, on_start: StartFn, phase: str
) -> None:
    """Settle some runs; those that are finished already have to be what is asked, and are counted."""
    for experiment in configs:
        if manifest.get_run(experiment.id).is_finished:
            check_stored_run(experiment, manifest.get_run(experiment.id), resources.runtime)
    left = list_pending(configs, manifest)
    kept = {experiment.id for experiment in configs if manifest.get_run(experiment.id).is_finished}
    if kept:
        ways = sorted({describe_finished_run(manifest.get_run(id)) for id in kept})
        more = f" (and {len(ways) - 1} other ways)" if len(ways) > 1 else ""
        resources.runtime.on_message(
            f"{phase}: {len(kept)} of {len(kept) + len(left)} are {ways[0]}{more}: not run again; --fresh runs them"
        )
    tell = on_start(phase, configs)
    if left:
        executor(left, resources, manifest, tell)
        lost = list_pending(left, manifest)
        if lost:
            raise UserError(
                f"{phase}: {len(lost)} of {len(left)} ended neither finished nor failed, the first is run "
                f"{lost[0].id}; the same command goes on with them"
            )


def move_stored_aside(
    configs: list[ExperimentConfig], manifest: StudyManifest, resources: ResourceCache, excluded_ids: Collection[str] = ()
) -> list[ExperimentConfig]:
    """The experiments, after their stored runs have been moved aside."""
    stored = [
        run for experiment in configs if experiment.id not in excluded_ids and (run := manifest.get_run(experiment.id)).folder.exists()
    ]
    places = [move_aside(run) for run in stored]
    if places:
        resources.runtime.on_message(f"{len(places)} stored runs are now in {places[0].parent}")
    return configs


def preview_study(study: Study, resources: ResourceCache) -> tuple[StudyPlan, bool]:
    """What would be run, and whether that is known for sure: ids of what is still to be tuned are not."""
    book = StudyManifest(resources.runtime.runs_dir, study.name)
    tuning = plan_tuning(study, resources)
    known = all(book.get_run(entry).is_finished for entry in tuning.entries)
    chosen = select_settings(study, tuning, book) if tuning.entries and known else []
    return plan_study(study, resources, tuning, chosen), known
