"""Factors: what a study varies, each level being a label and the changes to an experiment that it stands for."""

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
from ..stats.gates import Gate
from ..stats.hypotheses import Hypothesis
from . import designs
from .designs import Design, FullGrid


@dataclass(frozen=True)
class Factor:
    """``name``: its column in tables. ``levels``: label -> {path in the experiment: value}."""

    name: str
    levels: dict[Any, dict[str, Any]]


def parse_factors(raw: Mapping[str, Any]) -> dict[str, Factor]:
    """The factors of a study's YAML, in its order.

    ``partition.severity: [0.5, 1]`` varies a path; ``regime: {topic: {partition.type: TopicMix}, style: {...}}`` gives
    every level a name and any number of changes.
    """
    found = {}
    for key, levels in raw.items():
        name = key.removesuffix(".type")
        if isinstance(levels, Mapping):
            wrong = [
                label
                for label, changes in levels.items()
                if not isinstance(changes, Mapping) or not all(isinstance(path, str) for path in changes)
            ]
            if wrong or not levels:
                raise UserError(
                    f"factors.{key}: a named level is {{path: value, ...}}, e.g. topic: {{partition.type: TopicMix}}; "
                    f"got {quote_value(wrong) if wrong else 'no level'}. A list of values varies the path itself"
                )
            found[name] = Factor(name, {label: dict(changes) for label, changes in levels.items()})
        elif isinstance(levels, (list, tuple)) and levels:
            found[name] = Factor(name, dict(zip(label_levels(levels), ({key: value} for value in levels), strict=True)))
        else:
            raise UserError(f"factors.{key}: wanted a list of values or a mapping of named levels, got {quote_value(levels)}")
        if len(found[name].levels) != len(levels):
            raise UserError(f"factors.{key}: two levels are the same: {quote_value(list(levels))}")
    return found


def label_levels(values: Iterable[Any]) -> list[Any]:
    """What to call each of some values: itself, or a class's name, with its settings where the name alone is not enough."""
    values = list(values)
    names = Counter(get_class_name(value) if isinstance(value, Mapping) else value if isinstance(value, str) else None for value in values)
    return [label_level(value, names) for value in values]


def get_class_name(value: Mapping[str, Any]) -> str | None:
    """The class that a mapping names."""
    name = value.get("type")
    return name if isinstance(name, str) else None


def label_level(value: Any, names: Counter[Any]) -> Any:
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key}={inner}" for key, inner in value.items() if key != "type")
        name = get_class_name(value)
        return name if name and names[name] == 1 else f"{name} {rest}" if name and rest else name or rest
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "none" if value is None else value


