"""Execution of a study: tuning first, then all runs. An interrupted study continues when it is started again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from ..config.runtime import NUMERIC_DEFAULTS
from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..engine.cache import ResourceCache
from ..engine.run import check_stored_run, describe_finished_run, ensure_runs_dir
from ..storage import archive_run
from .executors import Executor, Local, ProgressFn, Slurm, list_pending
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
        resources = share_trial(trial_configs, resources, manifest, executor, fresh)
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
    resources = share_trial(run_configs, resources, manifest, executor, fresh)
    run_phase(
        archive_stored_runs(run_configs, manifest, resources, excluded_ids=trial_ids) if fresh else run_configs,
        resources,
        manifest,
        executor,
        on_start,
        "runs",
    )
    return manifest


def share_trial(
    configs: Sequence[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, executor: Executor, fresh: bool
) -> ResourceCache:
    """Make the trial for the data type ``fastest`` once for all runs of a study, because runs that are compared must not differ in it.

    Stored runs of the study decide without a trial. A run that continues keeps its own arithmetic.

    Args:
        configs: The experiments of the first phase.
        resources: The resources that runs share, and the runtime.
        manifest: The manifest of the study.
        executor: The executor of the runs, which determines their number of threads.
        fresh: Whether stored runs will be moved aside.

    Returns:
        ``resources``, or resources with the result of the trial.

    Raises:
        UserError: Other machines compute the runs, so that a trial here would say nothing about them.
    """
    from ..engine.build import resolve_arithmetic

    runtime = resources.runtime
    if runtime.dtype != "fastest" or runtime.trial is not None:
        return resources
    if isinstance(executor, Slurm) or getattr(executor, "address", None):
        raise UserError(
            "--dtype fastest needs a trial on the machine that computes; use --dtype float32 or --dtype bfloat16 with this executor"
        )
    environments = [] if fresh else [manifest.get_run(config.id).environment for config in configs]
    stored = next((environment["engine"] for environment in environments if "engine" in environment), None)
    trial_runtime = replace(runtime, threads=getattr(executor, "threads", runtime.threads))
    trial_runtime.configure_torch()
    for config in configs:
        try:
            choice = resolve_arithmetic(config, replace(resources, runtime=trial_runtime), stored)
        except Exception:  # an invalid experiment fails again as a run, which records the error
            continue
        return replace(resources, runtime=replace(runtime, trial=(choice.dtype, choice.speedup if stored is None else None)))
    return resources


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
            f"{phase}: {len(finished_ids)} of {len(finished_ids) + len(pending)} were {descriptions[0]}{others}; "
            "they are not computed again, use --fresh to repeat them"
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
    report_mixed_arithmetic(configs, resources, manifest, phase)


def report_mixed_arithmetic(configs: list[ExperimentConfig], resources: ResourceCache, manifest: StudyManifest, phase: str) -> None:
    """Report if the runs of a phase were computed in different data types, because their differences then include rounding."""
    environments = (manifest.get_run(config.id).environment for config in configs)
    counts = Counter({**NUMERIC_DEFAULTS, **environment.get("engine", {})}["dtype"] for environment in environments if environment)
    if len(counts) > 1:
        numbers = " and ".join(f"{count} in {dtype}" for dtype, count in sorted(counts.items()))
        resources.runtime.on_message(
            f"{phase}: the runs differ in their arithmetic, {numbers}, so that differences between them include rounding; "
            "use --fresh with one --dtype to compute all of them again"
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
