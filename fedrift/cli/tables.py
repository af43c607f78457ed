"""Tables that fit the terminal: text wraps, numbers stay whole, and too many columns become several tables.

The tables of `fedrift compare` show differing settings, and the metrics that differ, grouped by what they measure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..report.format import format_compact

if TYPE_CHECKING:
    from ..studies.outcomes import MetricDifference

FIRST_GROUPS = ("loss", "perplexity", "final")  # shown first; the other groups follow in alphabetical order
COLUMNS = ("", "A", "B", "B - A", "largest", "in round")
MAX_WORD = 32  # columns of the terminal; a longer word continues on the next line


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Collection[str] = (),
    title: str = "",
    num_key_columns: int = 1,
) -> None:
    """Print rows as one table if it fits the width of the terminal, or as several tables below each other.

    Text wraps between words and is never cut. Every table repeats the first columns, so that its rows can be identified.

    Args:
        console: The terminal.
        columns: The names of the columns.
        rows: One cell per column. Cells are plain text without markup.
        numbers: The columns that are right-aligned and do not wrap.
        title: The title above the first table.
        num_key_columns: The number of first columns that every table repeats.
    """
    remaining, is_first = list(range(num_key_columns, len(columns))), True
    keys = list(range(num_key_columns))
    while remaining or is_first:
        count = len(remaining)
        while count > 1 and not _fits(console, _build(columns, rows, numbers, keys + remaining[:count])):
            count -= 1
        table = _build(columns, rows, numbers, keys + remaining[:count])
        table.title = title if is_first and title else None
        console.print(table)
        remaining, is_first = remaining[count:], False


def _build(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str], indices: Sequence[int]) -> Table:
    table = Table(box=SIMPLE, collapse_padding=True, pad_edge=False, title_justify="left")
    for index in indices:
        name, cells, is_number = columns[index], [row[index] for row in rows], columns[index] in numbers
        words = [word for text in ((name,) if is_number else (name, *cells)) for word in text.split()]
        longest = max(map(len, words + cells if is_number else words), default=1)
        table.add_column(
            Text(name.replace(" ", "\n") if is_number and len(name) > max(map(len, cells), default=0) else name),
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
            min_width=longest if is_number else min(longest, MAX_WORD),
        )
    for row in rows:
        table.add_row(*(Text(row[index]) for index in indices))
    return table


def _fits(console: Console, table: Table) -> bool:
    """Return whether no line of the table is longer than the terminal, which would cut it.

    The lines are drawn for this. The minimum width that rich measures is too small, because rich shrinks columns below their own minimum.
    """
    return all(Segment.get_line_length(line) <= console.width for line in Segment.split_lines(console.render(table)))


def format_duration(seconds: float) -> str:
    """Format a duration such as ``2 h 5 min`` or ``3 min 20 s``."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {seconds_left} s" if minutes else f"{seconds_left} s"


# The tables of `fedrift compare`.


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
            format_compact(difference.first, 4),
            format_compact(difference.second, 4),
            format_compact(difference.mean_difference, 4, is_signed=True),
            format_compact(difference.max_difference, 4, is_signed=True),
            str(difference.max_difference_round),
        )
