"""Format numbers and verdicts as text. All output formats share these functions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import yaml

from ..diagnosis import MIN_EVALUATIONS, Verdict, judge_run
from ..stats import mean_ci
from ..stats.significance import ALPHA, format_p
from .data import RunView

DASH = "–"


def format_strength(partition: Mapping[str, Any]) -> str:
    """Return how non-IID a stored partition is: ``severity 0.5``, or ``alpha 0.1`` where an alpha replaces the severity."""
    severity, alpha = partition.get("severity", 0), partition.get("alpha") if partition["type"] == "Dirichlet" else None
    return f"severity {severity:g}" if alpha is None or severity == 0 else f"alpha {alpha:g}"


class VerdictLine(NamedTuple):
    """Hold the formatted cells of one run in the verdict table."""

    name: str
    grade: str
    grade_label: str
    rounds: str
    initial_loss: str
    final_loss: str
    gap_to_iid: str
    worst_domain_gap: str
    variability: str
    sentence: str


def verdict_line(view: RunView) -> VerdictLine:
    """Judge a run and format its row of the verdict table."""
    verdict = judge_run(view.trajectory, view.iid_baseline)
    grade, grade_label = grade_with_label(verdict)
    return VerdictLine(
        view.name,
        grade,
        grade_label,
        format_progress(view),
        format_number(verdict.initial_loss),
        format_number(verdict.final_loss),
        format_gap(verdict),
        format_worst_domain(verdict),
        format_variability(verdict),
        verdict.sentence,
    )


def grade_with_label(verdict: Verdict) -> tuple[str, str]:
    """Return the grade of a verdict and its label.

    The grade is ``unknown`` for a run with too few evaluations or without an IID baseline, because such a run cannot exclude a failure.
    """
    if verdict.grade == "suspected":
        return "suspected", "diverged" if verdict.has_diverged else "suspected"
    if verdict.num_evaluations < MIN_EVALUATIONS:
        return "unknown", "too short to judge"
    return ("unknown", "no IID baseline to compare with") if math.isnan(verdict.gap_to_iid) else ("none", "nothing found")


def format_progress(view: RunView) -> str:
    """Return the status of a run, its last round, and the number of planned rounds."""
    rounds = view.trajectory.rounds
    last = int(rounds[-1]) if len(rounds) else 0
    planned = f" of {view.planned_rounds}" if view.planned_rounds else ""
    return f"{view.status}, {last}{planned}"


def format_gap(verdict: Verdict) -> str:
    """Format the gap to the IID baseline in nats, with the difference in perplexity in percent."""
    if math.isnan(verdict.gap_to_iid):
        return DASH
    percent = f" ({verdict.perplexity_gap_percent:+.1f} %)" if abs(verdict.perplexity_gap_percent) < 1e4 else ""
    return f"{verdict.gap_to_iid:+.3f}{percent}"


def format_worst_domain(verdict: Verdict) -> str:
    """Format the name of the worst domain and its gap to the IID baseline."""
    if not verdict.worst_domain:
        return DASH
    return verdict.worst_domain + ("" if math.isnan(verdict.worst_domain_gap) else f" {verdict.worst_domain_gap:+.3f}")


def format_variability(verdict: Verdict) -> str:
    """Format the domain variability in nats, and its ratio to that of the IID baseline."""
    if math.isnan(verdict.domain_variability) or verdict.has_diverged:
        return DASH
    ratio = "" if math.isnan(verdict.domain_variability_ratio) else f" ({verdict.domain_variability_ratio:.1f}×)"
    return format_number(verdict.domain_variability, 4) + ratio


def to_yaml(value: dict[str, Any]) -> str:
    """Write a mapping as YAML in its own order. The partition table is left out because it has its own figure."""
    plain = json.loads(
        json.dumps({key: item for key, item in value.items() if key != "partition_table"})
    )  # JSON turns tuples and other types into plain ones
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100) if plain else ""


def format_number(value: float | None, digits: int = 3, missing: str = DASH) -> str:
    """Format a number such as ``4.123``, with an exponent from 10,000 on. NaN and None become ``missing``, a dash."""
    if value is None or math.isnan(value):
        return missing
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.2e}"


def format_compact(value: float, digits: int = 3, is_signed: bool = False) -> str:
    """Format a number with some significant digits, or NaN as a dash."""
    return DASH if math.isnan(value) else f"{value:{'+' if is_signed else ''}.{digits}g}"


def format_signed(value: float | None, digits: int = 3, missing: str = DASH) -> str:
    """Format a number with its sign, and otherwise as ``format_number`` does."""
    is_plain = value is not None and math.isfinite(value) and abs(value) < 1e4
    return f"{value:+.{digits}f}" if is_plain else format_number(value, missing=missing)


def format_interval(low: float, high: float, is_signed: bool = False, digits: int = 3) -> str:
    """Format an interval such as ``0.100 to 0.200``, or a dash if a bound is NaN."""
    if math.isnan(low) or math.isnan(high):
        return DASH
    formatter = format_signed if is_signed else format_number
    return f"{formatter(low, digits)} to {formatter(high, digits)}"


def format_p_value(value: float, min_attainable_p: float) -> str:
    """Format a p-value.

    Args:
        value: The p-value.
        min_attainable_p: The smallest p-value that this number of seeds can reach. If it exceeds 0.05, the result is ``n/a``, because no
            effect of any size would be significant.
    """
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
    """Return the mean over seeds and its 95 % t-interval.

    Args:
        values: One value per seed; NaN values are left out.

    Returns:
        Mean, lower bound, upper bound and number of values. Mean and bounds are NaN if a value is infinite or there is none.
    """
    numbers = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if not len(numbers) or not np.isfinite(numbers).all():
        return math.nan, math.nan, math.nan, len(numbers)
    interval = mean_ci(numbers, 0.95)
    return interval.estimate, interval.low, interval.high, len(numbers)


def format_bytes(count: float) -> str:
    """Format a number of bytes with a decimal unit up to GB."""
    if math.isnan(count):
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return DASH


def pluralize(count: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun: ``1 run``, ``3 runs``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
