"""Designs of experiments: from the levels of all factors to the cells that a study runs.

A study file selects a design by ``design: {type: Name}``, where the name is a class in ``__all__``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any, Literal, TypeAlias

import numpy as np

from ..core.errors import UserError, unknown_name_error

Levels: TypeAlias = dict[str, tuple[Any, ...]]
"""Factor name -> the labels of its levels."""
Cell: TypeAlias = dict[str, Any]
"""Factor name -> the label of one level."""


@dataclass(frozen=True)
class Design:
    """Base class of designs.

    A design is called with the levels of all factors. It returns the cells to run, each once, in a deterministic order.

    Example:
        >>> @dataclass(frozen=True)
        ... class FirstLevels(Design):
        ...     def __call__(self, levels: Levels) -> list[Cell]:
        ...         return [{factor: labels[0] for factor, labels in levels.items()}]
    """

    def __call__(self, levels: Levels) -> list[Cell]:
        raise NotImplementedError


def find_level(levels: Levels, factor: str, label: Any) -> Any:
    """Return the level of a factor that ``label`` names; raise UserError if the factor or the level does not exist."""
    if factor not in levels:
        raise unknown_name_error("factor", factor, levels)
    if label not in levels[factor]:
        raise UserError(f"factor {factor!r} has no level {label!r}; its levels are {', '.join(map(str, levels[factor]))}")
    return levels[factor][levels[factor].index(label)]


# Orthogonal arrays: tables in which every pair of columns contains every pair of levels equally often. Arrays with p^r rows are the linear
# ones over GF(p) (Bose, Sankhya 8, 1947; Hedayat, Sloane & Stufken, *Orthogonal Arrays*, 1999, Theorem 3.20). A row is a point x of
# GF(p)^r, a column is a direction v whose first nonzero entry is 1, and the table entry is v.x mod p. This gives (p^r - 1) / (p - 1)
# columns. L18 is Taguchi's table with one column of two levels and seven columns of three levels.

LINEAR_ARRAYS = {"L4": (2, 2), "L8": (2, 3), "L16": (2, 4), "L9": (3, 2), "L27": (3, 3), "L81": (3, 4)}  # name: (p, r)
L18 = """
00000000 00111111 00222222 01001122 01112200 01220011 02010212 02121020 02202101
10022110 10100221 10211002 11012021 11120102 11201210 12021201 12102012 12210120
"""
ARRAY_NAMES = (*LINEAR_ARRAYS, "L18")


def build_array(name: str) -> np.ndarray:
    """Return the orthogonal array of that name, [rows, columns] int64, with levels counted from 0."""
    if name == "L18":
        return np.array([[int(digit) for digit in row] for row in L18.split()])
    if name not in LINEAR_ARRAYS:
        raise unknown_name_error("orthogonal array", name, ARRAY_NAMES)
    p, r = LINEAR_ARRAYS[name]
    points = np.array(list(product(range(p), repeat=r)))
    # Directions with one nonzero entry come first, then those with two, and so on: the first r columns form a full grid.
    directions = sorted(
        (v for v in points.tolist() if next((n for n in v if n), 0) == 1), key=lambda v: (sum(n > 0 for n in v), [-n for n in v])
    )
    return (points @ np.array(directions).T) % p


def compute_contrasts(column: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the main effect of a column, [rows, levels - 1]."""
    one_hot = (column[:, None] == np.unique(column)).astype(float)
    return _orthonormal_basis(one_hot - one_hot.mean(axis=0))


