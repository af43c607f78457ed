"""A report as data: sections of text, figures and tables. HTML, PDF and LaTeX are made of the same one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from .figures import Chart, Width

Mark = Literal["line", "dash", "dot", "square", "ring"]


@dataclass(frozen=True)
class LegendKey:
    """An entry of a figure's legend."""

    label: str
    color: str
    mark: Mark = "line"


@dataclass(frozen=True)
class Panel:
    """One chart of a figure, drawn at a width in pixels, or at the width of its place on a page."""

    title: str
    draw: Callable[[Width], Chart]


@dataclass(frozen=True)
class Figure:
    """Panels under one caption. ``columns``: how many stand side by side where there is room."""

    key: str
    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[LegendKey, ...] = ()
    columns: int = 2
    note: str = ""
    domains: tuple[str, ...] = ()  # of which one is chosen on the page; the first, which is all, in print


@dataclass(frozen=True)
class Table:
    """Cells as they are to be read; ``numbers``: which columns line up to the right. ``arms``: whose row it is, for the
    filters of the page; -1: shown always. ``long``: it may run over pages, and is folded on the page."""

    key: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_columns: frozenset[int] = frozenset()
    conditions: tuple[int, ...] = ()
    is_long: bool = False
    note: str = ""


@dataclass(frozen=True)
class Section:
    key: str
    title: str
    text: tuple[str, ...] = ()
    blocks: tuple[Figure | Table, ...] = ()


@dataclass(frozen=True)
class MissingSection:
    """What is not shown, and what would have to be recorded or varied for it."""

    title: str
    requirement: str


@dataclass(frozen=True)
class Claim:
    """A verdict to be read at a glance."""

    name: str
    statement: str
    verdict: str
    sentence: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filter:
    """A factor on the page: choosing levels chooses arms, in every figure and table."""

    name: str
    levels: tuple[str, ...]
    colors: Mapping[str, str]


@dataclass(frozen=True)
class Document:
    name: str
    question: str
    progress: str  # in words, how far the study is
    abstract: tuple[str, ...]
    claims: tuple[Claim, ...]
    sections: tuple[Section, ...]
    missing: tuple[MissingSection, ...]
    filters: tuple[Filter, ...]
    conditions: tuple[Mapping[str, str], ...]  # of each arm its level of every filter
    version: str
    source: str  # the study's own YAML

    @property
    def figures(self) -> list[Figure]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]

    @property
    def tables(self) -> list[Table]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Table)]


# Tables as LaTeX: booktabs, one file each, and one that takes all of them in.

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
PARAGRAPH_WIDTH = 44  # letters from which a column is a paragraph


def table_to_latex(table: Table) -> str:
    """A table that stands by itself in a document with booktabs; a long one runs over pages."""
    columns = "".join(
        "r" if place in table.numeric_columns else "p{6cm}" if any(len(row[place]) > PARAGRAPH_WIDTH for row in table.rows) else "l"
        for place in range(len(table.columns))
    )
    head = format_latex_row(table.columns)
    body = "\n".join(format_latex_row(row) for row in table.rows)
    caption = f"\\caption{{{escape_latex(table.caption)}}}\\label{{tab:{table.key}}}"
    if table.is_long:
        return (
            f"{LONGTABLE_HEADER}\\begin{{longtable}}{{{columns}}}\n{caption}\\\\\n\\toprule\n{head}\n\\midrule\n\\endhead\n"
            f"\\bottomrule\n\\endfoot\n{body}\n\\end{{longtable}}\n"
        )
    return (
        f"{BOOKTABS_HEADER}\\begin{{table}}\n\\centering\\small\n{caption}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n\\midrule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def format_latex_row(cells: tuple[str, ...]) -> str:
    return " & ".join(map(escape_latex, cells)) + r" \\"


def escape_latex(text: str) -> str:
    """Text as LaTeX reads it."""
    said = "".join(LATEX_ESCAPES.get(letter, letter) for letter in text)
    return f"${said}$" if said[:1] == "-" and said[1:2].isdigit() and _is_number(said) else said


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def latex_files(document: Document) -> dict[str, str]:
    """Name -> content of every file."""
    made = {f"{table.key}.tex": table_to_latex(table) for table in document.tables if table.rows}
    return made | {"all.tex": "".join(f"\\input{{{name.removesuffix('.tex')}}}\n" for name in made)}
