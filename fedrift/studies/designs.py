"""What a design is: from the levels of every factor to the cells that are run."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any, Literal, TypeAlias

import numpy as np

from ..core.errors import UserError, unknown_name_error

Levels: TypeAlias = dict[str, tuple[Any, ...]]
"""The labels of each factor's levels, by the factor's name."""
Cell: TypeAlias = dict[str, Any]
"""One label a factor, by the factor's name."""


@dataclass(frozen=True)
class Design:
    """Called with the levels of the factors it gives the cells, each once, in an order that never changes."""

    def __call__(self, levels: Levels) -> list[Cell]:
        raise NotImplementedError


def find_level(levels: Levels, factor: str, label: Any) -> Any:
    """The level of a factor that ``label`` names."""
    if factor not in levels:
        raise unknown_name_error("factor", factor, levels)
    if label not in levels[factor]:
        raise UserError(f"factor {factor!r} has no level {label!r}; it has {', '.join(map(str, levels[factor]))}")
    return levels[factor][levels[factor].index(label)]


# Orthogonal arrays: tables in which every pair of columns holds every pair of levels equally often.
#
# Those of p^r rows are the linear ones over GF(p) (Bose, Sankhya 8, 1947; Hedayat, Sloane & Stufken, *Orthogonal
# Arrays*, 1999, Theorem 3.20): a row is a point x of GF(p)^r, a column a direction v (the first number of it that is not 0
# being 1), the entry is v.x mod p. That makes (p^r - 1) / (p - 1) columns. L18 is Taguchi's table of one column of two
# levels and seven of three.

LINEAR_ARRAYS = {"L4": (2, 2), "L8": (2, 3), "L16": (2, 4), "L9": (3, 2), "L27": (3, 3), "L81": (3, 4)}  # name: (p, r)
L18 = """
00000000 00111111 00222222 01001122 01112200 01220011 02010212 02121020 02202101
10022110 10100221 10211002 11012021 11120102 11201210 12021201 12102012 12210120
"""
ARRAY_NAMES = (*LINEAR_ARRAYS, "L18")


def build_array(name: str) -> np.ndarray:
    """The array of that name, [rows, columns] int64 of levels from 0 on."""
    if name == "L18":
        return np.array([[int(digit) for digit in row] for row in L18.split()])
    if name not in LINEAR_ARRAYS:
        raise unknown_name_error("orthogonal array", name, ARRAY_NAMES)
    p, r = LINEAR_ARRAYS[name]
    points = np.array(list(product(range(p), repeat=r)))
    # Single coordinates first, then sums of two, and so on: the first r columns are a full grid of their own.
    directions = sorted(
        (v for v in points.tolist() if next((n for n in v if n), 0) == 1), key=lambda v: (sum(n > 0 for n in v), [-n for n in v])
    )
    return (points @ np.array(directions).T) % p


