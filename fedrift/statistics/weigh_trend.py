"""How a trend is weighed: by the levels of a factor, or along a dial that every run has its own value of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import UserError
from .measured import Bar, Measured, directed, nothing
from .paired import differences, middle, paired_t, ties
from .selection import PerSeed, averaged, select, told, values
from .trend import page, spearman
from .weigh import diverged_among, metric

if TYPE_CHECKING:
    from .hypotheses import Trend

FEWEST = 3  # seeds: fewer do not make a trend that holds beyond them, whatever its p


def trend(said: Trend, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
    """Three or more levels of a factor by Page's L, two by their paired contrast, a measured dial by Spearman's rho."""
    table = select(values(runs, said.metric, None, said.contrast, said.worst, twins=True), said.where)
    words = f"{metric(said)} along {said.along}" + (f", {told(said.where)}" if said.where else "")
    sign = 1 if said.direction == "up" else -1
    diverged = diverged_among(runs, said.contrast, table)
    rows = table.dropna(subset=["value", said.along])
    tied = len(set(table.loc[table["tied"], "seed"]))
    if not len(rows):
        return nothing(words, "slope", diverged=diverged, tied=tied)
    if said.along in factors:
        complete, incomplete = by_levels(rows, said.along, [f for f in factors if f not in {said.along, *said.where}])
        if not len(complete):
            return nothing(words, "slope", incomplete, "no seed has a run at each of two or more levels", diverged, tied)
        missing = len(set(table["seed"])) - len(complete) - tied
        seeds, names = complete.index.to_numpy(), dialled(complete.columns, said.along)
        if len(names) == 2:
            return contrast(complete, names, PerSeed(pd.Series(dtype=float), missing, tied), sign, bar, words, diverged)
        monotone = spearman(np.tile(names, len(seeds)), complete.to_numpy().ravel(), np.repeat(seeds, len(names)))
        p, steps = page(complete.to_numpy()), np.array([middle(column) for column in complete.to_numpy().T])
    else:
        monotone = spearman(rows[said.along].to_numpy(float), rows["value"].to_numpy(float), rows["seed"].to_numpy())
        p, missing, steps, names = monotone.p, len(set(table["seed"])) - monotone.p.seeds - tied, np.zeros(0), np.zeros(0)
        seeds = np.unique(rows["seed"].to_numpy())
    slopes = np.array(monotone.slopes)
    notes = [f"mean rank correlation over seeds {monotone.rho:+.2f}"]
    back = [f"{names[k]:g} to {names[k + 1]:g}" for k in range(len(steps) - 1) if sign * steps[k + 1] < sign * steps[k]]
    if back:
        notes.append(f"not at every step: the median turns back from {', '.join(back)}")
    few = p.seeds < FEWEST
    if few:
        notes.append(f"a trend inside {p.seeds} seed{'s' * (p.seeds != 1)} is not replicated; it wants {FEWEST}")
        p = replace(p, attainable=1.0)
    points = tuple((int(seed), float(value)) for seed, value in zip(seeds, slopes, strict=False))
    return Measured(words, "slope", paired_t(slopes, 1 - bar.alpha), p, sign * monotone.rho > 0, False, missing, diverged,
                    detectable=math.inf if few else math.nan, points=points, notes=tuple(notes), tied=tied)


def contrast(complete: pd.DataFrame, names: np.ndarray, left: PerSeed, sign: int, bar: Bar, words: str,
             diverged: int) -> Measured:
    """Two levels are no trend: the upper less the lower, by seed, with the test, interval and power of a paired difference.

    ``left`` has the seeds that were left out before.
    """
    low, high = (complete.iloc[:, place].to_numpy(dtype=np.float64) for place in (0, 1))
    both = ties(high, low)
    d = PerSeed(pd.Series(differences(high, low)[~both], index=complete.index[~both]), left.incomplete,
                left.tied + int(both.sum()))
    found = directed(d, sign, 0.0, 0.0, bar, f"{words}, {names[1]:g} less {names[0]:g}", "difference", diverged)
    return replace(found, notes=("two levels are no trend: this is their paired contrast", *found.notes))


def dialled(levels: pd.Index, along: str) -> np.ndarray:
    """The levels as numbers."""
    try:
        return levels.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"along: a trend takes a factor whose levels are numbers; those of {along!r} are "
                        f"{', '.join(map(str, levels))[:80]}") from None


def by_levels(rows: pd.DataFrame, along: str, factors: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Means ``[seeds, levels]`` over the cells of the other factors that every level has; seeds that lack one are
    counted, not used."""
    shared = [factor for factor in factors if rows[factor].notna().any()]
    tidy = rows.assign(cell=list(map(str, rows[shared].itertuples(index=False, name=None))))
    wide = averaged(tidy, ["seed", "cell", along]).pivot(index="seed", columns=["cell", along], values="value")
    levels = sorted(tidy[along].unique())
    whole = [cell for cell in wide.columns.unique("cell") if len(wide[cell].columns) == len(levels)]
    if not whole or len(levels) < 2:
        return pd.DataFrame(), len(wide)
    complete = wide[whole].dropna()
    means = {level: complete.xs(level, axis=1, level=along).to_numpy(dtype=np.float64).mean(axis=1) for level in levels}
    return pd.DataFrame(means, index=complete.index), len(wide) - len(complete)
