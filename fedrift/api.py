"""The functions of the public interface: run an experiment or a study, load stored runs, diagnose them and compare them.

Messages go to the logger ``logging.getLogger("fedrift")``; ``logging.basicConfig(level="INFO")`` shows them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.loader import apply_overrides, load_yaml
from .config.loader.yaml_text import find_ready
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
    """Load and check the configuration of an experiment.

    Args:
        source: The path of a YAML file, the name of a ready experiment such as ``"demo"``, a dictionary with the same keys, or a
            configuration.
        overrides: Changes as ``"key.key=value"``, for example ``"algorithm=Scaffold"``.

    Returns:
        The immutable configuration with all defaults.

    Raises:
        UserError: A key is unknown, a value is not allowed, or the file cannot be read. The message has one line per mistake.

    Example:
        >>> load_config({"dataset": "bbc"}, ["training.num_rounds=5"]).training.num_rounds
        5
    """
    if isinstance(source, ExperimentConfig):
        return parse_config(source.to_dict(), overrides) if overrides else source
    return parse_config(dict(source) if isinstance(source, Mapping) else load_yaml(find_ready(Path(source), "experiments")), overrides)


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
    """Run an experiment until its last round.

    An interrupted run continues from its last checkpoint, and its results are bit for bit those of a run without interruption. If
    the run is finished already, it is returned without running again. A run that a callback stopped is finished too, because callbacks
    are not part of the configuration; ``fresh=True`` runs it again.

    Args:
        config: The experiment, in any form that ``load_config`` accepts.
        overrides: Changes as ``"key.key=value"``.
        runs_dir: The folder of the runs.
        callbacks: Called at the start of the run, after each round and at the end. A callback can stop the run.
        fresh: Whether to move a stored run of this experiment to another folder and run the experiment again.
        resources: Loaded models and data that several runs share. Default: loaded for this run.
        **runtime: Fields of ``fedrift.Runtime``, for example ``device="cuda"`` or ``threads=4``.

    Returns:
        The stored run, with ``run.metrics()``, ``run.trajectory()``, ``run.summary()`` and ``run.folder``.

    Raises:
        UserError: The configuration is invalid or cannot be run, or the folder of the run contains another experiment.

    Example:
        >>> run = fedrift.run(config, runs_dir=folder)
        >>> run.status
        'finished'
        >>> run.trajectory().rounds.tolist()
        [0, 1]
    """
    from .engine.run import archive_stored_run, run_experiment

    experiment = load_config(config, overrides)
    run_resources = _resources(resources, runs_dir, runtime)
    if fresh:
        archive_stored_run(experiment, run_resources)
    return run_experiment(experiment, run_resources, callbacks=callbacks)


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
    """Run a study: all conditions and seeds of its design, each with its IID baseline.

    If the study defines a tuning stage, hyperparameters are tuned first. Finished runs are not run again.

    Args:
        config: The path of the YAML file of a study, the name of a ready one such as ``"small"``, a dictionary with the same keys, or
            a ``Study``.
        overrides: Changes as ``"key.key=value"``.
        executor: ``local``, ``processes``, ``stacked``, ``ray``, ``slurm``, or an ``Executor``.
        runs_dir: The folder of the runs.
        fresh: Whether to move stored runs of the study to another folder and run them again.
        resources: Loaded models and data that the runs share. Default: loaded for this study.
        **runtime: Fields of ``fedrift.Runtime``.

    Returns:
        The manifest of the study, which lists its runs, tuned values and failures.

    Raises:
        UserError: The study is invalid, or a run has neither finished nor failed.

    Example:
        >>> study = {"name": "two-partitions", "base": config.to_dict(), "metrics": ["loss"]}
        >>> manifest = fedrift.study(study, runs_dir=folder)
        >>> [entry.role for entry in manifest.read()["runs"]]
        ['run', 'iid_baseline']
    """
    from .config.loader import Registry, parse_value
    from .studies import Study, executors, load_study, parse_study
    from .studies.executors import Executor
    from .studies.run import run_study

    if isinstance(config, Study):
        parsed_study = config
    elif isinstance(config, Mapping):
        parsed_study = parse_study(apply_overrides(dict(config), overrides))
    else:
        parsed_study = load_study(find_ready(Path(config), "studies"), list(overrides))
    parsed_executor = parse_value(Executor, executor, Registry({Executor: executors}), "executor")
    return run_study(parsed_study, _resources(resources, runs_dir, runtime), parsed_executor, fresh=fresh)


def load_run(name: str, runs_dir: str | PathLike[str] = "runs") -> Run:
    """Load a stored run.

    Args:
        name: The id of the run, its first characters, a tag that only it has, or its folder.
        runs_dir: The folder of the runs.

    Returns:
        The stored run.

    Raises:
        UserError: No run or more than one run has such an id.

    Example:
        >>> run = fedrift.load_run(run.id[:6], runs_dir=folder)
        >>> run.trajectory().curve("loss").shape
        (2,)
    """
    return find_run(Path(runs_dir), name)


def diagnose(runs: Run | Sequence[Run], baseline: Run | Sequence[Run] | None = None) -> list[Diagnosis]:
    """Diagnose which failures runs show, from which round on, for which clients, and whether heterogeneity caused them.

    Args:
        runs: One run, or runs that differ only in their seed. A failure can be suspected with one or two seeds, and confirmed with
            three or more.
        baseline: The IID baseline of each run. Default: searched among the runs in the same folder.

    Returns:
        One ``Diagnosis`` per failure that fedrift can detect, including failures that the runs do not show or cannot show.

    Raises:
        UserError: A run cannot be read, the runs differ in more than their seed, or ``baseline`` is not their IID baseline.

    Example:
        >>> diagnoses = fedrift.diagnose(run, baseline=baseline)
        >>> {diagnosis.failure: diagnosis.grade for diagnosis in diagnoses}["dead model"]
        'none'
    """
    from .diagnosis import diagnose as diagnose_evidence
    from .diagnosis.cases import group_readable_runs

    run_list = [runs] if isinstance(runs, Run) else list(runs)
    baselines = [] if baseline is None else [baseline] if isinstance(baseline, Run) else list(baseline)
    candidates = (
        baselines
        if baseline is not None
        else [stored for folder in {run.folder.parent for run in run_list} for stored in list_runs(folder)]
    )
    groups, unreadable = group_readable_runs(run_list, candidates)
    if len(groups) != 1:
        raise UserError(
            f"these runs belong to {len(groups)} experiments; diagnose the runs of one experiment at a time"
            if groups
            else f"none of these runs can be read: {'; '.join(str(error) for error in unreadable)}"
        )
    if baseline is not None and not any(groups[0].baselines):
        raise UserError(
            "the baseline is not the IID baseline of these runs: it may differ only in partition.severity, which must be 0, and then in "
            "partition.alpha, which has no effect; "
            "config.iid_baseline() returns its configuration"
        )
    return diagnose_evidence(groups[0].cases)


def compare(first: Run, second: Run) -> pd.DataFrame:
    """Compare the recorded metrics of two runs in the rounds that both have recorded.

    Args:
        first: The first run.
        second: The second run.

    Returns:
        One row per metric and domain, with the mean of each run over the last shared rounds, the difference of the means (second minus
        first), and the largest difference in a shared round.

    Raises:
        UserError: The records of a run cannot be read.

    Example:
        >>> table = fedrift.compare(run, baseline)
        >>> "loss" in set(table.metric)
        True
    """
    import pandas as pd

    from .studies.run_comparison import compare_metrics

    return pd.DataFrame([vars(comparison) for comparison in compare_metrics(first, second)])


def _resources(resources: ResourceCache | None, runs_dir: str | PathLike[str], runtime: Mapping[str, Any]) -> ResourceCache:
    """Combine shared resources, the folder of the runs and runtime options.

    Raises:
        UserError: A runtime option is unknown.
    """
    from dataclasses import fields, replace

    from .engine.cache import ResourceCache

    options = [f.name for f in fields(Runtime)]
    for name in runtime:
        if name not in options:
            match = closest_match(name, options)
            raise UserError(
                f"unknown runtime option {name!r}" + (f": did you mean {match!r}?" if match else f"; available: {', '.join(options)}")
            )
    if resources is None:
        return ResourceCache(Runtime(**{"runs_dir": Path(runs_dir), "on_message": logger.info, **runtime}))
    return replace(resources, runtime=replace(resources.runtime, runs_dir=Path(runs_dir), **runtime))
