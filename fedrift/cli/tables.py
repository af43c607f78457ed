"""Tables that fit the terminal: text wraps, numbers stay whole, and too many columns become several tables.

The tables of `fedrift compare` show differing settings, and the metrics that differ, grouped by what they measure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..report.format import format_compact

if TYPE_CHECKING:
    from ..studies.run_comparison import MetricDifference

FIRST_GROUPS = ("loss", "perplexity", "final")  # shown first; the other groups follow in alphabetical order
COLUMNS = ("", "A", "B", "B - A", "largest", "in round")
MAX_WORD = 32  # columns of the terminal; a longer word continues on the next line
CELL_BORDER = 2  # columns of the terminal between two cells


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
    keys, remaining = list(range(num_key_columns)), list(range(num_key_columns, len(columns)))
    limits = [_width_limits(name, [row[index] for row in rows], name in numbers) for index, name in enumerate(columns)]
    if title:
        console.print(Text(title, style="table.title"))
    while True:
        count = len(remaining)
        while count > 1 and sum(limits[index][0] + CELL_BORDER for index in keys + remaining[:count]) > console.width:
            count -= 1
        shown, remaining = keys + remaining[:count], remaining[count:]
        widths = _fit_widths([limits[index] for index in shown], [columns[index] not in numbers for index in shown], console.width)
        table = Table(box=SIMPLE, collapse_padding=True, pad_edge=False)
        for index, width in zip(shown, widths, strict=True):
            is_number = columns[index] in numbers
            header = columns[index].replace(" ", "\n") if is_number and cell_len(columns[index]) > width else columns[index]
            table.add_column(Text(header), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold", width=width)
        for row in rows:
            table.add_row(*(Text(row[index]) for index in shown))
        console.print(table)
        if not remaining:
            return


def _width_limits(name: str, cells: Sequence[str], is_number: bool) -> tuple[int, int]:
    """Return the least width of a column, at which no word and no number is divided, and the width at which nothing wraps."""
    words = [*name.split(), *(cells if is_number else (word for cell in cells for word in cell.split()))]
    least = max(map(cell_len, words), default=1)
    return least if is_number else min(least, MAX_WORD), max(map(cell_len, (name, *cells)))


def _fit_widths(limits: Sequence[tuple[int, int]], is_text: Sequence[bool], width: int) -> list[int]:
    """Return the width of each column of a table that is at most ``width`` wide; text is divided only if nothing else helps."""
    widths = [least for least, _ in limits]
    spare, wanted = width - sum(widths) - CELL_BORDER * len(limits), sum(full - least for least, full in limits)
    if spare > 0 and wanted:
        return [least + min(full - least, spare * (full - least) // wanted) for least, full in limits]
    while spare < 0 and (widest := max((size for size, text in zip(widths, is_text, strict=True) if text), default=1)) > 1:
        widths[next(index for index, size in enumerate(widths) if is_text[index] and size == widest)] -= 1
        spare += 1
    return widths


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
