"""The specification of a study: its factors, stages, seeds, tuning and hypotheses, read from one YAML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, MaxLen, MinLen

from ..config.loader import Registry, apply_overrides, dump_value, load_yaml, parse_value, set_key
from ..core.errors import UserError, quote_value
from ..core.random import Seed
from ..stats import hypotheses as claims
from ..stats.hypotheses import Hypothesis
from ..stats.verdicts import Gate
from . import designs
from .designs import Design, FullGrid


@dataclass(frozen=True)
class Factor:
    """A factor of a study.

    ``name`` is its column in tables. ``levels`` maps the label of each level to its changes, ``{path in the experiment: value}``.
    """

    name: str
    levels: dict[Any, dict[str, Any]]


def parse_factors(raw: Mapping[str, Any]) -> dict[str, Factor]:
    """Parse the ``factors`` section of a study file, in its order.

    ``partition.severity: [0.5, 1]`` varies one path. ``skew: {topic: {partition.type: TopicMix}, style: {...}}`` names each level and
    gives it any number of changes.

    Raises:
        UserError: A factor has no levels, two equal levels, or levels of another form.
    """
    factors = {}
    for key, levels in raw.items():
        name = key.removesuffix(".type")
        if isinstance(levels, Mapping):
            invalid = [
                label
                for label, changes in levels.items()
                if not isinstance(changes, Mapping) or not all(isinstance(path, str) for path in changes)
            ]
            if invalid or not levels:
                raise UserError(
                    f"factors.{key}: each named level must be a mapping {{path: value, ...}}, e.g. topic: {{partition.type: TopicMix}}; "
                    f"got {quote_value(invalid) if invalid else 'no level'}. To vary the path {key} itself, give a list of values"
                )
            factors[name] = Factor(name, {label: dict(changes) for label, changes in levels.items()})
        elif isinstance(levels, (list, tuple)) and levels:
            factors[name] = Factor(name, dict(zip(label_levels(levels), ({key: value} for value in levels), strict=True)))
        else:
            raise UserError(f"factors.{key}: must be a list of values or a mapping of named levels, got {quote_value(levels)}")
        if len(factors[name].levels) != len(levels):
            raise UserError(f"factors.{key}: two levels are the same: {quote_value(list(levels))}; remove one")
    return factors


def label_levels(values: Iterable[Any]) -> list[Any]:
    """Return the labels of a list of levels: the value itself, or its class name, with its settings if the name is not unique."""
    values = list(values)
    names = Counter(get_class_name(value) if isinstance(value, Mapping) else value if isinstance(value, str) else None for value in values)
    return [label_level(value, names) for value in values]


def get_class_name(value: Mapping[str, Any]) -> str | None:
    """Return the class that a mapping names under ``type``, or None."""
    name = value.get("type")
    return name if isinstance(name, str) else None


def label_level(value: Any, names: Counter[Any]) -> Any:
    """Return the label of one level; ``names`` counts the class names of all levels."""
    if isinstance(value, Mapping):
        settings = ", ".join(f"{key}={setting}" for key, setting in value.items() if key != "type")
        name = get_class_name(value)
        return name if name and names[name] == 1 else f"{name} {settings}" if name and settings else name or settings
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "none" if value is None else value


def apply_changes(raw_config: dict[str, Any], changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Apply all changes to the YAML of an experiment, shorter paths first: ``algorithm`` before ``algorithm.mu``.

    Args:
        raw_config: The experiment as plain YAML.
        changes: Mappings from a path to its new value.

    Raises:
        UserError: Two changes set the same path to different values.
    """
    merged: dict[str, Any] = {}
    for change in changes:
        for path, value in change.items():
            if path in merged and merged[path] != value:
                raise UserError(
                    f"{quote_value(path)} is set to {quote_value(merged[path])} and to {quote_value(value)} in the same run; "
                    "let only one factor set it"
                )
            merged[path] = value
    for path in sorted(merged, key=lambda path: path.removesuffix(".type").count(".")):
        raw_config = set_key(raw_config, path, merged[path])
    return raw_config


def format_cell(cell: Mapping[str, Any]) -> str:
    """Format a cell of the design in words, for example ``algorithm=FedAvg, partition.severity=0.5``."""
    return ", ".join(f"{factor}={label}" for factor, label in cell.items()) or "all"


# The dataclasses of a study file, and its parser.

REGISTRY = Registry({Design: designs, Hypothesis: claims})
MAX_RUNS = 100_000  # limit on the runs of a stage, and on the combinations from which tuning draws its trials
NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