def apply_changes(raw_config: dict[str, Any], changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An experiment's YAML with all changes made, shorter paths first: ``algorithm`` before ``algorithm.mu``.

    Raises UserError where two set the same path to different values.
    """
    every: dict[str, Any] = {}
    for each in changes:
        for path, value in each.items():
            if path in every and every[path] != value:
                raise UserError(
                    f"{quote_value(path)} is set to {quote_value(every[path])} and to {quote_value(value)} in one run: "
                    "let one factor set it"
                )
            every[path] = value
    for path in sorted(every, key=lambda path: path.removesuffix(".type").count(".")):
        raw_config = set_key(raw_config, path, every[path])
    return raw_config


def format_cell(cell: Mapping[str, Any]) -> str:
    """A cell in words: ``algorithm=FedAvg, partition.severity=0.5``."""
    return ", ".join(f"{factor}={label}" for factor, label in cell.items()) or "all"


# A study: what is asked, what is varied, over which seeds, and what will be judged. One YAML file; all of it frozen.

REGISTRY = Registry({Design: designs, Hypothesis: claims})
MAX_RUNS = 100_000  # runs of a stage, or trials to draw from
NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


@dataclass(frozen=True)
class Tuning:
    """The same number of ``trials`` for every combination of levels of the factors ``tune_per``, on seeds of their
    own.

    ``space``: path -> values for all; ``space_by_level``: level -> path -> values of that level alone. Each trial is drawn
    without replacement from the product of both. ``at_levels``: the level of the other factors (default: the first one);
    ``overrides``: other changes, e.g. fewer rounds. The lowest mean ``metric`` over the ``seeds`` wins. 0 trials: nothing is
    tuned. ``baseline_levels``: levels of ``tune_per`` whose trials are run on the IID baseline.
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
    """``base``: an experiment, or the path of one beside the study's file; ``overrides``: changes to it, by path. ``seeds``:
    which, or how many from 0 on. ``iid_baselines``: every run has its IID baseline. ``stages``: studies in little, each a name
    and what in it differs from the whole (``overrides``, ``factors``, ``design``, ``seeds``, ``iid_baselines``); without them
    there is one, ``main``. ``gate``: which conditions count."""

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
        """The whole study as plain YAML, defaults included."""
        return dict(dump_value(self, REGISTRY))


STAGE_KEYS = ("name", "overrides", "factors", "design", "seeds", "iid_baselines")


def load_study(path: Path, overrides: Iterable[str] = ()) -> Study:
    """The study in a YAML file, its base experiment read in."""
    said = load_yaml(path)
    base = said.get("base")
    if isinstance(base, str):
        said = {**said, "base": load_yaml(Path(path).parent / base)}
    return parse_study(apply_overrides(said, overrides))


def parse_study(raw: dict[str, Any]) -> Study:
    """A study from plain YAML; what cannot work together is refused."""
    study: Study = parse_value(Study, raw, REGISTRY)
    if not study.name or set(study.name) - set(NAME_CHARACTERS) or study.name[0] == ".":
        raise UserError(f"name: {quote_value(study.name)} names a folder: letters, digits, - _ . only")
    seen = set()
    for stage in expand_stages(study):
        varied = parse_factors(stage.factors)
        runs = len(list_seeds(stage)) * (
            prod(len(factor.levels) for factor in varied.values()) if isinstance(stage.design, FullGrid) else 1
        )
        if runs > MAX_RUNS:
            raise UserError(
                f"factors: {quote_value(runs)} runs in the stage {stage.name!r}, all combinations of levels and seeds; "
                f"at most {MAX_RUNS:,} are planned: take fewer levels or seeds, or another design"
            )
        if stage.name in seen:
            raise UserError(f"stages: two are called {quote_value(stage.name)}")
        seen.add(stage.name)
        both = sorted(set(list_seeds(stage)) & set(study.tuning.seeds)) if study.tuning.trials else []
        if both:
            raise UserError(f"tuning.seeds: {both} are seeds of the study too; what is tuned and what is judged must not share seeds")
    tuned = prod(len(values) for values in study.tuning.space.values())
    for level, space in {"": {}, **study.tuning.space_by_level}.items():
        every = tuned * prod(len(values) for values in space.values())
        if not 1 <= every <= MAX_RUNS:
            raise UserError(
                f"tuning.{f'space_by_level.{level}' if level else 'space'}: {quote_value(every)} combinations of values to draw "
                f"trials from; wanted 1 to {MAX_RUNS:,}"
            )
    if study.tuning.trials and not (study.tuning.space or study.tuning.space_by_level):
        raise UserError("tuning.space: must be said where there are trials, e.g. {training.client_optimizer.lr: [0.1, 0.3, 1.0]}")
    return study


def expand_stages(study: Study) -> list[Study]:
    """The stages, each as a study of its own that bears the stage's name."""
    if not study.stages:
        return [replace(study, name="main")]
    every = []
    for number, said in enumerate(study.stages):
        odd = sorted(set(said) - set(STAGE_KEYS))
        if odd or "name" not in said:
            raise UserError(
                f"stages[{number}]: "
                + (f"no such key {quote_value(odd[0])};" if odd else "must have a name;")
                + f" a stage has {', '.join(STAGE_KEYS)}"
            )
        whole = {f.name: getattr(study, f.name) for f in fields(Study)}
        own: Study = parse_value(
            Study,
            {"name": said["name"], "base": study.base, **{k: v for k, v in said.items() if k in STAGE_KEYS}},
            REGISTRY,
            f"stages[{number}]",
        )
        whole |= {key: getattr(own, key) for key in said}
        every.append(Study(**{**whole, "overrides": {**study.overrides, **own.overrides}, "stages": ()}))
    return every


def list_seeds(study: Study) -> tuple[int, ...]:
    """The seeds themselves."""
    return tuple(range(study.seeds)) if isinstance(study.seeds, int) else study.seeds


def build_base_config(study: Study) -> dict[str, Any]:
    """The YAML that every run of the study begins from."""
    said = study.base
    for path, value in study.overrides.items():
        said = set_key(said, path, value)
    return said


# From a study to its runs: which cell, which seed, tuned how, and whose IID baseline.


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study as plain YAML. ``role``: ``run``, or ``trial`` of the tuning stage."""

    role: str
    stage: str
    condition: str
    seed: int
    factors: dict[str, Any]
    raw_config: dict[str, Any]
    with_iid_baseline: bool = True  # whether its IID baseline is run too
    settings: dict[str, Any] | None = None  # what tuning chose, or is trying


def expand_cells(study: Study, tuned_settings: Mapping[str, Mapping[str, Any]] | None = None) -> list[PlannedRun]:
    """Every run but the IID baselines and trials, stage by stage, seeds outermost: a study cut short has whole blocks.

    ``tuned_settings``: tuned settings by the levels that they were tuned for (``fedrift.studies.tuning``).
    """
    found = []
    for stage in expand_stages(study):
        varied = parse_factors(stage.factors)
        chosen = stage.design({name: tuple(factor.levels) for name, factor in varied.items()})
        for seed in list_seeds(stage):
            for cell in chosen:
                settings = dict(
                    (tuned_settings or {}).get(format_cell({name: cell[name] for name in study.tuning.tune_per if name in cell}), {})
                )
                changes = [varied[name].levels[label] for name, label in cell.items()]
                said = apply_changes(build_base_config(stage), [*changes, settings, {"seed": seed}])
                found.append(PlannedRun("run", stage.name, format_cell(cell), seed, cell, said, stage.iid_baselines, settings or None))
    return found


def list_factor_names(study: Study) -> list[str]:
    """The names of all factors of all stages, in their order."""
    return list(dict.fromkeys(name for stage in expand_stages(study) for name in parse_factors(stage.factors)))
