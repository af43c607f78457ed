"""The tables and texts of the page: plain strings, formatted once, here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import yaml

from ..diagnosis import MIN_EVALUATIONS, Verdict, judge_run
from ..stats import mean_ci
from ..stats.significance import ALPHA, format_p
from .data import RunView


class VerdictLine(NamedTuple):
    """One run in the verdict table."""

    name: str
    grade: str
    grade_label: str
    rounds: str
    start: str
    final_loss: str
    gap_to_iid: str
    worst_domain_gap: str
    variability: str
    sentence: str


def verdict_line(view: RunView) -> VerdictLine:
    """A run's row of the verdict table."""
    judged = judge_run(view.trajectory, view.iid_baseline)
    grade, found = grade_with_label(judged)
    return VerdictLine(
        view.name,
        grade,
        found,
        format_progress(view),
        format_loss(judged.initial_loss),
        format_loss(judged.final_loss),
        format_gap(judged),
        format_worst_domain(judged),
        format_variability(judged),
        judged.sentence,
    )


def grade_with_label(verdict: Verdict) -> tuple[str, str]:
    """The grade and its words; too short or without a twin, a run cannot say that nothing is there."""
    if verdict.grade == "suspected":
        return "suspected", "diverged" if verdict.has_diverged else "suspected"
    if verdict.num_evaluations < MIN_EVALUATIONS:
        return "unknown", "too short to judge"
    return ("unknown", "no IID baseline to compare with") if math.isnan(verdict.gap_to_iid) else ("none", "nothing found")


def format_progress(view: RunView) -> str:
    """How far a run came, and whether it goes on."""
    rounds = view.trajectory.rounds
    last = int(rounds[-1]) if len(rounds) else 0
    asked = f" of {view.planned_rounds}" if view.planned_rounds else ""
    return f"{view.status}, {last}{asked}"


def format_loss(value: float, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    if math.isnan(value):
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) and abs(value) < 1e4 else f"{value:.2g}"


def format_gap(verdict: Verdict) -> str:
    if math.isnan(verdict.gap_to_iid):
        return "–"
    per_cent = f" ({verdict.perplexity_gap_percent:+.1f}%)" if abs(verdict.perplexity_gap_percent) < 1e4 else ""
    return f"{verdict.gap_to_iid:+.3f}{per_cent}"


def format_worst_domain(verdict: Verdict) -> str:
    if not verdict.worst_domain:
        return "–"
    return verdict.worst_domain + ("" if math.isnan(verdict.worst_domain_gap) else f" {verdict.worst_domain_gap:+.3f}")


def format_variability(verdict: Verdict) -> str:
    if math.isnan(verdict.domain_variability) or verdict.has_diverged:
        return "–"
    times = "" if math.isnan(verdict.domain_variability_ratio) else f" ({verdict.domain_variability_ratio:.1f}×)"
    return format_loss(verdict.domain_variability, 4) + times


def to_yaml(value: dict[str, Any]) -> str:
    """A mapping as YAML in its own order, without the partition table, which has its own figure."""
    shown = json.loads(json.dumps({key: item for key, item in value.items() if key != "partition_table"}))  # plain types only
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100) if shown else ""


# Numbers as they are read: formatted once, here, for page, PDF and LaTeX alike.

DASH = "–"


def format_number(value: float, digits: int = 3) -> str:
    """``4.123``; large and tiny ones with an exponent; a dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.2e}"


def format_signed(value: float, digits: int = 3) -> str:
    return format_number(value) if value is None or not math.isfinite(value) or abs(value) >= 1e4 else f"{value:+.{digits}f}"


def format_interval(low: float, high: float, is_signed: bool = False) -> str:
    """An interval, or a dash."""
    if math.isnan(low) or math.isnan(high):
        return DASH
    form = format_signed if is_signed else format_number
    return f"{form(low)} to {form(high)}"


def format_p_value(value: float, min_attainable_p: float) -> str:
    """A p; ``n/a`` where the seeds could not have given one at or below .05, however large the effect."""
    if math.isnan(value):
        return DASH
    return (
        f"n/a (≥ {format_p(min_attainable_p)})"
        if min_attainable_p > ALPHA
        else f"< {format_p(0.0001)}"
        if value < 0.0001
        else format_p(value)
    )


def seed_mean_ci(values: Iterable[float]) -> tuple[float, float, float, int]:
    """Mean, 95 % t-interval, count; the mean is NaN where one is not finite."""
    numbers = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if not len(numbers) or not np.isfinite(numbers).all():
        return math.nan, math.nan, math.nan, len(numbers)
    found = mean_ci(numbers, 0.95)
    return found.estimate, found.low, found.high, len(numbers)


def format_bytes(count: float) -> str:
    """Bytes for people."""
    if math.isnan(count):
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return DASH


def pluralize(count: int, singular: str, plural: str = "") -> str:
    """``1 run``, ``3 runs``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
