"""The tables of `fedrift compare`: differing settings, and the metrics that differ, grouped by what they measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..report.format import DASH
from .tables import print_table

if TYPE_CHECKING:
    from rich.console import Console

    from ..studies.outcomes import MetricDifference

FIRST_GROUPS = ("loss", "perplexity", "final")  # shown first; the other groups follow in alphabetical order
COLUMNS = ("", "A", "B", "B - A", "largest", "in round")


def print_config_differences(console: Console, first_id: str, second_id: str, differences: Mapping[str, tuple[Any, Any]]) -> None:
    """Print the settings in which two runs differ."""
    title = "Settings that differ" if differences else "configuration: identical"
    console.print(f"[bold]{title}[/]  A: run {first_id}, B: run {second_id}")
    if differences:
        rows = [(path, str(left), str(right)) for path, (left, right) in differences.items()]
        print_table(console, ("setting", "A", "B"), rows)


def print_metric_differences(console: Console, differences: Sequence[MetricDifference], show_all: bool) -> None:
    """Print one table per group of metrics, and how many equal metrics are hidden.

    Args:
        console: The terminal.
        differences: All metrics that both runs recorded.
        show_all: Whether to print equal metrics too.
    """
    shown = [difference for difference in differences if show_all or not is_equal(difference)]
    console.print("\n[bold]Metrics[/]  A, B and B - A: means of the last 5 shared evaluations; largest: largest B - A of a round")
    for group, members in group_metrics(shown).items():
        print_table(console, COLUMNS, list(metric_rows(group, members)), numbers=COLUMNS[1:], title=group)
    num_equal = sum(map(is_equal, differences))
    hidden = "" if show_all or not num_equal else " and hidden; --all shows them"
    console.print(
        f"{num_equal} of {len(differences)} metrics are equal in both runs{hidden}. A difference between two single runs may be random."
    )


def is_equal(difference: MetricDifference) -> bool:
    """Return whether a metric has the same values in both runs."""
    return not (difference.mean_difference or difference.max_difference)


def group_metrics(differences: Iterable[MetricDifference]) -> dict[str, list[MetricDifference]]:
    """Group metrics by the first part of their name, with the losses first."""
    groups: dict[str, list[MetricDifference]] = {}
    for difference in differences:
        groups.setdefault(difference.metric.partition(".")[0], []).append(difference)
    order = sorted(groups, key=lambda group: (FIRST_GROUPS.index(group) if group in FIRST_GROUPS else len(FIRST_GROUPS), group))
    return {group: groups[group] for group in order}


def metric_rows(group: str, differences: Iterable[MetricDifference]) -> Iterable[tuple[str, ...]]:
    """Return one row per metric and, below it, one row per domain."""
    previous = None
    for difference in differences:
        name = difference.metric.removeprefix(f"{group}.")
        if difference.domain and previous != name:
            yield (name, *[""] * (len(COLUMNS) - 1))
        previous = name
        yield (
            f"  @{difference.domain}" if difference.domain else name,
            format_cell(difference.first),
            format_cell(difference.second),
            format_cell(difference.mean_difference, "+.4g"),
            format_cell(difference.max_difference, "+.4g"),
            str(difference.max_difference_round),
        )


def format_cell(value: float, number_format: str = ".4g") -> str:
    """Format a number, or NaN as a dash."""
    return DASH if math.isnan(value) else format(value, number_format)
