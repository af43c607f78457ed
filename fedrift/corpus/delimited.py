"""CSV and TSV, read strictly: every row has as many cells as the first line names columns, and no quote swallows rows."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UserError

LONG = 5  # lines in one cell that are remarked on where hardly another cell has two
FEW = 0.05  # share of the rows that count as hardly one


def read_delimited(where: str, text: str, separator: str, prose: str) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Read a table of separated cells, each a string; the first line names the columns.

    Args:
        where: The path of the file, for messages.
        text: Its content.
        separator: What stands between cells.
        prose: The column of running text, whose cells may have many lines.

    Returns:
        The names of all columns, the columns by name (of two of one name the first), and notes for the reader.

    Raises:
        UserError: A row has more or fewer cells than the first line; a quote is not closed, or is closed before its
            cell ends, or swallows lines that are rows of their own.
    """
    lines = list(io.StringIO(text, newline=""))
    names: list[str] = []
    rows: list[list[str]] = []
    spans: dict[int, tuple[int, int]] = {}  # of rows of more than one line: the first and the last, from 1
    limit = csv.field_size_limit(min(len(text) + 1, 2**31 - 1))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    begin = 1
    try:
        for cells in reader:
            if not names:
                names = cells
            elif cells:
                if len(cells) != len(names):
                    raise wrong_count(where, begin, cells, names, separator)
                if reader.line_num > begin:
                    spans[len(rows)] = begin, reader.line_num
                rows.append(cells)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{where}, row from line {begin}: {quote_fault(error)}. Inside a quoted text a quotation mark is "
                        'written twice (""); a text that only begins with one is to be quoted too') from error
    finally:
        csv.field_size_limit(limit)
    refuse_swallowed(where, lines, rows, spans, names.index(prose) if prose in names else -1, separator)
    columns: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        columns.setdefault(name, [row[number] for row in rows])
    return names, columns, long_cells(Path(where).name, spans, len(rows))


def wrong_count(where: str, line: int, cells: Sequence[str], names: Sequence[str], separator: str) -> UserError:
    """A row that does not fit the first line."""
    found = "more" if len(cells) > len(names) else "fewer"
    first = ", ".join(name[:40] for name in names[:8])
    return UserError(f"{where}, line {line}: the row has {found} cells ({len(cells)}) than the first line names columns "
                     f"({len(names)}: {first}); quote texts that hold the separator {separator!r}")


def quote_fault(error: csv.Error) -> str:
    """What is wrong with the quotation marks, in words."""
    said = str(error)
    if "end of data" in said:
        return "a quotation mark is opened and never closed"
    return "a quoted text goes on after its closing quotation mark" if "expected after" in said else said


def refuse_swallowed(where: str, lines: Sequence[str], rows: Sequence[Sequence[str]], spans: dict[int, tuple[int, int]],
                     prose: int, separator: str) -> None:
    """Refuse a cell whose lines are rows: a stray quotation mark opened it, and another closed it far below.

    Every line of such a cell has as many cells as a row, and in most of them the right things stand in the columns beside
    the text: a value that the column has elsewhere or, where no two rows share one, an unused one of the same shape.
    """
    if not spans or len(rows[0]) < 2:
        return
    width = len(rows[0])
    inner = {row: [lines[line - 1].rstrip("\r\n").split(separator) for line in range(begin, end + 1)]
             for row, (begin, end) in spans.items()}
    like_rows = [cells for found in inner.values() for cells in found if len(cells) == width]
    beside = {number: known_cell([row[number] for row in rows], [cells[number] for cells in like_rows])
              for number in range(width) if number != prose}
    for row, (begin, end) in spans.items():
        quoted = next(number for number, value in enumerate(rows[row]) if "\n" in value or "\r" in value)
        found = []
        for line, cells in enumerate(inner[row], begin):
            # What stands beside the quoted cell in its first and last line belongs to this row.
            looked = [number for number in beside if (line > begin or number > quoted) and (line < end or number < quoted)]
            if looked and cells != [""]:
                found.append((line, row_kind([beside[number](cells[number].strip('"')) for number in looked])
                              if len(cells) == width else "none"))
        fits = [kind for _, kind in found if kind not in ("none", "other")]
        if not found or any(kind == "none" for _, kind in found) or 2 * len(fits) < len(found):
            continue
        if "sure" in fits or fits.count("perhaps") > 1:
            example = next(line for line, kind in found if kind not in ("none", "other"))
            raise UserError(f"{where}, line {begin}: a quoted text that opens here closes in line {end} and holds lines that "
                            f"are rows of their own (line {example}): a quotation mark is stray. Take it out, or quote the "
                            'text and write each of its quotation marks twice ("")')


def row_kind(fits: Sequence[str]) -> str:
    """How well the cells of a line fit the columns of a row: as the best of them does, or "other" where one does not."""
    if "" in fits:
        return "other"
    return next((kind for kind in ("sure", "perhaps", "repeated") if kind in fits), "other")


def known_cell(values: Sequence[str], doubtful: Sequence[str]) -> Callable[[str], str]:
    """How a cell fits a column of ``values``: "sure", "perhaps", "repeated" or not (""); "open" where anything would.

    ``doubtful`` cells, of lines that may be rows, help to tell a column of few values from one of many. One that is in no
    row, but in several such lines, is "repeated".
    """
    seen, every, count = set(values), [*values, *doubtful], Counter(doubtful)
    if len({*every}) < 0.9 * len(every):
        return lambda cell: "sure" if cell in seen else "repeated" if count[cell] > 1 else ""
    shapes = {shape(value) for value in values}
    if len(shapes) > 0.1 * len(values) + 1 or not all("0" in one for one in shapes):
        return lambda cell: "open"
    numbers = [int(value) for value in values if value.isdecimal()]
    low, high = min(numbers, default=0), max(numbers, default=0)

    def unused(cell: str) -> str:
        if shape(cell) not in shapes or cell in seen:
            return ""
        return "sure" if not cell.isdecimal() or low < int(cell) < high else "perhaps"

    return unused


def shape(cell: str) -> str:
    """A cell with every run of digits as one 0."""
    return re.sub(r"\d+", "0", cell)


def long_cells(where: str, spans: dict[int, tuple[int, int]], rows: int) -> list[str]:
    """A note where a cell or two of a table run over many lines, and all others over one."""
    long = [(begin, end) for begin, end in spans.values() if end - begin >= LONG]
    if not long or len(spans) > max(2, FEW * rows):
        return []
    begin, end = max(long, key=lambda span: span[1] - span[0])
    return [f"{where}: a quoted text runs from line {begin} to {end}, and hardly another row has two lines; "
            "look for a stray quotation mark"]
