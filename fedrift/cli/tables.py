"""Tables that fit the terminal: text wraps, numbers stay whole, and too many columns become several tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

MAX_WORD = 32  # columns of the terminal; a longer word continues on the next line
UNLIMITED = 100_000


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
    return Measurement.get(console, console.options.update_width(UNLIMITED), table).minimum <= console.width


def format_duration(seconds: float) -> str:
    """Format a duration such as ``2 h 5 min`` or ``3 min 20 s``."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {seconds_left} s" if minutes else f"{seconds_left} s"
