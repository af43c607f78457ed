"""From a study's cells to experiments with their ids and twins, ready to be run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import UserError
from ..experiment import Experiment, parse, twin
from ..setting import resolve
from ..stock import Stock
from .book import Book, Entry
from .cells import Planned, cells, columns
from .designs.orthogonal import aliases
from .factors import named
from .outcomes import diverged, needed, outcome
from .study import Study, stages
from .table import curves
from .tuning import Choice, choose, trials


@dataclass(frozen=True)
class Plan:
    """What a study will run. ``experiments``: each once, by id, in the order of running."""

    entries: list[Entry]
    experiments: dict[str, Experiment]
    choices: list[Choice] = field(default_factory=list)


def planned(cells: Iterable[Planned], stock: Stock) -> Plan:
    """Every cell resolved, its IID twin right after it, and nothing twice."""
    entries: list[Entry] = []
    twins: list[Entry] = []
    experiments: dict[str, Experiment] = {}
    for cell in cells:
        try:
            experiment = resolve(parse(cell.said), stock)
        except UserError as error:
            raise UserError(f"{cell.stage}: {cell.arm}: {error}") from error
        iid = twin(experiment) if cell.twin else None
        experiments.setdefault(experiment.id, experiment)
        entries.append(Entry(experiment.id, cell.role, cell.stage, cell.arm, cell.seed, False, iid.id if iid else "",
                             cell.factors, cell.settings, experiment.name))
        if iid and iid.id != experiment.id:
            experiments.setdefault(iid.id, iid)
            levels = {name: 0.0 if name == "partition.severity" else label for name, label in cell.factors.items()}
            twins.append(Entry(iid.id, "twin", cell.stage, named(levels), cell.seed, True, "", levels, cell.settings, iid.name))
    cells_too = {entry.run for entry in entries}  # a cell of severity 0 is its own twin, and no row beside itself
    return Plan(entries + [entry for entry in twins if entry.run not in cells_too], experiments)


def tuning_plan(study: Study, stock: Stock) -> Plan:
    """The trials of the tuning stage."""
    return planned(trials(study), stock)


def choices(study: Study, plan: Plan, book: Book) -> list[Choice]:
    """What tuning chose; a trial that failed, diverged, ended with a dead model or did not end is the worst."""
    found = curves(book, plan.entries, needed([study.tuning.outcome]))
    done = []
    for cell, entry in zip(trials(study), plan.entries, strict=True):
        run = found.get(entry.run)
        ended = run is not None and book.run(entry).finished and not diverged(run)
        score = outcome(study.tuning.outcome, run) if run is not None and ended else float("nan")
        done.append((cell, score))
    return choose(study, done)


def full_plan(study: Study, stock: Stock, tuning: Plan, chosen: list[Choice]) -> Plan:
    """All runs of the study, tuned as was chosen; the trials first."""
    settings: Mapping[str, Mapping[str, Any]] = {choice.of: choice.settings for choice in chosen}
    plan = planned(cells(study, settings), stock)
    return Plan(tuning.entries + plan.entries, {**tuning.experiments, **plan.experiments}, chosen)


def written(study: Study, plan: Plan, complete: bool) -> dict[str, Any]:
    """What the study's book holds. ``complete``: tuning is over, so that all runs are known."""
    designs = {stage.name: {"cells": len(every), "aliases": aliases(every)}
               for stage in stages(study) if (every := of_stage(study, stage.name))}
    return {"study": study.written(), "factors": columns(study), "complete": complete, "designs": designs,
            "choices": [asdict(choice) for choice in plan.choices], "runs": plan.entries}


def of_stage(study: Study, name: str) -> list[dict[str, Any]]:
    """The cells of one stage."""
    unseeded = [cell for cell in cells(study) if cell.stage == name]
    return [cell.factors for cell in unseeded if cell.seed == unseeded[0].seed]


def experiments_of(plan: Plan, role: str) -> list[Experiment]:
    """The experiments to run, each once: trials, or all the others. Twins follow their run."""
    wanted = [entry.run for entry in plan.entries if (entry.role == "trial") == (role == "trial")]
    inside = set(wanted)
    return [experiment for id, experiment in plan.experiments.items() if id in inside]

