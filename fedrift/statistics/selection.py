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
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..errors import UserError, unknown
from .paired import differences
from .ranks import Worst, worst_rank

Contrast = Literal["none", "twin"]
Scale = Literal["difference", "ratio"]
Selection = Mapping[str, Any]
ALWAYS = ("run", "seed", "iid", "diverged")


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


def values(runs: pd.DataFrame, metric: str, where: Selection | None = None, contrast: Contrast = "none", worst: Worst = "high",
           scale: Scale = "difference", twins: bool = False) -> pd.DataFrame:
    """The chosen rows (all of them with ``twins``) with a column ``value``: the outcome or, against the ``twin``, what
    it is above its own IID twin's.

    Diverged runs are infinite at the ``worst`` end. In ``scale: ratio`` values are logarithms, so that differences are
    log-ratios.
    """
    need(runs, [metric], "outcome")
    outcome = worst_rank(runs[metric].to_numpy(dtype=np.float64), runs["diverged"].to_numpy(dtype=bool), worst)
    if scale == "ratio":
        if (outcome <= 0).any():
            raise UserError(f"scale: ratio of {metric!r} wants numbers above 0; the least of the runs is {np.nanmin(outcome):g}")
        outcome = np.log(outcome)
    if contrast == "twin":
        need(runs, ["twin"])
        known = dict(zip(runs["run"], outcome, strict=True))
        outcome = differences(outcome, np.array([known.get(name, np.nan) for name in runs["twin"]], dtype=np.float64))
    return runs.assign(value=outcome) if twins else select(runs.assign(value=outcome), where or {})


def shared_factors(of: pd.DataFrame, than: pd.DataFrame, factors: Sequence[str], named: Sequence[str]) -> list[str]:
    """The factors by which two sides are paired: those that neither names and both have."""
    return [factor for factor in factors
            if factor not in named and factor in of and of[factor].notna().any() and than[factor].notna().any()]


def per_seed(of: pd.DataFrame, than: pd.DataFrame | None, factors: Sequence[str]) -> tuple[pd.Series, int]:
    """One number a seed, of ``of`` less ``than`` (or of ``of`` alone), and how many seeds are not complete.

    Inside a seed rows are paired by ``factors``, and the pairs averaged. A seed counts when all pairs that any seed has
    are there: else seeds would be means over different cells.
    """
    key = ["seed", *factors]
    left = of.groupby(key, dropna=False)["value"].agg(average)
    if than is None:
        cells = left.reset_index()
        cells["d"] = cells["value"]
    else:
        right = than.groupby(key, dropna=False)["value"].agg(average)
        cells = left.reset_index().merge(right.reset_index(), on=key, how="outer", suffixes=("", "_than"))
        both = set(of["seed"]) & set(than["seed"])
        there = cells.dropna(subset=["value", "value_than"])
        cells["d"] = differences(cells["value"].to_numpy(), cells["value_than"].to_numpy())
        if factors:  # a cell that only one side has in every seed is no cell of this comparison
            cells = cells.merge(there[factors].drop_duplicates(), on=list(factors), how="inner")
        elif not both:
            cells = cells.iloc[:0]
    seeds = set(of["seed"]) | (set(than["seed"]) if than is not None else set())
    found = cells.dropna(subset=["d"]).groupby("seed")["d"].agg(["size", average])
    complete = found[found["size"] == found["size"].max()] if len(found) else found
    return complete["average"].astype(float) if len(found) else pd.Series(dtype=float), len(seeds) - len(complete)


def average(values: pd.Series) -> float:
    """The mean; NaN if one is missing, 0 where one side's worst meets the other's."""
    numbers = values.to_numpy(dtype=np.float64)
    if np.isposinf(numbers).any() and np.isneginf(numbers).any():
        return 0.0
    return float(numbers.mean())


def told(selection: Selection) -> str:
    """A selection in words: ``algorithm FedProx, partition.severity 0.5 or 1``."""
    return ", ".join(f"{factor} {' or '.join(map(str, level)) if isinstance(level, (list, tuple)) else level}"
                     for factor, level in selection.items())
