"""From a study's store to the report as data."""

from __future__ import annotations

import math
from collections import Counter

from ... import __version__
from ..tables import as_yaml
from .arms import every_axis, shades
from .document import Document, Filter, Missing, Section
from .dossier import Dossier
from .numbers import many, mean
from .parts import full_name
from .sections import SECTIONS
from .sections.verdicts import claims


def build(dossier: Dossier) -> Document:
    """Every section that has something to show; the others say what they want."""
    sections, missing = [], []
    for make in SECTIONS:
        made = make(dossier)
        dossier.say(made.title if isinstance(made, Section) else made.what)
        if isinstance(made, Missing):
            missing.append(made)
        else:
            sections.append(made)
    axes = every_axis(dossier.stages)
    compared = {stage.colour.name: stage.colours for stage in dossier.stages if stage.colour}
    filters = tuple(Filter(axis.name, axis.levels, (compared.get(axis.name) and shades(axis.levels)) or {}) for axis in axes)
    if len(dossier.stages) > 1:
        filters = (Filter("stage", tuple(stage.name for stage in dossier.stages), {}), *filters)
    arms = tuple({"stage": arm.stage, **arm.levels} for arm in dossier.arms)
    source = as_yaml(dossier.study)
    return Document(
        dossier.book.name,
        dossier.study["question"],
        state(dossier),
        abstract(dossier),
        claims(dossier),
        tuple(sections),
        tuple(missing),
        filters,
        arms,
        __version__,
        source,
    )


def state(dossier: Dossier) -> str:
    """How far the study is: ``54 of 54 runs finished``."""
    ids = {entry.run: dossier.book.state(entry.run) for entry in dossier.said["runs"]}
    counts = Counter(ids.values())
    rest = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if name != "finished" and count)
    more = "" if dossier.said.get("complete", True) else "; tuning is not over, so more will come"
    if not ids:
        return "no runs yet" + more
    return (
        f"{counts['finished']} of {many(len(ids), 'run')} finished"
        + (f" ({rest.replace('missing', 'not begun')})" if rest else "")
        + more
    )


def abstract(dossier: Dossier) -> tuple[str, ...]:
    """What was done and what came of it, counted from the store."""
    arms = dossier.arms
    seeds = sorted({seed for arm in arms for seed in arm.runs})
    twins = {run for arm in arms for run in arm.twins.values()}
    trials = {entry.run for entry in dossier.said["runs"] if entry.role == "trial"}
    beside = f", each beside its IID twin ({many(len(twins), 'run')})" if twins else ""
    tuned = f", after {many(len(trials), 'trial')} of tuning" if trials else ""
    said = [
        (
            f"{many(len(arms), 'arm')} over {many(len(seeds), 'paired seed')}{beside}{tuned}: {state(dossier)}."
            if arms
            else f"Nothing can be said yet: {state(dossier)}."
        )
    ]
    if not all(run in dossier.endings for arm in arms for run in arm.runs.values()):
        said.append("The study is not finished: everything below is of what is there, and may change.")
    frame = dossier.frame[dossier.frame["role"] == "run"]
    broke = int(frame["diverged"].sum())
    if broke:
        said.append(f"{broke} of {len(frame)} runs diverged; they are kept and count as the worst.")
    if dossier.verdicts:
        counts = Counter(one.verdict for one in dossier.verdicts)
        said.append(
            f"Of {many(len(dossier.verdicts), 'hypothesis', 'hypotheses')} {counts['supported']} came out supported,"
            f" {counts['refuted']} refuted, {counts['inconclusive']} inconclusive."
        )
    if "gap" in frame and len(frame):
        gap = dossier.outcome("gap")
        gaps = [
            (mean(gap.get(run, math.nan) for run in arm.runs.values())[0], full_name(stage, arm))
            for stage in dossier.stages
            for arm in stage.arms
        ]
        gaps = sorted((value, name) for value, name in gaps if math.isfinite(value))
        if gaps:
            (low, least), (high, most) = gaps[0], gaps[-1]
            said.append(
                f"Against the IID twin the end loss lies between {low:+.3f} ({least}) and {high:+.3f} nats ({most}), means over"
                " seeds."
            )
    return tuple(said)