def compute_contrasts(column: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what a column's levels can differ by, [rows, levels - 1]."""
    one_hot = (column[:, None] == np.unique(column)).astype(float)
    return _orthonormal_basis(one_hot - one_hot.mean(axis=0))


def compute_interaction(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the interaction of two columns, [rows, df]: their products, less their own effects."""
    a, b = compute_contrasts(first), compute_contrasts(second)
    products = (a[:, :, None] * b[:, None, :]).reshape(len(first), -1)
    own = _orthonormal_basis(np.column_stack([np.ones(len(first)), a, b]))
    return _orthonormal_basis(products - own @ (own.T @ products))


def compute_overlap(effect: np.ndarray, other: np.ndarray) -> float:
    """How much of an effect cannot be told from another: 0 nothing, 1 all of it. Both orthonormal bases."""
    return float(((effect.T @ other) ** 2).sum() / effect.shape[1]) if effect.size and other.size else 0.0


def _orthonormal_basis(columns: np.ndarray) -> np.ndarray:
    u, size, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, size > 1e-9]


# Every combination of levels.


@dataclass(frozen=True)
class FullGrid(Design):
    """All main effects and all interactions can be told apart; the most runs."""

    def __call__(self, levels: Levels) -> list[Cell]:
        return [dict(zip(levels, labels, strict=True)) for labels in product(*levels.values())]


# The cells that were written down, and no others.


@dataclass(frozen=True)
class ExplicitDesign(Design):
    """``cells``: a level for every factor that has more than one."""

    cells: tuple[dict[str, Any], ...] = ()

    def __call__(self, levels: Levels) -> list[Cell]:
        found: list[Cell] = []
        for number, said in enumerate(self.cells):
            unsaid = [factor for factor, labels in levels.items() if factor not in said and len(labels) > 1]
            if unsaid:
                raise UserError(f"design.cells[{number}] must say a level for {', '.join(unsaid)}")
            chosen = {factor: find_level(levels, factor, label) for factor, label in said.items()}
            cell = {factor: chosen.get(factor, labels[0]) for factor, labels in levels.items()}
            if cell not in found:
                found.append(cell)
        if not found:
            raise UserError("design.cells names no cell; each is a level for every factor, e.g. {algorithm: FedAvg}")
        return found


# One factor at a time around a centre.


@dataclass(frozen=True)
class OneFactorAtATime(Design):
    """The centre, and every cell that differs from it in one factor. ``center``: a level for some factors; the first
    level of the others. No interaction can be seen: each effect is that at the centre."""

    center: dict[str, Any] = field(default_factory=dict)

    def __call__(self, levels: Levels) -> list[Cell]:
        said = {factor: find_level(levels, factor, label) for factor, label in self.center.items()}
        centre = {factor: said.get(factor, labels[0]) for factor, labels in levels.items()}
        return [centre] + [{**centre, factor: label} for factor, labels in levels.items() for label in labels if label != centre[factor]]


# A fraction of the grid in which the main effects of all factors stay apart: an orthogonal array.


@dataclass(frozen=True)
class Orthogonal(Design):
    """One factor a column of ``array``. ``clear``: pairs of factors whose interaction no main effect is to be mixed with.

    A factor of fewer levels than its column begins them again (two levels in a column of three: the first is run twice
    as often), which keeps main effects apart. What is mixed with what is told by ``find_aliases``.
    """

    array: Literal["L4", "L8", "L16", "L9", "L18", "L27", "L81"] = "L27"
    clear: tuple[tuple[str, str], ...] = ()

    def __call__(self, levels: Levels) -> list[Cell]:
        columns = self.assign_columns(levels)
        rows = zip(*columns.values(), strict=True)
        found: list[Cell] = []
        for row in rows:
            cell = {factor: levels[factor][index] for factor, index in zip(columns, row, strict=True)}
            cell = {factor: cell[factor] for factor in levels}
            if cell not in found:
                found.append(cell)
        return found

    def assign_columns(self, levels: Levels) -> dict[str, np.ndarray]:
        """Each factor's column, [rows] int64: the cleared ones first, then where the fewest interactions lie."""
        table = build_array(self.array)
        for factor in {factor for pair in self.clear for factor in pair}:
            if factor not in levels:
                raise unknown_name_error("factor", factor, levels)
        first = [factor for pair in self.clear for factor in pair]
        order = sorted(levels, key=lambda factor: first.index(factor) if factor in first else len(first))
        free, chosen = list(range(table.shape[1])), dict[str, np.ndarray]()
        for factor in order:
            count, best = len(levels[factor]), (np.inf, np.inf, -1)
            for column in free:
                there = int(table[:, column].max()) + 1
                if there < count or (self._is_confounding(factor, table[:, column] % count, chosen)):
                    continue
                mixed = sum(
                    compute_overlap(compute_contrasts(table[:, column] % count), compute_interaction(chosen[a], chosen[b]))
                    for a, b in combinations(chosen, 2)
                )
                best = min(best, (there - count, mixed, column))
            if best[2] < 0:
                raise UserError(
                    f"design.array: {self.array} has no column left for {factor!r} ({count} levels, after "
                    f"{', '.join(chosen) or 'none'}); take a larger array, fewer levels or a shorter design.clear"
                )
            free.remove(int(best[2]))
            chosen[factor] = table[:, int(best[2])] % count
        return {factor: chosen[factor] for factor in levels}

    def _is_confounding(self, factor: str, column: np.ndarray, chosen: dict[str, np.ndarray]) -> bool:
        """Whether a main effect and the interaction of a cleared pair would be mixed by this choice."""
        columns = {**chosen, factor: column}
        for one, other in self.clear:
            if one in columns and other in columns:
                both = compute_interaction(columns[one], columns[other])
                rest = [name for name in columns if name not in (one, other)]
                if any(compute_overlap(compute_contrasts(columns[name]), both) > 1e-9 for name in rest):
                    return True
        return False


def find_aliases(cells: list[Cell]) -> list[dict[str, Any]]:
    """Which main effects are mixed with which interactions of two, in any design.

    ``share`` is the part of the main effect's contrasts that lies in the interaction: 1 means that if the two factors
    interact, all of it is read as the main effect; 0 is left out.
    """
    factors = [factor for factor in (cells[0] if cells else {}) if len({str(cell[factor]) for cell in cells}) > 1]
    columns = {factor: np.unique([str(cell[factor]) for cell in cells], return_inverse=True)[1] for factor in factors}
    pairs = {pair: compute_interaction(columns[pair[0]], columns[pair[1]]) for pair in combinations(factors, 2)}
    return [
        {"factor": factor, "pair": list(pair), "share": round(mixed, 6)}
        for factor in factors
        for pair, both in pairs.items()
        if factor not in pair and (mixed := compute_overlap(compute_contrasts(columns[factor]), both)) > 1e-9
    ]


# Which combinations of levels a study runs. In a study ``design: {type: Name}`` is a class named in ``__all__``.

__all__ = ["ExplicitDesign", "FullGrid", "OneFactorAtATime", "Orthogonal"]
