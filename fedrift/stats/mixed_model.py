"""A linear mixed model over all conditions of a study: outcome ~ factors + (1 | seed), fitted by REML.

Runs with one seed share their data and their initial weights, so the seed is a random effect (Laird & Ware, Biometrics 38, 1982).
statsmodels tests the fixed effects by Wald's z, which treats the variances as known. With ten seeds this is too optimistic, and
statsmodels has no Kenward-Roger correction. So the table contains estimates and standard errors only, and ``bootstrap_term_p`` computes
p-values: it compares the likelihood ratio with its distribution under the null model, simulated from the model without the term
(Halekoh & Højsgaard, Journal of Statistical Software 59(9), 2014). The model excludes diverged runs; use rank tests to keep them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.lazy_imports import pd, stats
from ..core.random import numpy_stream
from .selection import require_columns
from .significance import PValue


@dataclass(frozen=True, eq=False)
class MixedModel:
    """A fitted mixed model.

    ``table`` has the columns ``term``, ``estimate``, ``error`` (standard error), ``low`` and ``high``. The interval is a Wald interval with
    the number of groups minus 1 as its degrees of freedom.
    """

    table: pd.DataFrame
    sd_groups: float
    sd_residual: float
    groups: int
    runs: int
    num_excluded: int  # diverged or unfinished runs
    converged: bool
    notes: tuple[str, ...]


def fit_mixed_model(
    runs: pd.DataFrame, outcome: str, terms: Sequence[str], groups: str = "seed", confidence_level: float = 0.95
) -> MixedModel:
    """Fit the mixed model by REML.

    Args:
        runs: The table of runs, with one row per run.
        outcome: The column of the outcome.
        terms: The factor columns and their interactions, written as ``a:b``. Text columns are categorical.
        groups: The column of the random effect.
        confidence_level: The level of the intervals.

    Raises:
        UserError: A column is missing, or fewer than three groups have a finite outcome.
    """
    frame = select_usable_runs(runs, outcome, terms, groups)
    fit, converged = fit_model(frame, outcome, terms, groups, reml=True)
    num_groups = frame[groups].nunique()
    critical_t = stats.t.ppf((1 + confidence_level) / 2, max(num_groups - 1, 1))
    names = [name for name in fit.fe_params.index]
    table = pd.DataFrame(
        {"term": [unquote_term(name) for name in names], "estimate": fit.fe_params.to_numpy(), "error": fit.bse_fe.to_numpy()}
    )
    table["low"], table["high"] = table["estimate"] - critical_t * table["error"], table["estimate"] + critical_t * table["error"]
    sd_groups = float(np.sqrt(max(float(np.asarray(fit.cov_re)[0, 0]), 0.0)))
    notes = ["the intervals use groups - 1 degrees of freedom; use bootstrap_term_p for p-values"]
    if sd_groups < 1e-4 * float(np.sqrt(fit.scale)):
        notes.append(f"{groups} explains almost no variance: the fit is at the boundary of a model without it")
    if not converged:
        notes.append("the optimizer did not converge, so this fit is unreliable")
    return MixedModel(table, sd_groups, float(np.sqrt(fit.scale)), num_groups, len(frame), len(runs) - len(frame), converged, tuple(notes))


def bootstrap_term_p(
    runs: pd.DataFrame, outcome: str, terms: Sequence[str], term: str, groups: str = "seed", num_resamples: int = 199, seed: int = 0
) -> PValue:
    """Test whether the model needs a term, by a parametric bootstrap of the likelihood ratio with and without it.

    Args:
        runs: The table of runs, with one row per run.
        outcome: The column of the outcome.
        terms: All terms of the model, ``term`` included.
        term: The term to test.
        groups: The column of the random effect.
        num_resamples: The number of simulated data sets.
        seed: The seed of the simulation.

    Raises:
        UserError: ``term`` is not one of ``terms``, a column is missing, or there are fewer than three groups.
    """
    if term not in terms:
        raise UserError(f"the model has no term {term!r}; its terms are {', '.join(terms)}")
    frame, without = select_usable_runs(runs, outcome, terms, groups), [other for other in terms if other != term]
    observed = likelihood_ratio(frame, outcome, terms, without, groups)
    null, _ = fit_model(frame, outcome, without, groups, reml=False)
    mean = np.asarray(null.model.exog) @ np.asarray(null.fe_params)
    sd_groups, sd_residual = np.sqrt(max(float(np.asarray(null.cov_re)[0, 0]), 0.0)), np.sqrt(float(null.scale))
    group = pd.factorize(frame[groups])[0]
    rng, num_extreme = numpy_stream(seed, "parametric bootstrap", outcome, term), 0
    for _ in range(num_resamples):
        group_effect = rng.normal(0, sd_groups, group.max() + 1)[group]
        simulated = frame.assign(**{outcome: mean + group_effect + rng.normal(0, sd_residual, len(frame))})
        num_extreme += likelihood_ratio(simulated, outcome, terms, without, groups) >= observed
    return PValue(
        (num_extreme + 1) / (num_resamples + 1),
        1 / (num_resamples + 1),
        int(group.max() + 1),
        f"parametric bootstrap, {num_resamples} draws",
    )


def likelihood_ratio(frame: pd.DataFrame, outcome: str, terms: Sequence[str], without: Sequence[str], groups: str) -> float:
    """Return twice the gain in log-likelihood, by ML, because REML likelihoods of models with different means are not comparable."""
    full, reduced = (fit_model(frame, outcome, model_terms, groups, reml=False)[0].llf for model_terms in (terms, without))
    return 2 * float(full - reduced)


def fit_model(frame: pd.DataFrame, outcome: str, terms: Sequence[str], groups: str, reml: bool) -> tuple[Any, bool]:
    """Fit the model and return it with whether the optimizer converged."""
    import statsmodels.formula.api as smf

    formula = f"{quote_term(outcome)} ~ {' + '.join(map(quote_term, terms)) or '1'}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a group variance of zero is an ordinary result, which the notes report
        fit = smf.mixedlm(formula, frame, groups=frame[groups]).fit(reml=reml)
    return fit, bool(fit.converged)


def select_usable_runs(runs: pd.DataFrame, outcome: str, terms: Sequence[str], groups: str) -> pd.DataFrame:
    """Return the runs with a finite outcome; raise UserError if they have fewer than three groups."""
    columns = sorted({name for term in terms for name in term.split(":")})
    require_columns(runs, [outcome, groups, *columns])
    frame = runs[[outcome, groups, *columns]].replace([np.inf, -np.inf], np.nan).dropna()
    if "diverged" in runs:
        frame = frame[~runs.loc[frame.index, "diverged"].astype(bool)]
    for name in columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].astype(str)
    if frame[groups].nunique() < 3:
        raise UserError(
            f"a mixed model needs at least 3 values of {groups!r}; the runs with a finite {outcome!r} have {frame[groups].nunique()}"
        )
    return frame


def quote_term(term: str) -> str:
    """Quote a column, or an interaction of columns, because column names may contain dots."""
    return ":".join(f"Q('{name}')" for name in term.split(":"))


def unquote_term(term: str) -> str:
    """Remove the quotes that ``quote_term`` added."""
    return term.replace("Q('", "").replace("')", "")
