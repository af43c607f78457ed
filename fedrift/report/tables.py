"""The tables and texts of the page: plain strings, formatted once, here."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import yaml

from ..diagnose import SHORTEST, Verdict, verdict
from .exhibit import Exhibit


class Line(NamedTuple):
    """One run in the verdict table."""

    name: str
    grade: str
    found: str
    rounds: str
    start: str
    end: str
    gap: str
    worst: str
    swing: str
    sentence: str


def verdict_line(exhibit: Exhibit) -> Line:
    """A run's row of the verdict table."""
    judged = verdict(exhibit.trajectory, exhibit.twin)
    grade, found = shown_grade(judged)
    return Line(exhibit.name, grade, found, progress(exhibit), number(judged.start), number(judged.end),
                gap(judged), worst(judged), swing(judged), judged.sentence)


def shown_grade(judged: Verdict) -> tuple[str, str]:
    """The grade and its words; too short or without a twin, a run cannot say that nothing is there."""
    if judged.grade == "suspected":
        return "suspected", "diverged" if judged.diverged else "suspected"
    if judged.evaluations < SHORTEST:
        return "unknown", "too short to judge"
    return ("unknown", "no twin to judge by") if math.isnan(judged.gap) else ("none", "nothing found")


def progress(exhibit: Exhibit) -> str:
    """How far a run came, and whether it goes on."""
    rounds = exhibit.trajectory.rounds
    last = int(rounds[-1]) if len(rounds) else 0
    asked = f" of {exhibit.asked_rounds}" if exhibit.asked_rounds else ""
    return f"{exhibit.status}, {last}{asked}"


def number(value: float, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    if math.isnan(value):
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) and abs(value) < 1e4 else f"{value:.2g}"


def gap(judged: Verdict) -> str:
    if math.isnan(judged.gap):
        return "–"
    per_cent = f" ({judged.gap_percent:+.1f}%)" if abs(judged.gap_percent) < 1e4 else ""
    return f"{judged.gap:+.3f}{per_cent}"


def worst(judged: Verdict) -> str:
    if not judged.worst_domain:
        return "–"
    return judged.worst_domain + ("" if math.isnan(judged.worst_gap) else f" {judged.worst_gap:+.3f}")


def swing(judged: Verdict) -> str:
    if math.isnan(judged.swing) or judged.diverged:
        return "–"
    times = "" if math.isnan(judged.swing_ratio) else f" ({judged.swing_ratio:.1f}×)"
    return number(judged.swing, 4) + times


def as_yaml(value: dict[str, Any]) -> str:
    """A mapping as YAML in its own order, without the partition table, which has its own figure."""
    shown = json.loads(json.dumps({key: item for key, item in value.items() if key != "partition_table"}))  # plain types only
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100) if shown else ""