@dataclass(frozen=True)
class Tuning:
    """The tuning stage: every combination of levels of the factors ``tune_per`` gets the same number of trials.

    Attributes:
        trials: The number of trials per combination; 0 disables tuning.
        tune_per: The factors whose combinations of levels are tuned separately.
        space: Path -> candidate values, for all combinations.
        space_by_level: Level -> path -> candidate values of that level only. Trials are drawn without replacement from the product of
            both spaces.
        seeds: The seeds of the trials, which must differ from those of the study.
        at_levels: Factor -> level of the other factors during tuning; the default is their first level.
        overrides: Path -> value, other changes during tuning, such as fewer rounds.
        split: The text on which trials are evaluated.
        metric: The outcome whose best mean over ``seeds`` wins: the highest of accuracies, scores and gains, the lowest of all others.
        baseline_levels: Levels of ``tune_per`` whose trials run on the IID baseline.
    """

    trials: Annotated[int, Ge(0)] = 0
    tune_per: tuple[str, ...] = ("algorithm",)
    space: dict[str, list[Any]] = field(default_factory=dict)
    space_by_level: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    seeds: Annotated[tuple[Seed, ...], MinLen(1)] = (1000,)
    at_levels: dict[str, Any] = field(default_factory=dict)
    baseline_levels: tuple[str, ...] = ()
    overrides: dict[str, Any] = field(default_factory=dict)
    split: Literal["validation", "test"] = "validation"
    metric: str = "loss"


@dataclass(frozen=True)
class Study:
    """A study, as its YAML file defines it.

    Attributes:
        name: The name, which is also the name of its folder.
        base: The base experiment as plain YAML. In a file it may be a path relative to that file.
        question: The research question in words.
        overrides: Path -> value, changes to the base experiment.
        factors: The factors and their levels (see ``parse_factors``).
        design: The combinations of levels that are run.
        seeds: The seeds, or their number, counted from 0.
        iid_baselines: Whether every run also has its IID baseline.
        tuning: The tuning stage.
        metrics: The outcomes in the table of runs.
        hypotheses: The hypotheses to test.
        stages: Parts of the study. Each has a ``name`` and the fields that differ from the study: ``overrides``, ``factors``, ``design``,
            ``seeds`` and ``iid_baselines``. Without stages there is one stage, ``main``.
        gate: The condition on which a hypothesis is judged at all: its IID baselines must have learned enough.

    Example:
        A study file::

            name: severity
            base: ../experiments/base.yaml
            factors:
              algorithm: [FedAvg, FedProx]
              partition.severity: [0.5, 1.0]
            seeds: 6
    """

    name: Annotated[str, MinLen(1), MaxLen(100)]
    base: dict[str, Any]
    question: Annotated[str, MaxLen(10_000)] = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, Any] = field(default_factory=dict)
    design: Design = FullGrid()
    seeds: Annotated[int, Interval(ge=1, le=10_000)] | Annotated[tuple[Seed, ...], MinLen(1)] = (0,)
    iid_baselines: bool = True
    tuning: Tuning = Tuning()
    metrics: tuple[str, ...] = ("loss", "final.loss", "gap", "gap.worst", "oscillation", "movement")
    hypotheses: tuple[Hypothesis, ...] = ()
    gate: Gate | None = None
    stages: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the whole study as plain YAML, including defaults."""
        return dict(dump_value(self, REGISTRY))


STAGE_KEYS = ("name", "overrides", "factors", "design", "seeds", "iid_baselines")


def load_study(path: Path, overrides: Iterable[str] = ()) -> Study:
    """Load a study and its base experiment from a YAML file.

    Args:
        path: The study file.
        overrides: Changes as ``path=value``, as on the command line.

    Raises:
        UserError: The file or its contents are invalid.
    """
    raw = load_yaml(path, kind="study", example="base: my.yaml")
    base = raw.get("base")
    if isinstance(base, str):
        raw = {**raw, "base": load_yaml(Path(path).parent / base)}
    return parse_study(apply_overrides(raw, overrides))


def parse_study(raw: dict[str, Any], is_stored: bool = False) -> Study:
    """Parse a study from plain YAML and check that its parts are compatible.

    Args:
        raw: The study as plain YAML.
        is_stored: Whether it is from a manifest. Its metrics are then not checked, since its runs exist and can be reported.

    Returns:
        The study.

    Raises:
        UserError: A value is invalid, the study is too large, tuning shares seeds with the study, or no run can have a metric.
    """
    from .outcomes import check_metrics  # which imports this module

    study: Study = parse_value(Study, raw, REGISTRY)
    if not study.name or set(study.name) - set(NAME_CHARACTERS) or study.name[0] == ".":
        raise UserError(
            f"name: {quote_value(study.name)} cannot name a folder; use only letters, digits, '-', '_' and '.', and do not begin with '.'"
        )
    stage_names = set()
    for stage in expand_stages(study):
        factors = parse_factors(stage.factors)
        runs = len(list_seeds(stage)) * (
            prod(len(factor.levels) for factor in factors.values()) if isinstance(stage.design, FullGrid) else 1
        )
        if runs > MAX_RUNS:
            raise UserError(
                f"factors: the stage {stage.name!r} has {quote_value(runs)} runs, all combinations of levels and seeds; "
                f"at most {MAX_RUNS:,} are allowed. Use fewer levels or seeds, or another design"
            )
        if stage.name in stage_names:
            raise UserError(f"stages: two stages have the name {quote_value(stage.name)}; rename one")
        stage_names.add(stage.name)
        shared_seeds = sorted(set(list_seeds(stage)) & set(study.tuning.seeds)) if study.tuning.trials else []
        if shared_seeds:
            raise UserError(f"tuning.seeds: {shared_seeds} are also seeds of the study; use other seeds for tuning")
    num_common = prod(len(values) for values in study.tuning.space.values())
    for level, space in {"": {}, **study.tuning.space_by_level}.items():
        num_combinations = num_common * prod(len(values) for values in space.values())
        if not 1 <= num_combinations <= MAX_RUNS:
            raise UserError(
                f"tuning.{f'space_by_level.{level}' if level else 'space'}: has {quote_value(num_combinations)} combinations of values; "
                f"it must have 1 to {MAX_RUNS:,}"
            )
    if study.tuning.trials and not (study.tuning.space or study.tuning.space_by_level):
        raise UserError(
            "tuning.space: this key is required if tuning.trials is above 0, e.g. {training.client_optimizer.lr: [0.1, 0.3, 1.0]}"
        )
    if not is_stored:
        check_metrics(study)
    return study


def expand_stages(study: Study) -> list[Study]:
    """Return the stages, each as a study of its own with the name of the stage.

    Raises:
        UserError: A stage has an unknown key or no name.
    """
    if not study.stages:
        return [replace(study, name="main")]
    stages = []
    for index, raw_stage in enumerate(study.stages):
        unknown = sorted(set(raw_stage) - set(STAGE_KEYS))
        if unknown or "name" not in raw_stage:
            raise UserError(
                f"stages[{index}]: "
                + (f"unknown key {quote_value(unknown[0])};" if unknown else "must have a name;")
                + f" the keys of a stage are {', '.join(STAGE_KEYS)}"
            )
        values = {f.name: getattr(study, f.name) for f in fields(Study)}
        stage: Study = parse_value(
            Study,
            {"name": raw_stage["name"], "base": study.base, **{k: v for k, v in raw_stage.items() if k in STAGE_KEYS}},
            REGISTRY,
            f"stages[{index}]",
        )
        values |= {key: getattr(stage, key) for key in raw_stage}
        stages.append(Study(**{**values, "overrides": {**study.overrides, **stage.overrides}, "stages": ()}))
    return stages


def list_seeds(study: Study) -> tuple[int, ...]:
    """Return the seeds of a study as a tuple."""
    return tuple(range(study.seeds)) if isinstance(study.seeds, int) else study.seeds


def build_base_config(study: Study) -> dict[str, Any]:
    """Return the experiment, as plain YAML, from which every run of the study starts."""
    raw_config = study.base
    for path, value in study.overrides.items():
        raw_config = set_key(raw_config, path, value)
    return raw_config


# From a study to the list of its runs.


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study, as plain YAML. ``role`` is "run", or "trial" in the tuning stage."""

    role: str
    stage: str
    condition: str
    seed: int
    factors: dict[str, Any]
    raw_config: dict[str, Any]
    with_iid_baseline: bool = True  # whether the study also runs its IID baseline
    settings: dict[str, Any] | None = None  # the tuned settings, or those of a trial


