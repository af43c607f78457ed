"""From the frame of runs to one number a seed: choose rows, take the IID twin away, pair what is compared.

The frame has one row a run, with the columns

- ``run`` id; ``seed``, the unit of pairing and of replication; ``diverged`` (bool): the run counts as the worst of
  ranks and is never dropped;
- ``iid`` (bool): the run is an IID twin; ``twin``: the id of the run's own IID twin, missing or "" if it has none. A
  twin is one row, however many runs share it;
- one column a factor, by its path in the YAML (``algorithm``, ``partition.severity``), missing where an arm has no such
  factor. What was tuned is no factor, and runs of the tuning stage are no rows;
- one column an outcome (``loss``, ``oscillation``, ...): NaN of a run that has not diverged means that it is not there
  yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ..errors import UserError, unknown
from .paired import differences, ties
from .ranks import Worst, worst_rank

Contrast = Literal["none", "twin"]
Scale = Literal["difference", "ratio"]
Selection = Mapping[str, Any]
ALWAYS = ("run", "seed", "iid", "diverged")
HIGH_IS_GOOD = ("syntax.", "text.bleu", "text.rouge", "text.distinct", "text.nucleus.bleu", "text.nucleus.rouge",
                "text.nucleus.distinct", "fair.jain", "cluster.", "hidden.cosine", "hidden.cka", "update.cosine",
                "update.consensus", "update.pairwise", "product.cosine", "product.consensus", "product.pairwise")


class PerSeed(NamedTuple):
    """One number a seed. ``incomplete``: seeds that lack a run; ``tied``: seeds in which both sides diverged, which are no
    zeros and stand in ``numbers`` no more than the incomplete ones."""

    numbers: pd.Series
    incomplete: int = 0
    tied: int = 0


def bad_end(metric: str) -> Worst:
    """The end at which a diverged run counts, if nobody says it: low for accuracies, agreements and text scores, else high."""
    return "low" if metric.startswith(HIGH_IS_GOOD) else "high"


def need(runs: pd.DataFrame, columns: Sequence[str], kind: str = "column of the runs") -> None:
    """Refuse a name that the frame has not."""
    for column in columns:
        if column not in runs.columns:
            raise unknown(kind, column, [str(name) for name in runs.columns])


def select(runs: pd.DataFrame, *selections: Selection) -> pd.DataFrame:
    """The rows at the levels ``{factor: level or [levels]}``; IID twins only where ``iid`` is said."""
    need(runs, ALWAYS)
    keep = np.ones(len(runs), dtype=bool)
    if not any("iid" in selection for selection in selections):
        keep &= ~runs["iid"].to_numpy(dtype=bool)
    for selection in selections:
        need(runs, list(selection), "factor")
        for factor, levels in selection.items():
            among = list(levels) if isinstance(levels, (list, tuple)) else [levels]
            keep &= runs[factor].isin(among).to_numpy(dtype=bool)
    return runs[keep]


def values(runs: pd.DataFrame, metric: str, where: Selection | None = None, contrast: Contrast = "none",
           worst: Worst | None = None, scale: Scale = "difference", twins: bool = False) -> pd.DataFrame:
    """The chosen rows (all of them with ``twins``) with a column ``value``: the outcome or, against the ``twin``, what
    it is above its own IID twin's; and a column ``tied``: the run and its twin diverged both, and ``value`` is NaN.

    Diverged runs are infinite at the ``worst`` end (``bad_end`` of the metric if nothing is said). In ``scale: ratio``
    values are logarithms, so that differences are log-ratios.
    """
    need(runs, [metric], "outcome")
    outcome = worst_rank(runs[metric].to_numpy(dtype=np.float64), runs["diverged"].to_numpy(dtype=bool), worst or bad_end(metric))
    tied = np.zeros(len(runs), dtype=bool)
    if scale == "ratio":
        if (outcome <= 0).any():
            raise UserError(f"scale: ratio of {metric!r} wants numbers above 0; the least of the runs is {np.nanmin(outcome):g}")
        outcome = np.log(outcome)
    if contrast == "twin":
        need(runs, ["twin"])
        known = dict(zip(runs["run"], outcome, strict=True))
        base = np.array([known.get(name, np.nan) for name in runs["twin"]], dtype=np.float64)
        outcome, tied = differences(outcome, base), ties(outcome, base)
    found = runs.assign(value=outcome, tied=tied)
    return found if twins else select(found, where or {})


def shared_factors(of: pd.DataFrame, than: pd.DataFrame, factors: Sequence[str], named: Sequence[str]) -> list[str]:
    """The factors by which two sides are paired: those that neither names and both have."""
    return [factor for factor in factors
            if factor not in named and factor in of and of[factor].notna().any() and than[factor].notna().any()]


def per_seed(of: pd.DataFrame, than: pd.DataFrame | None, factors: Sequence[str]) -> PerSeed:
    """One number a seed, of ``of`` less ``than`` (or of ``of`` alone), how many seeds are not complete, and in how many both
    sides diverged.

    Inside a seed rows are paired by ``factors``, and the pairs averaged. A seed counts when all pairs that any seed has
    are there: else seeds would be means over different cells.
    """
    key = ["seed", *factors]
    cells = averaged(of, key)
    if than is not None:
        cells = cells.merge(averaged(than, key), on=key, how="outer", suffixes=("", "_than"))
        left, right = cells["value"].to_numpy(dtype=np.float64), cells["value_than"].to_numpy(dtype=np.float64)
        tied = [cells[name].eq(True).to_numpy() for name in ("tied", "tied_than")]
        cells = cells.assign(value=differences(left, right), tied=ties(left, right) | tied[0] | tied[1])
        there = cells[cells["value"].notna() | cells["tied"]]
        if factors:  # a cell that only one side has in every seed is no cell of this comparison
            cells = cells.merge(there[factors].drop_duplicates(), on=list(factors), how="inner")
        elif not set(of["seed"]) & set(than["seed"]):
            cells = cells.iloc[:0]
    seeds = set(of["seed"]) | (set(than["seed"]) if than is not None else set())
    cells = cells[cells["value"].notna() | cells["tied"]]
    if not len(cells):
        return PerSeed(pd.Series(dtype=float), len(seeds))
    count = cells.groupby("seed")["value"].size()
    complete = averaged(cells, ["seed"]).set_index("seed")[(count == count.max()).to_numpy()]
    told = complete["tied"].to_numpy(dtype=bool)
    return PerSeed(complete.loc[~told, "value"].astype(float), len(seeds) - len(complete), int(told.sum()))


def averaged(rows: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    """The mean ``value`` of each cell of ``key``, and whether it is ``tied``: NaN, because runs of both sides diverged.

    A value that is missing makes the mean NaN. A cell in which one side alone diverged makes it infinite, whatever else is there.
    """
    value, tied = rows["value"].to_numpy(dtype=np.float64), rows["tied"].to_numpy(dtype=bool)
    parts = rows[list(key)].assign(finite=np.where(np.isfinite(value), value, 0.0), up=np.isposinf(value),
                                   down=np.isneginf(value), missing=np.isnan(value) & ~tied, tied=tied, count=1)
    cells = parts.groupby(list(key), dropna=False, observed=True).sum().reset_index()
    up, down, missing = (cells[name].to_numpy() > 0 for name in ("up", "down", "missing"))
    neither = ~missing & ((up & down) | ((cells["tied"].to_numpy() > 0) & ~up & ~down))
    mean = np.where(up, np.inf, np.where(down, -np.inf, cells["finite"].to_numpy() / cells["count"].to_numpy()))
    return cells[list(key)].assign(value=np.where(missing | neither, np.nan, mean), tied=neither)


def told(selection: Selection) -> str:
    """A selection in words: ``algorithm FedProx, partition.severity 0.5 or 1``."""
    return ", ".join(f"{factor} {' or '.join(map(str, level)) if isinstance(level, (list, tuple)) else level}"
                     for factor, level in selection.items())
