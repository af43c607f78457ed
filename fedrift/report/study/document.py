"""A report as data: sections of text, figures and tables. HTML, PDF and LaTeX are made of the same one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..figures import Chart, Width

Mark = Literal["line", "dash", "dot", "square", "ring"]


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend."""

    label: str
    colour: str
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
    legend: tuple[Key, ...] = ()
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
    numbers: frozenset[int] = frozenset()
    arms: tuple[int, ...] = ()
    long: bool = False
    note: str = ""


@dataclass(frozen=True)
class Section:
    key: str
    title: str
    text: tuple[str, ...] = ()
    blocks: tuple[Figure | Table, ...] = ()


@dataclass(frozen=True)
class Missing:
    """What is not shown, and what would have to be recorded or varied for it."""

    what: str
    needs: str


@dataclass(frozen=True)
class Claim:
    """A verdict to be read at a glance."""

    name: str
    says: str
    verdict: str
    sentence: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filter:
    """A factor on the page: choosing levels chooses arms, in every figure and table."""

    name: str
    levels: tuple[str, ...]
    colours: Mapping[str, str]


@dataclass(frozen=True)
class Document:
    name: str
    question: str
    state: str  # in words, how far the study is
    abstract: tuple[str, ...]
    claims: tuple[Claim, ...]
    sections: tuple[Section, ...]
    missing: tuple[Missing, ...]
    filters: tuple[Filter, ...]
    arms: tuple[Mapping[str, str], ...]  # of each arm its level of every filter
    version: str
    source: str  # the study's own YAML

    @property
    def figures(self) -> list[Figure]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]

    @property
    def tables(self) -> list[Table]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Table)]
