"""How a trend is weighed: by the levels of a factor, or along a dial that every run has its own value of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .measured import Bar, Measured, detectable_of, nothing
from .paired import middle, paired_t
from .selection import average, select, told, values
from .trend import page, spearman
from .weigh import metric

if TYPE_CHECKING:
    from .hypotheses import Trend

FEWEST = 3  # seeds: fewer do not make a trend that holds beyond them, whatever its p


def trend(said: Trend, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
    """Levels of a factor by Page's L, a measured dial by Spearman's rho."""
    table = select(values(runs, said.metric, None, said.contrast, said.worst, twins=True), said.where)
    words = f"{metric(said)} along {said.along}" + (f", {told(said.where)}" if said.where else "")
    diverged = int(table["diverged"].sum())
    rows = table.dropna(subset=["value", said.along])
    if not len(rows):
        return nothing(words, "slope")
    if said.along in factors:
        complete, incomplete = by_levels(rows, said.along, [f for f in factors if f not in {said.along, *said.where}])
        if not len(complete):
            return nothing(words, "slope", incomplete, "no seed has a run at each of two or more levels")
        missing = len(set(table["seed"])) - len(complete)
        seeds, names = complete.index.to_numpy(), complete.columns.to_numpy(float)
        monotone = spearman(np.tile(names, len(seeds)), complete.to_numpy().ravel(), np.repeat(seeds, len(names)))
        p, steps = page(complete.to_numpy()), np.array([middle(column) for column in complete.to_numpy().T])
    else:
        monotone = spearman(rows[said.along].to_numpy(float), rows["value"].to_numpy(float), rows["seed"].to_numpy())
        p, missing, steps, names = monotone.p, len(set(table["seed"])) - monotone.p.seeds, np.zeros(0), np.zeros(0)
        seeds = np.unique(rows["seed"].to_numpy())
    sign = 1 if said.direction == "up" else -1
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
                    detectable=detectable_of(slopes, bar) if not few else math.inf, points=points, notes=tuple(notes))



def by_levels(rows: pd.DataFrame, along: str, factors: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Means ``[seeds, levels]`` over the cells of the other factors that every level has; seeds that lack one are
    counted, not used."""
    shared = [factor for factor in factors if rows[factor].notna().any()]
    tidy = rows.assign(cell=list(map(str, rows[shared].itertuples(index=False, name=None))))
    wide = tidy.pivot_table(index="seed", columns=["cell", along], values="value", aggfunc=average, observed=True)
    levels = sorted(tidy[along].unique())
    whole = [cell for cell in wide.columns.unique("cell") if len(wide[cell].columns) == len(levels)]
    if not whole or len(levels) < 2:
        return pd.DataFrame(), len(wide)
    complete = wide[whole].dropna()
    means = {level: complete.xs(level, axis=1, level=along).apply(average, axis=1) for level in levels}
    return pd.DataFrame(means, index=complete.index), len(wide) - len(complete)