def expand_cells(study: Study, tuned_settings: Mapping[str, Mapping[str, Any]] | None = None) -> list[PlannedRun]:
    """Return every run except IID baselines and trials, stage by stage.

    Seeds are the outermost loop, so an interrupted study has complete seeds.

    Args:
        study: The study.
        tuned_settings: Combination of levels (as ``format_cell`` writes it) -> the settings that tuning chose for it.
    """
    planned_runs = []
    for stage in expand_stages(study):
        factors = parse_factors(stage.factors)
        cells = stage.design({name: tuple(factor.levels) for name, factor in factors.items()})
        for seed in list_seeds(stage):
            for cell in cells:
                settings = dict(
                    (tuned_settings or {}).get(format_cell({name: cell[name] for name in study.tuning.tune_per if name in cell}), {})
                )
                changes = [factors[name].levels[label] for name, label in cell.items()]
                raw_config = apply_changes(build_base_config(stage), [*changes, settings, {"seed": seed}])
                planned_runs.append(
                    PlannedRun("run", stage.name, format_cell(cell), seed, cell, raw_config, stage.iid_baselines, settings or None)
                )
    return planned_runs


def list_factor_names(study: Study) -> list[str]:
    """Return the names of the factors of all stages, in their order."""
    return list(dict.fromkeys(name for stage in expand_stages(study) for name in parse_factors(stage.factors)))
