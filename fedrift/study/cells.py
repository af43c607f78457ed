"""From a study to its runs: which cell, which seed, tuned how, and whose twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .factors import changed, factors, named
from .study import Study, based, seeds, stages


@dataclass(frozen=True)
class Planned:
    """One run of a study as plain YAML. ``role``: ``run``, or ``trial`` of the tuning stage."""

    role: str
    stage: str
    arm: str
    seed: int
    factors: dict[str, Any]
    said: dict[str, Any]
    twin: bool = True  # whether its IID twin is run too
    settings: dict[str, Any] | None = None  # what tuning chose, or is trying


def cells(study: Study, choices: Mapping[str, Mapping[str, Any]] | None = None) -> list[Planned]:
    """Every run but the twins and trials, stage by stage, seeds outermost: a study cut short has whole blocks.

    ``choices``: tuned settings by the levels that they were tuned for (``fedrift.study.tuning``).
    """
    found = []
    for stage in stages(study):
        varied = factors(stage.factors)
        chosen = stage.design({name: tuple(factor.levels) for name, factor in varied.items()})
        for seed in seeds(stage):
            for cell in chosen:
                settings = dict((choices or {}).get(named({name: cell[name] for name in study.tuning.of if name in cell}), {}))
                changes = [varied[name].levels[label] for name, label in cell.items()]
                said = changed(based(stage), [*changes, settings, {"seed": seed}])
                found.append(Planned("run", stage.name, named(cell), seed, cell, said, stage.twins, settings or None))
    return found


def columns(study: Study) -> list[str]:
    """The names of all factors of all stages, in their order."""
    return list(dict.fromkeys(name for stage in stages(study) for name in factors(stage.factors)))
