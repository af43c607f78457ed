"""From the frame of runs to one number a seed: choose rows, take the IID baseline away, pair what is compared.

The frame has one row a run, with the columns

- ``run`` id; ``seed``, the unit of pairing and of replication; ``diverged`` (bool): the run counts as the worst of
  ranks and is never dropped;
- ``iid`` (bool): the run is an IID baseline; ``iid_baseline``: the id of the run's own IID baseline, missing or "" if it has
  none. A baseline is one row, however many runs share it;
- one column a factor, by its path in the YAML (``algorithm``, ``partition.severity``), missing where an arm has no such
  factor. What was tuned is no factor, and runs of the tuning stage are no rows;
- one column an outcome (``loss``, ``oscillation``, ...): NaN of a run that has not diverged means that it is not there
  yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ..core.errors import UserError, unknown_name_error
from .effects import compare_paired
from .intervals import both_diverged, mean_ci, median, paired_differences
from .significance import ALPHA, WorstEnd, assign_worst_rank, clopper_pearson, holm

Contrast = Literal["none", "iid_baseline"]
Scale = Literal["difference", "ratio"]
Selection = Mapping[str, Any]
REQUIRED_COLUMNS = ("run", "seed", "iid", "diverged")
HIGHER_IS_BETTER = (
    "syntax.",
    "text.bleu",
    "text.rouge",
    "text.distinct",
    "text.nucleus.bleu",
    "text.nucleus.rouge",
    "text.nucleus.distinct",
    "fair.jain",
    "cluster.",
    "hidden.cosine",
    "hidden.cka",
    "update.cosine",
    "update.consensus",
    "update.pairwise",
    "product.cosine",
    "product.consensus",
    "product.pairwise",
)


class PerSeedValues(NamedTuple):
    """One number a seed. ``incomplete``: seeds that lack a run; ``tied``: seeds in which both sides diverged, which are no
    zeros and stand in ``values`` no more than the incomplete ones."""

    values: pd.Series
    incomplete: int = 0
    tied: int = 0


def default_worst_end(metric: str) -> WorstEnd:
    """The end at which a diverged run counts, if nobody says it: low for accuracies, agreements and text scores, else high."""
    return "low" if metric.startswith(HIGHER_IS_BETTER) else "high"


def require_columns(runs: pd.DataFrame, columns: Sequence[str], kind: str = "column of the runs") -> None:
    """Refuse a name that the frame has not."""
    for column in columns:
        if column not in runs.columns:
            raise unknown_name_error(kind, column, [str(name) for name in runs.columns])


def select_runs(runs: pd.DataFrame, *selections: Selection) -> pd.DataFrame:
    """The rows at the levels ``{factor: level or [levels]}``; IID twins only where ``iid`` is said."""
    require_columns(runs, REQUIRED_COLUMNS)
    keep = np.ones(len(runs), dtype=bool)
    if not any("iid" in selection for selection in selections):
        keep &= ~runs["iid"].to_numpy(dtype=bool)
    for selection in selections:
        require_columns(runs, list(selection), "factor")
        for factor, levels in selection.items():
            among = list(levels) if isinstance(levels, (list, tuple)) else [levels]
            keep &= runs[factor].isin(among).to_numpy(dtype=bool)
    return runs[keep]


def outcome_values(
    runs: pd.DataFrame,
    metric: str,
    where: Selection | None = None,
    contrast: Contrast = "none",
    worst_end: WorstEnd | None = None,
    scale: Scale = "difference",
    include_baselines: bool = False,
) -> pd.DataFrame:
    """The chosen rows (all of them with ``include_baselines``) with a column ``value``: the outcome or, against the
    ``iid_baseline``, what it is above its own IID baseline's; and a column ``tied``: the run and its baseline diverged both,
    and ``value`` is NaN.

    Diverged runs are infinite at the ``worst_end`` (``default_worst_end`` of the metric by default). In ``scale: ratio``
    values are logarithms, so that differences are log-ratios.
    """
    require_columns(runs, [metric], "outcome")
    outcome = assign_worst_rank(
        runs[metric].to_numpy(dtype=np.float64), runs["diverged"].to_numpy(dtype=bool), worst_end or default_worst_end(metric)
    )
    tied = np.zeros(len(runs), dtype=bool)
    if scale == "ratio":
        if (outcome <= 0).any():
            raise UserError(f"scale: ratio of {metric!r} wants numbers above 0; the least of the runs is {np.nanmin(outcome):g}")
        outcome = np.log(outcome)
    if contrast == "iid_baseline":
        require_columns(runs, ["iid_baseline"])
        known = dict(zip(runs["run"], outcome, strict=True))
        base = np.array([known.get(name, np.nan) for name in runs["iid_baseline"]], dtype=np.float64)
        outcome, tied = paired_differences(outcome, base), both_diverged(outcome, base)
    found = runs.assign(value=outcome, tied=tied)
    return found if include_baselines else select_runs(found, where or {})


def shared_factors(group: pd.DataFrame, reference: pd.DataFrame, factors: Sequence[str], named: Sequence[str]) -> list[str]:
    """The factors by which two sides are paired: those that neither names and both have."""
    return [
        factor
        for factor in factors
        if factor not in named and factor in group and group[factor].notna().any() and reference[factor].notna().any()
    ]


def values_per_seed(group: pd.DataFrame, reference: pd.DataFrame | None, factors: Sequence[str]) -> PerSeedValues:
    """One number a seed, of ``group`` less ``reference`` (or of ``group`` alone), how many seeds are not complete, and in how
    many both sides diverged.

    Inside a seed rows are paired by ``factors``, and the pairs averaged. A seed counts when all pairs that any seed has
    are there: else seeds would be means over different cells.
    """
    key = ["seed", *factors]
    cells = average_cells(group, key)
    if reference is not None:
        cells = cells.merge(average_cells(reference, key), on=key, how="outer", suffixes=("", "_than"))
        left, right = cells["value"].to_numpy(dtype=np.float64), cells["value_than"].to_numpy(dtype=np.float64)
        tied = [cells[name].eq(True).to_numpy() for name in ("tied", "tied_than")]
        cells = cells.assign(value=paired_differences(left, right), tied=both_diverged(left, right) | tied[0] | tied[1])
        there = cells[cells["value"].notna() | cells["tied"]]
        if factors:  # a cell that only one side has in every seed is no cell of this comparison
            cells = cells.merge(there[factors].drop_duplicates(), on=list(factors), how="inner")
        elif not set(group["seed"]) & set(reference["seed"]):
            cells = cells.iloc[:0]
    seeds = set(group["seed"]) | (set(reference["seed"]) if reference is not None else set())
    cells = cells[cells["value"].notna() | cells["tied"]]
    if not len(cells):
        return PerSeedValues(pd.Series(dtype=float), len(seeds))
    count = cells.groupby("seed")["value"].size()
    complete = average_cells(cells, ["seed"]).set_index("seed")[(count == count.max()).to_numpy()]
    told = complete["tied"].to_numpy(dtype=bool)
    return PerSeedValues(complete.loc[~told, "value"].astype(float), len(seeds) - len(complete), int(told.sum()))


def average_cells(rows: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    """The mean ``value`` of each cell of ``key``, and whether it is ``tied``: NaN, because runs of both sides diverged.

    A value that is missing makes the mean NaN. A cell in which one side alone diverged makes it infinite, whatever else is there.
    """
    value, tied = rows["value"].to_numpy(dtype=np.float64), rows["tied"].to_numpy(dtype=bool)
    parts = rows[list(key)].assign(
        finite=np.where(np.isfinite(value), value, 0.0),
        up=np.isposinf(value),
        down=np.isneginf(value),
        missing=np.isnan(value) & ~tied,
        tied=tied,
        count=1,
    )
    cells = parts.groupby(list(key), dropna=False, observed=True).sum().reset_index()
    up, down, missing = (cells[name].to_numpy() > 0 for name in ("up", "down", "missing"))
    neither = ~missing & ((up & down) | ((cells["tied"].to_numpy() > 0) & ~up & ~down))
    mean = np.where(up, np.inf, np.where(down, -np.inf, cells["finite"].to_numpy() / cells["count"].to_numpy()))
    return cells[list(key)].assign(value=np.where(missing | neither, np.nan, mean), tied=neither)


def format_selection(selection: Selection) -> str:
    """A selection in words: ``algorithm FedProx, partition.severity 0.5 or 1``."""
    return ", ".join(
        f"{factor} {' or '.join(map(str, level)) if isinstance(level, (list, tuple)) else level}" for factor, level in selection.items()
    )


# Tables of a study's arms: each with its interval over seeds, against a reference, and how often it failed.


def summarize_conditions(
    runs: pd.DataFrame,
    metric: str,
    by: Sequence[str],
    contrast: Contrast = "none",
    where: Selection | None = None,
    confidence_level: float = 0.95,
    worst_end: WorstEnd | None = None,
) -> pd.DataFrame:
    """One row an arm: mean and t-interval over seeds (NaN with a diverged run: it has a median), seeds, diverged runs."""
    require_columns(runs, by)
    rows = []
    for name, arm in outcome_values(runs, metric, where, contrast, worst_end).groupby(list(by), dropna=False, observed=True):
        numbers = average_cells(arm, ["seed"])["value"].dropna().to_numpy(dtype=np.float64)
        found = mean_ci(numbers, confidence_level)
        rows.append(
            [
                *name,
                found.estimate,
                found.low,
                found.high,
                median(numbers) if len(numbers) else math.nan,
                len(numbers),
                int(arm["diverged"].sum()),
            ]
        )
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "median", "seeds", "diverged"])


def compare_to_reference(
    runs: pd.DataFrame,
    metric: str,
    factor: str,
    reference: object,
    factors: Sequence[str],
    by: Sequence[str] = (),
    contrast: Contrast = "none",
    where: Selection | None = None,
    worst_end: WorstEnd | None = None,
    alpha: float = ALPHA,
) -> pd.DataFrame:
    """Every other level of ``factor`` less ``reference``, in each cell of ``by``, paired by seed; Holm over all rows of
    the table.

    With ``contrast: iid_baseline`` it is the difference-in-differences against the IID twins. ``tied`` counts the seeds in
    which both sides diverged: they are no zeros, and are left out.
    """
    require_columns(runs, [factor, *by])
    chosen = outcome_values(runs, metric, where, contrast, worst_end)
    found = []
    for name, cell in chosen.groupby(list(by), dropna=False, observed=True) if by else [((), chosen)]:
        base = cell[cell[factor].isin([reference])]
        for level, arm in cell.groupby(factor, observed=True):
            if level != reference:
                pairing = shared_factors(arm, base, factors, [factor, *by])
                found.append(([*name, level], values_per_seed(arm, base, pairing), int(arm["diverged"].sum() + base["diverged"].sum())))
    rows = []
    for head, d, diverged in found:
        c = compare_paired(d.values.to_numpy(dtype=np.float64), 1 - alpha, alpha, family_size=len(found))
        i = c.interval
        rows.append(
            [
                *head,
                i.estimate,
                i.low,
                i.high,
                c.g,
                c.rank_biserial,
                c.p.value if c.seeds else math.nan,
                c.p.min_attainable_p,
                c.seeds,
                d.incomplete,
                d.tied,
                diverged,
                c.detectable,
            ]
        )
    frame = pd.DataFrame(
        rows,
        columns=[
            *by,
            factor,
            "effect",
            "low",
            "high",
            "g",
            "rank_biserial",
            "p",
            "attainable",
            "seeds",
            "incomplete",
            "tied",
            "diverged",
            "detectable",
        ],
    )
    frame.insert(list(frame.columns).index("attainable"), "holm", holm(frame["p"].to_numpy(dtype=np.float64)))
    return frame


def failure_rates(
    runs: pd.DataFrame, by: Sequence[str], event: str = "diverged", where: Selection | None = None, confidence_level: float = 0.95
) -> pd.DataFrame:
    """How many runs of each arm an event struck, with the exact interval; IID twins are rows of their own where ``iid``
    is in ``by``."""
    require_columns(runs, [*by, event])
    chosen = select_runs(runs, where or {}, {"iid": [True, False]}) if "iid" in by else select_runs(runs, where or {})
    rows = []
    for name, arm in chosen.groupby(list(by), dropna=False, observed=True):
        struck = arm[event].dropna().astype(bool)
        found = clopper_pearson(int(struck.sum()), len(struck), confidence_level)
        rows.append([*name, int(struck.sum()), len(struck), found.estimate, found.low, found.high])
    return pd.DataFrame(rows, columns=[*by, "failed", "runs", "rate", "low", "high"])
