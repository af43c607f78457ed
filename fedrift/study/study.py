"""A study: what is asked, what is varied, over which seeds, and what will be judged. One YAML file; all of it frozen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, MaxLen, MinLen

from ..config import Rooms, load_yaml, overridden, override, read, write
from ..errors import UserError, quote
from ..seeds import Seed
from ..statistics import hypotheses as claims
from ..statistics.hypotheses import Hypothesis
from . import designs
from .designs import Design, FullGrid
from .factors import factors

ROOMS = Rooms({Design: designs, Hypothesis: claims})
MOST = 100_000  # runs of a stage, or trials to draw from
NAMES = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


@dataclass(frozen=True)
class Tuning:
    """The same number of ``trials`` for every combination of levels of the factors ``of``, on seeds of their own.

    ``space``: path -> values for all; ``more``: level -> path -> values of that level alone. Each trial is drawn without
    replacement from the product of both. ``at``: the level of the other factors (the first one, if not said); ``set``:
    other changes, e.g. fewer rounds. The lowest mean ``outcome`` over the ``seeds`` wins. 0 trials: nothing is tuned.
    """

    trials: Annotated[int, Ge(0)] = 0
    of: tuple[str, ...] = ("algorithm",)
    space: dict[str, list[Any]] = field(default_factory=dict)
    more: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    seeds: Annotated[tuple[Seed, ...], MinLen(1)] = (1000,)
    at: dict[str, Any] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    split: Literal["validation", "test"] = "validation"
    outcome: str = "loss"


@dataclass(frozen=True)
class Study:
    """``base``: an experiment, or the path of one beside the study's file; ``set``: changes to it, by path. ``seeds``: which,
    or how many from 0 on. ``twins``: every run has its IID twin. ``stages``: studies in little, each a name and what in it
    differs from the whole (``set``, ``factors``, ``design``, ``seeds``, ``twins``); without them there is one, ``main``."""

    name: Annotated[str, MinLen(1), MaxLen(100)]
    base: dict[str, Any]
    question: Annotated[str, MaxLen(10_000)] = ""
    set: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, Any] = field(default_factory=dict)
    design: Design = FullGrid()
    seeds: Annotated[int, Interval(ge=1, le=10_000)] | Annotated[tuple[Seed, ...], MinLen(1)] = (0,)
    twins: bool = True
    tuning: Tuning = Tuning()
    outcomes: tuple[str, ...] = ("loss", "final.loss", "gap", "gap.worst", "oscillation", "movement")
    hypotheses: tuple[Hypothesis, ...] = ()
    stages: tuple[dict[str, Any], ...] = ()

    def written(self) -> dict[str, Any]:
        """The whole study as plain YAML, defaults included."""
        return dict(write(self, ROOMS))


STAGE = ("name", "set", "factors", "design", "seeds", "twins")


def load_study(path: Path, overrides: Iterable[str] = ()) -> Study:
    """The study in a YAML file, its base experiment read in."""
    said = load_yaml(path)
    base = said.get("base")
    if isinstance(base, str):
        said = {**said, "base": load_yaml(Path(path).parent / base)}
    return parse_study(overridden(said, overrides))


def parse_study(said: dict[str, Any]) -> Study:
    """A study from plain YAML; what cannot work together is refused."""
    study: Study = read(Study, said, ROOMS)
    if not study.name or set(study.name) - set(NAMES) or study.name[0] == ".":
        raise UserError(f"name: {quote(study.name)} names a folder: letters, digits, - _ . only")
    seen = set()
    for stage in stages(study):
        varied = factors(stage.factors)
        runs = len(seeds(stage)) * (prod(len(factor.levels) for factor in varied.values())
                                    if isinstance(stage.design, FullGrid) else 1)
        if runs > MOST:
            raise UserError(f"factors: {quote(runs)} runs in the stage {stage.name!r}, all combinations of levels and seeds; "
                            f"at most {MOST:,} are planned: take fewer levels or seeds, or another design")
        if stage.name in seen:
            raise UserError(f"stages: two are called {quote(stage.name)}")
        seen.add(stage.name)
        both = sorted(set(seeds(stage)) & set(study.tuning.seeds)) if study.tuning.trials else []
        if both:
            raise UserError(f"tuning.seeds: {both} are seeds of the study too; what is tuned and what is judged must not share "
                            "seeds")
    tuned = prod(len(values) for values in study.tuning.space.values())
    for level, space in {"": {}, **study.tuning.more}.items():
        every = tuned * prod(len(values) for values in space.values())
        if not 1 <= every <= MOST:
            raise UserError(f"tuning.{f'more.{level}' if level else 'space'}: {quote(every)} combinations of values to draw "
                            f"trials from; wanted 1 to {MOST:,}")
    if study.tuning.trials and not (study.tuning.space or study.tuning.more):
        raise UserError("tuning.space: must be said where there are trials, e.g. {plan.optimizer.lr: [0.1, 0.3, 1.0]}")
    return study


def stages(study: Study) -> list[Study]:
    """The stages, each as a study of its own that bears the stage's name."""
    if not study.stages:
        return [replace(study, name="main")]
    every = []
    for number, said in enumerate(study.stages):
        odd = sorted(set(said) - set(STAGE))
        if odd or "name" not in said:
            raise UserError(f"stages[{number}]: " + (f"no such key {quote(odd[0])};" if odd else "must have a name;")
                            + f" a stage has {', '.join(STAGE)}")
        whole = {f.name: getattr(study, f.name) for f in fields(Study)}
        own: Study = read(Study, {"name": said["name"], "base": study.base, **{k: v for k, v in said.items() if k in STAGE}},
                          ROOMS, f"stages[{number}]")
        whole |= {key: getattr(own, key) for key in said}
        every.append(Study(**{**whole, "set": {**study.set, **own.set}, "stages": ()}))
    return every


def seeds(study: Study) -> tuple[int, ...]:
    """The seeds themselves."""
    return tuple(range(study.seeds)) if isinstance(study.seeds, int) else study.seeds


def based(study: Study) -> dict[str, Any]:
    """The YAML that every run of the study begins from."""
    said = study.base
    for path, value in study.set.items():
        said = override(said, path, value)
    return said
