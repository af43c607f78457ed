"""Tables of a study's arms: each with its interval over seeds, against a reference, and how often it failed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from .comparison import compare
from .evidence import ALPHA
from .families import holm
from .paired import middle, paired_t
from .ranks import Worst
from .rates import clopper_pearson
from .selection import Contrast, Selection, averaged, need, per_seed, select, shared_factors, values


def summary(runs: pd.DataFrame, metric: str, by: Sequence[str], contrast: Contrast = "none", where: Selection | None = None,
            level: float = 0.95, worst: Worst | None = None) -> pd.DataFrame:
    """One row an arm: mean and t-interval over seeds (NaN with a diverged run: it has a median), seeds, diverged runs."""
    need(runs, by)
    rows = []
    for name, arm in values(runs, metric, where, contrast, worst).groupby(list(by), dropna=False, observed=True):
        numbers = averaged(arm, ["seed"])["value"].dropna().to_numpy(dtype=np.float64)
        found = paired_t(numbers, level)
        rows.append([*name, found.estimate, found.low, found.high, middle(numbers) if len(numbers) else math.nan, len(numbers),
                     int(arm["diverged"].sum())])
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "median", "seeds", "diverged"])


def against(runs: pd.DataFrame, metric: str, factor: str, reference: object, factors: Sequence[str],
            by: Sequence[str] = (), contrast: Contrast = "none", where: Selection | None = None, worst: Worst | None = None,
            alpha: float = ALPHA) -> pd.DataFrame:
    """Every other level of ``factor`` less ``reference``, in each cell of ``by``, paired by seed; Holm over all rows of
    the table.

    With ``contrast: twin`` it is the difference-in-differences against the IID twins. ``tied`` counts the seeds in which both
    sides diverged: they are no zeros, and are left out.
    """
    need(runs, [factor, *by])
    chosen = values(runs, metric, where, contrast, worst)
    found = []
    for name, cell in chosen.groupby(list(by), dropna=False, observed=True) if by else [((), chosen)]:
        base = cell[cell[factor].isin([reference])]
        for level, arm in cell.groupby(factor, observed=True):
            if level != reference:
                pairing = shared_factors(arm, base, factors, [factor, *by])
                found.append(([*name, level], per_seed(arm, base, pairing), int(arm["diverged"].sum() + base["diverged"].sum())))
    rows = []
    for head, d, diverged in found:
        c = compare(d.numbers.to_numpy(dtype=np.float64), 1 - alpha, alpha, family=len(found))
        i = c.interval
        rows.append([*head, i.estimate, i.low, i.high, c.g, c.rank_biserial, c.p.value if c.seeds else math.nan, c.p.attainable,
                     c.seeds, d.incomplete, d.tied, diverged, c.detectable])
    frame = pd.DataFrame(rows, columns=[*by, factor, "effect", "low", "high", "g", "rank_biserial", "p", "attainable", "seeds",
                                        "incomplete", "tied", "diverged", "detectable"])
    frame.insert(list(frame.columns).index("attainable"), "holm", holm(frame["p"].to_numpy(dtype=np.float64)))
    return frame


def failure_rates(runs: pd.DataFrame, by: Sequence[str], event: str = "diverged", where: Selection | None = None,
                  level: float = 0.95) -> pd.DataFrame:
    """How many runs of each arm an event struck, with the exact interval; IID twins are rows of their own where ``iid``
    is in ``by``."""
    need(runs, [*by, event])
    chosen = select(runs, where or {}, {"iid": [True, False]}) if "iid" in by else select(runs, where or {})
    rows = []
    for name, arm in chosen.groupby(list(by), dropna=False, observed=True):
        struck = arm[event].dropna().astype(bool)
        found = clopper_pearson(int(struck.sum()), len(struck), level)
        rows.append([*name, int(struck.sum()), len(struck), found.estimate, found.low, found.high])
    return pd.DataFrame(rows, columns=[*by, "failed", "runs", "rate", "low", "high"])
