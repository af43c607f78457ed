"""A fraction of the grid in which the main effects of all factors stay apart: an orthogonal array."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from ...errors import UserError, unknown
from .arrays import array, contrasts, interaction, shared
from .design import Cell, Design, Levels


@dataclass(frozen=True)
class Orthogonal(Design):
    """One factor a column of ``array``. ``clear``: pairs of factors whose interaction no main effect is to be mixed with.

    A factor of fewer levels than its column begins them again (two levels in a column of three: the first is run twice
    as often), which keeps main effects apart. What is mixed with what is told by ``aliases``.
    """

    array: Literal["L4", "L8", "L16", "L9", "L18", "L27", "L81"] = "L27"
    clear: tuple[tuple[str, str], ...] = ()

    def __call__(self, levels: Levels) -> list[Cell]:
        columns = self.columns(levels)
        rows = zip(*columns.values(), strict=True)
        found: list[Cell] = []
        for row in rows:
            cell = {factor: levels[factor][index] for factor, index in zip(columns, row, strict=True)}
            cell = {factor: cell[factor] for factor in levels}
            if cell not in found:
                found.append(cell)
        return found

    def columns(self, levels: Levels) -> dict[str, np.ndarray]:
        """Each factor's column, [rows] int64: the cleared ones first, then where the fewest interactions lie."""
        table = array(self.array)
        for factor in {factor for pair in self.clear for factor in pair}:
            if factor not in levels:
                raise unknown("factor", factor, levels)
        first = [factor for pair in self.clear for factor in pair]
        order = sorted(levels, key=lambda factor: (first.index(factor) if factor in first else len(first)))
        free, chosen = list(range(table.shape[1])), dict[str, np.ndarray]()
        for factor in order:
            count, best = len(levels[factor]), (np.inf, np.inf, -1)
            for column in free:
                there = int(table[:, column].max()) + 1
                if there < count or (self._spoils(factor, table[:, column] % count, chosen)):
                    continue
                mixed = sum(shared(contrasts(table[:, column] % count), interaction(chosen[a], chosen[b]))
                            for a, b in combinations(chosen, 2))
                best = min(best, (there - count, mixed, column))
            if best[2] < 0:
                raise UserError(f"design.array: {self.array} has no column left for {factor!r} ({count} levels, after "
                                f"{', '.join(chosen) or 'none'}); take a larger array, fewer levels or a shorter design.clear")
            free.remove(int(best[2]))
            chosen[factor] = table[:, int(best[2])] % count
        return {factor: chosen[factor] for factor in levels}

    def _spoils(self, factor: str, column: np.ndarray, chosen: dict[str, np.ndarray]) -> bool:
        """Whether a main effect and the interaction of a cleared pair would be mixed by this choice."""
        columns = {**chosen, factor: column}
        for one, other in self.clear:
            if one in columns and other in columns:
                both = interaction(columns[one], columns[other])
                rest = [name for name in columns if name not in (one, other)]
                if any(shared(contrasts(columns[name]), both) > 1e-9 for name in rest):
                    return True
        return False


def aliases(cells: list[Cell]) -> list[dict[str, Any]]:
    """Which main effects are mixed with which interactions of two, in any design.

    ``share`` is the part of the main effect's contrasts that lies in the interaction: 1 means that if the two factors
    interact, all of it is read as the main effect; 0 is left out.
    """
    factors = [factor for factor in (cells[0] if cells else {}) if len({str(cell[factor]) for cell in cells}) > 1]
    columns = {factor: np.unique([str(cell[factor]) for cell in cells], return_inverse=True)[1] for factor in factors}
    pairs = {pair: interaction(columns[pair[0]], columns[pair[1]]) for pair in combinations(factors, 2)}
    return [{"factor": factor, "pair": list(pair), "share": round(mixed, 6)}
            for factor in factors for pair, both in pairs.items()
            if factor not in pair and (mixed := shared(contrasts(columns[factor]), both)) > 1e-9]
