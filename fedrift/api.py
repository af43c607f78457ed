"""The calls of the public interface: run an experiment or a study, read what is stored, diagnose and compare.

Messages go to ``logging.getLogger("fedrift")``; ``logging.basicConfig(level="INFO")`` shows them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.loader import apply_overrides, load_yaml
from .config.runtime import Runtime
from .config.schema import ExperimentConfig, parse_config
from .core.errors import UserError, closest_match
from .storage import Run, find_run, list_runs

if TYPE_CHECKING:
    import pandas as pd

    from .diagnosis.across_seeds import Diagnosis
    from .engine.cache import ResourceCache
    from .engine.callbacks import Callback
    from .studies import Study, StudyManifest
    from .studies.executors import Executor

logger = logging.getLogger("fedrift")
ConfigSource = ExperimentConfig | Mapping[str, Any] | str | PathLike[str]


def load_config(source: ConfigSource, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read and check the configuration of an experiment.

    Args:
        source: The path of a YAML file, a dictionary of the same keys, or a configuration.
        overrides: Changes as ``"key.key=value"``, for example ``"algorithm=Scaffold"``.

    Returns:
        The configuration, frozen, with all defaults.

    Raises:
        UserError: A key is unknown, a value is not allowed, or a file cannot be read; one line for each mistake.

    Example:
        >>> load_config({"dataset": "bbc"}, ["training.num_rounds=5"]).training.num_rounds
        5
    """
    if isinstance(source, ExperimentConfig):
        return parse_config(source.to_dict(), overrides) if overrides else source
    return parse_config(dict(source) if isinstance(source, Mapping) else load_yaml(Path(source)), overrides)


def run(
    config: ConfigSource,
    *,
    overrides: Iterable[str] = (),
    runs_dir: str | PathLike[str] = "runs",
    callbacks: Sequence[Callback] = (),
    fresh: bool = False,
    resources: ResourceCache | None = None,
    **runtime: Any,
) -> Run:
    """Run an experiment to its end.

    A run that was interrupted continues where it stopped, bit for bit. A finished run is returned as it is.

    Args:
        config: The experiment; whatever ``load_config`` takes.
        overrides: Changes as ``"key.key=value"``.
        runs_dir: The folder that holds the runs.
        callbacks: Called at the begin of the run, after each round and at the end; one of them may stop the run.
        fresh: Move a stored run of this experiment aside and run it again.
        resources: Loaded models and data shared between runs. Default: loaded for this run.
        **runtime: Fields of ``fedrift.config.runtime.Runtime``, for example ``device="cuda"`` or ``threads=4``.

    Returns:
        The stored run: ``run.metrics()``, ``run.trajectory()``, ``run.summary``, ``run.folder``.

    Raises:
        UserError: The configuration is wrong, its parts cannot work together, or the stored run does not answer it.

    Example:
        >>> run = fedrift.run({"dataset": "bbc", "training": {"num_rounds": 2}}, runs_dir=folder)  # doctest: +SKIP
        >>> run.metrics().query("metric == 'loss'")                                               # doctest: +SKIP
    """
    from .engine.run import move_stored_run_aside, run_experiment

    parsed = load_config(config, overrides)
    shared = _resources(resources, runs_dir, runtime)
    if fresh:
        move_stored_run_aside(parsed, shared)
    return run_experiment(parsed, shared, callbacks=callbacks)


