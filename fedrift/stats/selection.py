"""From the table of runs to one number per seed: select rows, subtract the IID baseline, and pair the runs that are compared.

The table has one row per run, with these columns:

- ``run``: the run id; ``seed``: the unit of pairing and of replication; ``diverged`` (bool): the run receives the worst rank and is
  never dropped.
- ``iid`` (bool): the run is an IID baseline; ``iid_baseline``: the id of the run's own IID baseline, missing or "" if it has none. A
  baseline is one row, however many runs share it.
- One column per factor, named by its path in the YAML (``algorithm``, ``partition.severity``). It is missing where a condition does not
  have that factor. Tuned settings are not factors, and the trials of the tuning stage are not rows.
- One column per outcome (``loss``, ``oscillation``, ...). NaN in a run that has not diverged means that the outcome is not available yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ..core.errors import UserError, unknown_name_error
from ..core.lazy_imports import pd
from .effects import compare_paired, mask_both_diverged, paired_differences
from .significance import WorstEnd, assign_worst_rank, holm

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
    "update.turn",
    "update.efficiency",
    "product.turn",
    "product.efficiency",
    "classification.",
    "gain",
    "baseline.gain",
    "hidden.rank",
    "adapters.rank",
    "adapters.angle",
)
# Outcomes that are not, or not only, about the run itself: a diverged run has an intact start, and an intact baseline.
OF_START, OF_BASELINE = ("start",), ("baseline.gain", "baseline.absence")
OF_RUN_AND_BASELINE = ("gap", "gap.worst", "gap.relative")


class PerSeedValues(NamedTuple):
    """One number per seed.

    Attributes:
        values: The numbers, indexed by seed.
        incomplete: The number of seeds that lack a run; ``values`` does not contain them.
        both_diverged: The number of seeds in which both sides diverged. Their difference is undefined, so ``values`` does not contain them.
        notes: A sentence on the conditions that no seed has.
    """

    values: pd.Series
    incomplete: int = 0
    both_diverged: int = 0
    notes: tuple[str, ...] = ()


def default_worst_end(metric: str) -> WorstEnd:
    """Return the end at which a diverged run ranks: "low" for accuracies, similarities and text scores, else "high"."""
    return "low" if metric.startswith(HIGHER_IS_BETTER) else "high"


def needs_baseline(metric: str, contrast: Contrast = "none") -> bool:
    """Return whether an outcome depends on the IID baseline of the run, so that it is missing where there is none."""
    return contrast == "iid_baseline" or metric in (*OF_BASELINE, *OF_RUN_AND_BASELINE)


def require_columns(runs: pd.DataFrame, columns: Sequence[str], kind: str = "column of the runs") -> None:
    """Raise UserError if the table lacks one of the columns."""
    for column in columns:
        if column not in runs.columns:
            raise unknown_name_error(kind, column, [str(name) for name in runs.columns])


def select_runs(runs: pd.DataFrame, *selections: Selection) -> pd.DataFrame:
    """Return the rows that match all selections.

    Args:
        runs: The table of runs.
        selections: Mappings ``{factor: level}`` or ``{factor: [levels]}``. IID baselines are excluded unless a selection names ``iid``.
            A baseline belongs to every stage that has a run with this baseline, although the table names only one of them.

    Raises:
        UserError: The table lacks a required column or a factor.

    Example:
        >>> select_runs(runs, {"algorithm": ["FedAvg", "FedProx"], "partition.severity": 1.0})
    """
    require_columns(runs, REQUIRED_COLUMNS)
    keep = np.ones(len(runs), dtype=bool)
    if not any("iid" in selection for selection in selections):
        keep &= ~runs["iid"].to_numpy(dtype=bool)
    for selection in selections:
        require_columns(runs, list(selection), "factor")
        for factor, levels in selection.items():
            accepted = list(levels) if isinstance(levels, (list, tuple)) else [levels]
            matches = runs[factor].isin(accepted)
            if factor == "stage" and "iid_baseline" in runs:
                matches |= runs["iid"].astype(bool) & runs["run"].isin(set(runs.loc[matches, "iid_baseline"]))
            keep &= matches.to_numpy(dtype=bool)
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
    """Return the selected rows with two more columns, ``value`` and ``both_diverged``.

    Args:
        runs: The table of runs.
        metric: The outcome.
        where: The selection of rows.
        contrast: "none" for the outcome itself, or "iid_baseline" for the outcome minus that of the run's own IID baseline.
        worst_end: The end at which a diverged run becomes infinite. The default is ``default_worst_end`` of the metric.
        scale: "difference", or "ratio" to take logarithms, so that differences are log-ratios. The logarithm of 0 or less is NaN.
        include_baselines: Whether to return all rows, IID baselines included, and ignore ``where``.

    Returns:
        The rows. ``value`` is the outcome or the contrast. ``both_diverged`` is True if both the run and its baseline diverged; ``value``
        is then NaN. A gap is at the good end if only the baseline diverged.

    Raises:
        UserError: A column is missing, or ``scale`` is "ratio" and an outcome of the selected rows is not above 0.
    """
    require_columns(runs, [metric], "outcome")
    worst_end = worst_end or default_worst_end(metric)
    best_end: WorstEnd = "low" if worst_end == "high" else "high"
    none = np.zeros(len(runs), dtype=bool)
    run_diverged = none if metric in (*OF_START, *OF_BASELINE) else runs["diverged"].to_numpy(dtype=bool)
    baseline_diverged = find_diverged_baselines(runs) if needs_baseline(metric) else none
    both_diverged = run_diverged & baseline_diverged
    outcome = runs[metric].to_numpy(dtype=np.float64)
    outcome = assign_worst_rank(outcome, baseline_diverged, worst_end if metric in OF_BASELINE else best_end)
    outcome = np.where(both_diverged, np.nan, assign_worst_rank(outcome, run_diverged, worst_end))
    if scale == "ratio":
        # a diverged run of an accuracy ranks as minus infinity, which is its logarithm too
        outcome = np.where(np.isneginf(outcome), outcome, np.log(np.where(outcome > 0, outcome, np.nan)))
    if contrast == "iid_baseline":
        require_columns(runs, ["iid_baseline"])
        outcome_by_run = dict(zip(runs["run"], outcome, strict=True))
        baseline = np.array([outcome_by_run.get(name, np.nan) for name in runs["iid_baseline"]], dtype=np.float64)
        outcome, both_diverged = paired_differences(outcome, baseline), both_diverged | mask_both_diverged(outcome, baseline)
    table = runs.assign(value=outcome, both_diverged=both_diverged)
    if include_baselines:
        return table
    selected = select_runs(table, where or {})
    if scale == "ratio":
        require_positive(runs, metric, contrast, selected)
    return selected


def find_diverged_baselines(runs: pd.DataFrame) -> np.ndarray:
    """Return whether the IID baseline of each run diverged, [runs] bool; False if the run has none."""
    if "iid_baseline" not in runs:
        return np.zeros(len(runs), dtype=bool)
    return runs["iid_baseline"].isin(set(runs.loc[runs["diverged"].to_numpy(dtype=bool), "run"])).to_numpy(dtype=bool)


def require_positive(runs: pd.DataFrame, metric: str, contrast: Contrast, *sides: pd.DataFrame) -> None:
    """Raise UserError if an outcome of the compared runs is not above 0, so that it has no logarithm; diverged runs have a rank instead."""
    names = set().union(*(side["run"] for side in sides), *(side["iid_baseline"] for side in sides if contrast == "iid_baseline"))
    values = runs.loc[runs["run"].isin(names) & ~runs["diverged"].to_numpy(dtype=bool), metric].to_numpy(dtype=np.float64)
    values = values[np.isfinite(values)]
    if (values <= 0).any():
        raise UserError(f"scale: ratio needs values of {metric!r} above 0, but the smallest is {values.min():g}; use scale: difference")


def shared_factors(group: pd.DataFrame, reference: pd.DataFrame, factors: Sequence[str], named: Sequence[str]) -> list[str]:
    """Return the factors by which two sides are paired: those that no selection names and that both sides have."""
    return [
        factor
        for factor in factors
        if factor not in named and factor in group and group[factor].notna().any() and reference[factor].notna().any()
    ]


def values_per_seed(group: pd.DataFrame, reference: pd.DataFrame | None, factors: Sequence[str]) -> PerSeedValues:
    """Return one number per seed: ``group`` minus ``reference``, or ``group`` alone.

    Within a seed, rows are paired by ``factors`` and the pairs are averaged. A seed counts only if it has every pair that any seed has.
    Otherwise seeds would be means over different cells. A pair that no seed has, although both sides have runs of it, is left out, which
    ``notes`` states.

    Args:
        group: The rows of one side, from ``outcome_values``.
        reference: The rows of the other side, or None.
        factors: The columns by which rows are paired.
    """
    key = ["seed", *factors]
    cells = average_cells(group, key)
    planned = group[list(factors)].drop_duplicates()
    if reference is not None:
        planned = planned.merge(reference[list(factors)].drop_duplicates(), how="inner") if factors else planned
        cells = cells.merge(average_cells(reference, key), on=key, how="outer", suffixes=("", "_reference"))
        left, right = cells["value"].to_numpy(dtype=np.float64), cells["value_reference"].to_numpy(dtype=np.float64)
        undefined = [cells[name].eq(True).to_numpy() for name in ("both_diverged", "both_diverged_reference")]
        cells = cells.assign(
            value=paired_differences(left, right), both_diverged=mask_both_diverged(left, right) | undefined[0] | undefined[1]
        )
        comparable = cells[cells["value"].notna() | cells["both_diverged"]]
        if factors:  # drop the cells that no seed has on both sides
            cells = cells.merge(comparable[factors].drop_duplicates(), on=list(factors), how="inner")
        elif not set(group["seed"]) & set(reference["seed"]):
            cells = cells.iloc[:0]
    seeds = set(group["seed"]) | (set(reference["seed"]) if reference is not None else set())
    cells = cells[cells["value"].notna() | cells["both_diverged"]]
    if not len(cells):
        return PerSeedValues(pd.Series(dtype=float), len(seeds))
    count = cells.groupby("seed")["value"].size()
    num_cells = len(cells[list(factors)].drop_duplicates()) if factors else 1
    complete = average_cells(cells, ["seed"]).set_index("seed")[(count == num_cells).to_numpy()]
    is_undefined = complete["both_diverged"].to_numpy(dtype=bool)
    return PerSeedValues(
        complete.loc[~is_undefined, "value"].astype(float),
        len(seeds) - len(complete),
        int(is_undefined.sum()),
        describe_left_out(len(planned) - num_cells, len(planned)) if factors else (),
    )


def keep_shared_cells(sides: Sequence[pd.DataFrame], factors: Sequence[str]) -> tuple[list[pd.DataFrame], tuple[str, ...]]:
    """Keep of each side the rows in cells of ``factors`` in which every side has a value in some seed.

    Args:
        sides: The rows of each side, from ``outcome_values``.
        factors: The columns that form a cell.

    Returns:
        The sides, and a note on the cells that have rows on every side, but not a value.
    """
    if not factors:
        return list(sides), ()
    planned = known = sides[0][list(factors)].drop_duplicates()
    for side in sides:
        has_value = side["value"].notna() | side["both_diverged"]
        planned = planned.merge(side[list(factors)].drop_duplicates())
        known = known.merge(side.loc[has_value, list(factors)].drop_duplicates())
    return [side.merge(known) for side in sides], describe_left_out(len(planned) - len(known), len(planned))


def describe_left_out(count: int, total: int, kind: str = "condition") -> tuple[str, ...]:
    """Return the note that some conditions have no value in any seed, or nothing if all have one."""
    verb = "has" if count == 1 else "have"
    return (f"{count} of {total} {kind}s {verb} no value in any seed and {'is' if count == 1 else 'are'} left out",) if count > 0 else ()


def average_cells(rows: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    """Average ``value`` within each cell of ``key``.

    A missing value makes the mean of its cell NaN. If only one side of a cell diverged, its mean is infinite, whatever else the cell
    contains. If both sides diverged, its mean is NaN and the cell is ``both_diverged``.
    """
    value, both_diverged = rows["value"].to_numpy(dtype=np.float64), rows["both_diverged"].to_numpy(dtype=bool)
    parts = rows[list(key)].assign(
        finite=np.where(np.isfinite(value), value, 0.0),
        up=np.isposinf(value),
        down=np.isneginf(value),
        missing=np.isnan(value) & ~both_diverged,
        both_diverged=both_diverged,
        count=1,
    )
    cells = parts.groupby(list(key), dropna=False, observed=True).sum().reset_index()
    up, down, missing = (cells[name].to_numpy() > 0 for name in ("up", "down", "missing"))
    is_undefined = ~missing & ((up & down) | ((cells["both_diverged"].to_numpy() > 0) & ~up & ~down))
    mean = np.where(up, np.inf, np.where(down, -np.inf, cells["finite"].to_numpy() / cells["count"].to_numpy()))
    return cells[list(key)].assign(value=np.where(missing | is_undefined, np.nan, mean), both_diverged=is_undefined)


def format_selection(selection: Selection) -> str:
    """Format a selection in words, for example ``algorithm FedProx, partition.severity 0.5 or 1``."""
    return ", ".join(
        f"{factor} {' or '.join(map(str, level)) if isinstance(level, (list, tuple)) else level}" for factor, level in selection.items()
    )


# Tables over the conditions of a study.


def compare_to_reference(
    runs: pd.DataFrame,
    metric: str,
    factor: str,
    reference: object,
    factors: Sequence[str],
    by: Sequence[str] = (),
    contrast: Contrast = "none",
) -> pd.DataFrame:
    """Compare every other level of a factor with a reference level, paired by seed.

    Args:
        runs: The table of runs.
        metric: The outcome.
        factor: The factor whose levels are compared.
        reference: The reference level.
        factors: All factors of the study, by which runs are paired.
        by: The columns that split the comparison into cells.
        contrast: "none", or "iid_baseline" for the difference-in-differences relative to the IID baselines.

    Returns:
        One row per cell and level, with the effect, its interval, its effect sizes and its p-value. ``p_holm`` is corrected over all rows
        of the table. ``both_diverged`` is the number of seeds in which both sides diverged; the test excludes them.
    """
    require_columns(runs, [factor, *by])
    chosen = outcome_values(runs, metric, contrast=contrast)
    comparisons = []
    for name, cell in chosen.groupby(list(by), dropna=False, observed=True) if by else [((), chosen)]:
        reference_rows = cell[cell[factor].isin([reference])]
        for level, level_rows in cell.groupby(factor, observed=True):
            if level != reference:
                pairing_factors = shared_factors(level_rows, reference_rows, factors, [factor, *by])
                comparisons.append(
                    (
                        [*name, level],
                        values_per_seed(level_rows, reference_rows, pairing_factors),
                        int(level_rows["diverged"].sum() + reference_rows["diverged"].sum()),
                    )
                )
    rows = []
    for labels, differences, diverged in comparisons:
        comparison = compare_paired(differences.values.to_numpy(dtype=np.float64), family_size=len(comparisons))
        interval = comparison.interval
        rows.append(
            [
                *labels,
                interval.estimate,
                interval.low,
                interval.high,
                comparison.g,
                comparison.rank_biserial,
                comparison.p.value if comparison.seeds else math.nan,
                comparison.p.min_attainable_p,
                comparison.seeds,
                differences.incomplete,
                differences.both_diverged,
                diverged,
                comparison.detectable,
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
            "min_attainable_p",
            "seeds",
            "incomplete",
            "both_diverged",
            "diverged",
            "detectable",
        ],
    )
    frame.insert(list(frame.columns).index("min_attainable_p"), "p_holm", holm(frame["p"].to_numpy(dtype=np.float64)))
    return frame