def compute_interaction(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the interaction of two columns, [rows, df]: their products without their main effects."""
    a, b = compute_contrasts(first), compute_contrasts(second)
    products = (a[:, :, None] * b[:, None, :]).reshape(len(first), -1)
    main_effects = _orthonormal_basis(np.column_stack([np.ones(len(first)), a, b]))
    return _orthonormal_basis(products - main_effects @ (main_effects.T @ products))


def compute_overlap(effect: np.ndarray, other: np.ndarray) -> float:
    """Return the share of an effect that is confounded with another, from 0 (none) to 1 (all). Both are orthonormal bases."""
    return float(((effect.T @ other) ** 2).sum() / effect.shape[1]) if effect.size and other.size else 0.0


def _orthonormal_basis(columns: np.ndarray) -> np.ndarray:
    u, size, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, size > 1e-9]


@dataclass(frozen=True)
class FullGrid(Design):
    """Run every combination of levels.

    All main effects and all interactions can be estimated. This design needs the most runs.
    """

    def __call__(self, levels: Levels) -> list[Cell]:
        return [dict(zip(levels, labels, strict=True)) for labels in product(*levels.values())]


@dataclass(frozen=True)
class ExplicitDesign(Design):
    """Run only the listed cells.

    ``cells`` are mappings from factor to level. Each must have a level for every factor with more than one level.
    """

    cells: tuple[dict[str, Any], ...] = ()

    def __call__(self, levels: Levels) -> list[Cell]:
        cells: list[Cell] = []
        for index, labels_by_factor in enumerate(self.cells):
            missing = [factor for factor, labels in levels.items() if factor not in labels_by_factor and len(labels) > 1]
            if missing:
                raise UserError(f"design.cells[{index}] must have a level for {', '.join(missing)}")
            chosen = {factor: find_level(levels, factor, label) for factor, label in labels_by_factor.items()}
            cell = {factor: chosen.get(factor, labels[0]) for factor, labels in levels.items()}
            if cell not in cells:
                cells.append(cell)
        if not cells:
            raise UserError("design.cells is empty; list cells with a level for every factor, e.g. {algorithm: FedAvg}")
        return cells


@dataclass(frozen=True)
class OneFactorAtATime(Design):
    """Run the center cell and every cell that differs from it in one factor.

    ``center`` gives a level for some factors; the others use their first level. The design cannot estimate interactions: each effect is the
    effect at the center.
    """

    center: dict[str, Any] = field(default_factory=dict)

    def __call__(self, levels: Levels) -> list[Cell]:
        center_levels = {factor: find_level(levels, factor, label) for factor, label in self.center.items()}
        center_cell = {factor: center_levels.get(factor, labels[0]) for factor, labels in levels.items()}
        return [center_cell] + [
            {**center_cell, factor: label} for factor, labels in levels.items() for label in labels if label != center_cell[factor]
        ]


@dataclass(frozen=True)
class Orthogonal(Design):
    """Run a fraction of the full grid, given by an orthogonal array, in which all main effects are independent.

    Each factor uses one column of ``array``. ``clear`` lists pairs of factors whose interaction must not be confounded with any main
    effect. A factor with fewer levels than its column repeats them cyclically, which keeps main effects independent: with two levels in a
    column of three, the first level is run twice as often. Levels for which the array repeats whole cells, so that two main effects would
    not be independent, are refused. ``find_aliases`` lists the remaining confounding.
    """

    array: Literal["L4", "L8", "L16", "L9", "L18", "L27", "L81"] = "L27"
    clear: tuple[tuple[str, str], ...] = ()

    def __call__(self, levels: Levels) -> list[Cell]:
        columns = self.assign_columns(levels)
        rows = zip(*columns.values(), strict=True)
        cells: list[Cell] = []
        for row in rows:
            cell = {factor: levels[factor][index] for factor, index in zip(columns, row, strict=True)}
            cell = {factor: cell[factor] for factor in levels}
            if cell not in cells:
                cells.append(cell)
        if pair := find_dependent_pair(cells):
            raise UserError(
                f"design.array: {self.array} repeats cells for these numbers of levels, so the main effects of {pair[0]!r} and {pair[1]!r} "
                "would be confounded; use FullGrid, more factors or another array"
            )
        return cells

    def assign_columns(self, levels: Levels) -> dict[str, np.ndarray]:
        """Assign a column to each factor: first to the factors in ``clear``, then to the others where the fewest interactions overlap.

        Returns:
            Factor -> its column of levels, [rows] int64.

        Raises:
            UserError: ``clear`` names an unknown factor, or no column is left for a factor.
        """
        table = build_array(self.array)
        for factor in {factor for pair in self.clear for factor in pair}:
            if factor not in levels:
                raise unknown_name_error("factor", factor, levels)
        cleared = [factor for pair in self.clear for factor in pair]
        order = sorted(levels, key=lambda factor: cleared.index(factor) if factor in cleared else len(cleared))
        free, chosen = list(range(table.shape[1])), dict[str, np.ndarray]()
        for factor in order:
            count, best = len(levels[factor]), (np.inf, np.inf, -1)
            for column in free:
                num_column_levels = int(table[:, column].max()) + 1
                if num_column_levels < count or (self._is_confounding(factor, table[:, column] % count, chosen)):
                    continue
                overlap = sum(
                    compute_overlap(compute_contrasts(table[:, column] % count), compute_interaction(chosen[a], chosen[b]))
                    for a, b in combinations(chosen, 2)
                )
                best = min(best, (num_column_levels - count, overlap, column))
            if best[2] < 0:
                raise UserError(
                    f"design.array: {self.array} has no column left for {factor!r} ({count} levels, after "
                    f"{', '.join(chosen) or 'none'}); take a larger array, fewer levels or a shorter design.clear"
                )
            free.remove(int(best[2]))
            chosen[factor] = table[:, int(best[2])] % count
        return {factor: chosen[factor] for factor in levels}

    def _is_confounding(self, factor: str, column: np.ndarray, chosen: dict[str, np.ndarray]) -> bool:
        """Return whether this choice would confound a main effect with the interaction of a cleared pair."""
        columns = {**chosen, factor: column}
        for first, second in self.clear:
            if first in columns and second in columns:
                interaction = compute_interaction(columns[first], columns[second])
                others = [name for name in columns if name not in (first, second)]
                if any(compute_overlap(compute_contrasts(columns[name]), interaction) > 1e-9 for name in others):
                    return True
        return False


def find_dependent_pair(cells: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return two factors whose main effects are confounded, because their levels are not proportional over the cells; None if all are."""
    for pair in combinations(cells[0] if cells else (), 2):
        both = Counter(tuple(str(cell[factor]) for factor in pair) for cell in cells)
        first, second = (Counter(str(cell[factor]) for cell in cells) for factor in pair)
        if any(both[one, other] * len(cells) != first[one] * second[other] for one in first for other in second):
            return pair
    return None


def find_aliases(cells: list[Cell]) -> list[dict[str, Any]]:
    """List which main effects are confounded with which two-factor interactions, for any list of cells.

    Returns:
        Mappings with the keys ``factor``, ``pair`` and ``share``. ``share`` is the part of the main effect's contrasts that lies in the
        interaction. With 1, an interaction of the two factors is entirely attributed to the main effect. Entries with 0 are omitted.
    """
    factors = [factor for factor in (cells[0] if cells else {}) if len({str(cell[factor]) for cell in cells}) > 1]
    columns = {factor: np.unique([str(cell[factor]) for cell in cells], return_inverse=True)[1] for factor in factors}
    pairs = {pair: compute_interaction(columns[pair[0]], columns[pair[1]]) for pair in combinations(factors, 2)}
    return [
        {"factor": factor, "pair": list(pair), "share": round(share, 6)}
        for factor in factors
        for pair, interaction in pairs.items()
        if factor not in pair and (share := compute_overlap(compute_contrasts(columns[factor]), interaction)) > 1e-9
    ]


__all__ = ["ExplicitDesign", "FullGrid", "OneFactorAtATime", "Orthogonal"]
