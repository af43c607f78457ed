"""Execution of a study: tuning first, then all runs. An interrupted study continues when it is started again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..engine.cache import ResourceCache
from ..engine.run import check_stored_run, describe_finished_run, ensure_runs_dir
from ..storage import archive_run
from .executors import Executor, Local, ProgressFn, list_pending
from .manifest import StudyManifest
from .plan import StudyPlan, build_manifest_content, plan_study, plan_tuning, select_configs, select_settings
from .spec import Study

StartFn = Callable[[str, Sequence[ExperimentConfig]], ProgressFn]
"""Called with the phase that begins ("tuning" or "runs") and its experiments; returns the callback for the progress of every round."""


def run_study(
    study: Study,
    resources: ResourceCache,
    executor: Executor | None = None,
    on_start: StartFn = lambda phase, configs: lambda run_id, round: None,
    fresh: bool = False,
) -> StudyManifest:
    """Execute the missing runs of a study.

    A study that was interrupted at any point continues when it is started again. A run that fails is recorded, and the study continues
    without it.

    Args:
        study: The study.
        resources: The resources that runs share, and the runtime.
        executor: The executor of the runs; the default is ``Local``.
        on_start: Called when a phase begins.
        fresh: Whether to move stored runs aside and execute them again.

    Returns:
        The manifest of the study.

    Raises:
        UserError: The study is invalid, or an executor ended before all runs were finished or failed.

    Example:
        >>> study = load_study(Path("study.yaml"))
        >>> manifest = run_study(study, ResourceCache())
        >>> table, verdicts = evaluate_study_hypotheses(manifest)
    """
    executor = executor or Local()
    manifest = StudyManifest(ensure_runs_dir(resources.runtime.runs_dir), study.name)
    previous_ids = {entry.run for entry in manifest.read()["runs"]} if manifest.exists else set()
    trial_plan = plan_tuning(study, resources)
    manifest.clear_failures()
    tuning_results = []
    if trial_plan.entries:
        manifest.write(build_manifest_content(study, trial_plan, complete=False))
        trial_configs = select_configs(trial_plan, "trial")
        resources = fix_arithmetic(trial_configs, resources, manifest, fresh)
        run_phase(
            archive_stored_runs(trial_configs, manifest, resources) if fresh else trial_configs,
            resources,
            manifest,
            executor,
            on_start,
            "tuning",
        )
        tuning_results = select_settings(study, trial_plan, manifest)
    plan = plan_study(study, resources, trial_plan, tuning_results)
    unused = [id for id in previous_ids - plan.configs.keys() - trial_plan.configs.keys() if manifest.get_run(id).is_finished]
    if unused:
        resources.runtime.on_message(
            f"{len(unused)} finished runs are no longer part of study {study.name}: their settings differ, or an older "
            "version of fedrift with other defaults or numerics made them. They remain stored"
        )
    manifest.write(build_manifest_content(study, plan, complete=True))
    run_configs = select_configs(plan, "run")
    trial_ids = {entry.run for entry in trial_plan.entries}
    resources = fix_arithmetic(run_configs, resources, manifest, fresh)
    run_phase(
        archive_stored_runs(run_configs, manifest, resources, excluded_ids=trial_ids) if fresh else run_configs,
        resources,
        manifest,
        executor,
        on_start,
        "runs",
    )
    return manifest


def fix_arithmetic(configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, fresh: bool) -> ResourceCache:
    """Replace the data type ``fastest`` by one that all runs of a study share, because runs that are compared must not differ in it.

    Stored runs of the study decide. Without any, the first run makes the trial here, before workers start.

    Args:
        configs: The experiments of the first phase.
        resources: The resources that runs share, and the runtime.
        manifest: The manifest of the study.
        fresh: Whether stored runs will be moved aside.

    Returns:
        ``resources``, or resources with the chosen data type.
    """
    if resources.runtime.dtype != "fastest" or not configs:
        return resources
    from ..engine.build import resolve_arithmetic

    environments = [] if fresh else [manifest.get_run(config.id).environment for config in configs]
    stored = next((environment["engine"] for environment in environments if "engine" in environment), None)
    return resources.with_dtype(resolve_arithmetic(configs[0], resources, stored).dtype)


def run_phase(
    configs: list[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, executor: Executor, on_start: StartFn, phase: str
) -> None:
    """Execute the pending runs of one phase; check that finished runs match their experiments, and report their number."""
    for config in configs:
        if manifest.get_run(config.id).is_finished:
            check_stored_run(config, manifest.get_run(config.id), resources.runtime)
    pending = list_pending(configs, manifest)
    finished_ids = {config.id for config in configs if manifest.get_run(config.id).is_finished}
    if finished_ids:
        descriptions = sorted({describe_finished_run(manifest.get_run(id)) for id in finished_ids})
        others = f" (or {len(descriptions) - 1} other dates or settings)" if len(descriptions) > 1 else ""
        resources.runtime.on_message(
            f"{phase}: {len(finished_ids)} of {len(finished_ids) + len(pending)} were {descriptions[0]}{others} and are not run again; "
            "use --fresh to run them"
        )
    on_progress = on_start(phase, configs)
    if pending:
        executor(pending, resources, manifest, on_progress)
        still_pending = list_pending(pending, manifest)
        if still_pending:
            raise UserError(
                f"{phase}: {len(still_pending)} of {len(pending)} runs are neither finished nor failed, the first is "
                f"{still_pending[0].id}; run the same command again to continue"
            )


def archive_stored_runs(
    configs: list[ExperimentConfig], manifest: StudyManifest, resources: ResourceCache, excluded_ids: Collection[str] = ()
) -> list[ExperimentConfig]:
    """Move the stored runs of the experiments aside, and return the experiments."""
    stored = [run for config in configs if config.id not in excluded_ids and (run := manifest.get_run(config.id)).folder.exists()]
    targets = [archive_run(run) for run in stored]
    if targets:
        resources.runtime.on_message(f"{len(targets)} stored runs are now in {targets[0].parent}")
    return configs


def preview_study(study: Study, resources: ResourceCache) -> tuple[StudyPlan, bool]:
    """Return the plan of a study without executing it, and whether the plan is final.

    The run ids are not final before tuning is finished.
    """
    manifest = StudyManifest(resources.runtime.runs_dir, study.name)
    trial_plan = plan_tuning(study, resources)
    is_final = all(manifest.get_run(entry).is_finished for entry in trial_plan.entries)
    tuning_results = select_settings(study, trial_plan, manifest) if trial_plan.entries and is_final else []
    return plan_study(study, resources, trial_plan, tuning_results), is_final