def study(
    config: Study | Mapping[str, Any] | str | PathLike[str],
    *,
    overrides: Iterable[str] = (),
    executor: str | Executor = "local",
    runs_dir: str | PathLike[str] = "runs",
    fresh: bool = False,
    resources: ResourceCache | None = None,
    **runtime: Any,
) -> StudyManifest:
    """Run a study: every cell and seed of its design, each beside its IID baseline, tuned first where the study says so.

    Args:
        config: The path of a study's YAML file, a dictionary of the same keys, or a ``Study``.
        overrides: Changes as ``"key.key=value"``.
        executor: ``local``, ``processes``, ``stacked``, ``ray``, ``slurm``, or an ``Executor``.
        runs_dir: The folder that holds the runs.
        fresh: Move stored runs of the study aside and run them again.
        resources: Loaded models and data shared between runs. Default: loaded for this study.
        **runtime: Fields of ``fedrift.config.runtime.Runtime``.

    Returns:
        The study's manifest: its runs, tuning choices and failures.

    Raises:
        UserError: The study is wrong, or a run ended neither finished nor failed.
    """
    from .config.loader import Registry, parse_value
    from .studies import Study, executors, load_study, parse_study
    from .studies.executors import Executor
    from .studies.run import run_study

    if isinstance(config, Study):
        wanted = config
    elif isinstance(config, Mapping):
        wanted = parse_study(apply_overrides(dict(config), overrides))
    else:
        wanted = load_study(Path(config), list(overrides))
    chosen = parse_value(Executor, executor, Registry({Executor: executors}), "executor")
    return run_study(wanted, _resources(resources, runs_dir, runtime), chosen, fresh=fresh)


def load_run(name: str, runs_dir: str | PathLike[str] = "runs") -> Run:
    """Find a stored run by its id or the beginning of its id.

    Raises:
        UserError: There is no such run, or more than one.
    """
    return find_run(Path(runs_dir), name)


def diagnose(runs: Run | Sequence[Run], baseline: Run | Sequence[Run] | None = None) -> list[Diagnosis]:
    """Report which failures runs show, from which round, on which clients, and whether heterogeneity caused them.

    Args:
        runs: One run, or runs of one experiment that differ only in their seed. One or two seeds can raise a suspicion; three can
            confirm it.
        baseline: The IID baseline of each run. Default: found among the runs stored in the same folder.

    Returns:
        One ``Diagnosis`` per failure that fedrift knows, measured or not.

    Raises:
        UserError: A run cannot be read, or the runs are not of one experiment.

    Example:
        >>> base = fedrift.run(config.iid_baseline())                 # doctest: +SKIP
        >>> for each in fedrift.diagnose(run, baseline=base):         # doctest: +SKIP
        ...     print(each.grade, each.sentence)
    """
    from .diagnosis import diagnose as diagnose_evidence
    from .diagnosis.cases import group_readable_runs

    chosen = [runs] if isinstance(runs, Run) else list(runs)
    given = [] if baseline is None else [baseline] if isinstance(baseline, Run) else list(baseline)
    known = given if baseline is not None else [each for folder in {run.folder.parent for run in chosen} for each in list_runs(folder)]
    groups, unreadable = group_readable_runs(chosen, known)
    if len(groups) != 1:
        raise UserError(
            f"these runs are of {len(groups)} experiments: diagnose the runs of one experiment at a time"
            if groups
            else f"none of these runs can be read: {'; '.join(str(each) for each in unreadable)}"
        )
    if baseline is not None and not any(groups[0].baselines):
        raise UserError(
            "the baseline is not the IID baseline of these runs: it must differ in partition.severity = 0 alone; "
            "config.iid_baseline() makes it"
        )
    return diagnose_evidence(groups[0].cases)


def compare(first: Run, second: Run) -> pd.DataFrame:
    """Compare what two runs recorded, over the rounds that both have.

    Returns:
        One row per metric and domain: the mean of each over the last shared rounds, their difference (second minus first), and the
        largest difference in any shared round.
    """
    import pandas as pd

    from .studies.outcomes import compare_metrics

    return pd.DataFrame([vars(each) for each in compare_metrics(first, second)])


def _resources(resources: ResourceCache | None, runs_dir: str | PathLike[str], runtime: Mapping[str, Any]) -> ResourceCache:
    from dataclasses import fields, replace

    from .engine.cache import ResourceCache

    known = [f.name for f in fields(Runtime)]
    for name in runtime:
        if name not in known:
            near = closest_match(name, known)
            raise UserError(
                f"unknown runtime option {name!r}" + (f": did you mean {near!r}?" if near else f"; available: {', '.join(known)}")
            )
    if resources is None:
        return ResourceCache(Runtime(**{"runs_dir": Path(runs_dir), "on_message": logger.info, **runtime}))
    return replace(resources, runtime=replace(resources.runtime, runs_dir=Path(runs_dir), **runtime))
