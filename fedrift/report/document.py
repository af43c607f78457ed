"""A report as data: sections of text, figures and tables. The HTML page, the PDF and the LaTeX tables are made from the same document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from .figures import Chart, skip_validation

Mark = Literal["line", "dash", "dot", "square", "ring"]


@dataclass(frozen=True)
class LegendKey:
    """Describe one entry of a figure's legend."""

    label: str
    color: str
    mark: Mark = "line"


@dataclass(frozen=True)
class Panel:
    """Hold one chart of a figure, which is as wide as its place on the page."""

    title: str
    draw: Callable[[], Chart]

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Return the chart's Vega-Lite specification. The page and the paper both use it, so it is computed once."""
        with skip_validation():
            spec: dict[str, Any] = self.draw().to_dict(validate=False)
        return spec


@dataclass(frozen=True)
class Figure:
    """Group panels under one caption.

    Attributes:
        columns: Number of panels per row, where the page is wide enough.
        domains: Domains that the page's selector offers. The first one is ``""`` (all domains), which is also used in print.
    """

    key: str
    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[LegendKey, ...] = ()
    columns: int = 2
    note: str = ""
    domains: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Hold the formatted cells of a table."""

    key: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_columns: frozenset[int] = frozenset()  # indices of the columns that are right-aligned
    conditions: tuple[int, ...] = ()  # index of the condition of each row, for the page's filters; -1 means that the row is always shown
    is_long: bool = False  # whether the table may span several pages; the HTML page folds it
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Hold one section: its paragraphs, then its figures and tables."""

    key: str
    title: str
    text: tuple[str, ...] = ()
    blocks: tuple[Figure | Table, ...] = ()


@dataclass(frozen=True)
class MissingSection:
    """Describe a section that cannot be shown, and what must be recorded or varied for it."""

    title: str
    requirement: str


@dataclass(frozen=True)
class Claim:
    """Hold a hypothesis and its verdict for the summary at the top of the report."""

    name: str
    statement: str
    verdict: str
    sentence: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filter:
    """Describe a factor that the page can filter by. The selected levels determine which conditions all figures and tables show."""

    name: str
    levels: tuple[str, ...]
    colors: Mapping[str, str]


@dataclass(frozen=True)
class Document:
    """Hold the report of a study."""

    name: str
    question: str
    progress: str  # how many runs are finished, in words
    abstract: tuple[str, ...]
    claims: tuple[Claim, ...]
    sections: tuple[Section, ...]
    missing: tuple[MissingSection, ...]
    filters: tuple[Filter, ...]
    conditions: tuple[Mapping[str, str], ...]  # level of every filter for each condition
    version: str
    source: str  # the study's own YAML

    @property
    def figures(self) -> list[Figure]:
        """Return the figures of all sections, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]

    @property
    def tables(self) -> list[Table]:
        """Return the tables of all sections, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Table)]


# LaTeX: one file per table, and one file that inputs all of them.

BOOKTABS_HEADER = "% \\usepackage{booktabs}" + "\n"
LONGTABLE_HEADER = BOOKTABS_HEADER + "% \\usepackage{longtable}\n"
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "√": r"$\sqrt{}$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"\textbar{}",
    "“": "``",
    "”": "''",
    "−": "$-$",
}
PARAGRAPH_WIDTH = 44  # characters; a column with a longer cell is set as a paragraph


def table_to_latex(table: Table) -> str:
    """Return a table environment that needs ``booktabs``; a long table also needs ``longtable``."""
    columns = "".join(
        "r" if column in table.numeric_columns else "p{6cm}" if any(len(row[column]) > PARAGRAPH_WIDTH for row in table.rows) else "l"
        for column in range(len(table.columns))
    )
    header = format_latex_row(table.columns)
    body = "\n".join(format_latex_row(row) for row in table.rows)
    caption = f"\\caption{{{escape_latex(table.caption)}}}\\label{{tab:{table.key}}}"
    if table.is_long:
        return (
            f"{LONGTABLE_HEADER}\\begin{{longtable}}{{{columns}}}\n{caption}\\\\\n\\toprule\n{header}\n\\midrule\n\\endhead\n"
            f"\\bottomrule\n\\endfoot\n{body}\n\\end{{longtable}}\n"
        )
    return (
        f"{BOOKTABS_HEADER}\\begin{{table}}\n\\centering\\small\n{caption}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{header}\n\\midrule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def format_latex_row(cells: tuple[str, ...]) -> str:
    """Return one row of a LaTeX table."""
    return " & ".join(map(escape_latex, cells)) + r" \\"


def escape_latex(text: str) -> str:
    """Escape text for LaTeX."""
    escaped = "".join(LATEX_ESCAPES.get(letter, letter) for letter in text)
    return f"${escaped}$" if escaped[:1] == "-" and escaped[1:2].isdigit() and is_number(escaped) else escaped


def is_number(text: str) -> bool:
    """Return whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def latex_files(document: Document) -> dict[str, str]:
    """Return the content of every LaTeX file by its name."""
    files = {f"{table.key}.tex": table_to_latex(table) for table in document.tables if table.rows}
    return files | {"all.tex": "".join(f"\\input{{{name.removesuffix('.tex')}}}\n" for name in files)}
