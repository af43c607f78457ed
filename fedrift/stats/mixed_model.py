"""All arms in one model: outcome ~ factors + (1 | seed), by REML, and honest p values for its fixed effects.

Runs of one seed share data and start, so they are alike: the seed is a random effect (Laird & Ware, Biometrics 38,
1982). statsmodels gives Wald z of the fixed effects, which pretends that the variances are known; with ten seeds that
is too sure, and it has no Kenward-Roger. So tables carry estimates and errors, and a p comes from ``bootstrap_term_p``: the
likelihood ratio against its own null, simulated from the model without the term (Halekoh & Højsgaard, Journal of
Statistical Software 59(9), 2014). Diverged runs have no place in it: rank tests keep them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from scipy import stats

from ..core.errors import UserError
from ..core.random import numpy_stream
from .selection import require_columns
from .significance import PValue


@dataclass(frozen=True, eq=False)
class MixedModel:
    """``table``: term, estimate, error, and the Wald interval that takes n groups - 1 as its degrees of freedom."""

    table: pd.DataFrame
    sd_groups: float
    sd_residual: float
    groups: int
    runs: int
    num_excluded: int  # diverged or unfinished
    converged: bool
    notes: tuple[str, ...]


def fit_mixed_model(
    runs: pd.DataFrame, outcome: str, terms: Sequence[str], groups: str = "seed", confidence_level: float = 0.95
) -> MixedModel:
    """The model by REML. ``terms`` are factor columns and, with ``:``, their interactions; text columns are categories."""
    frame = select_usable_runs(runs, outcome, terms, groups)
    fit, quiet = fit_model(frame, outcome, terms, groups, reml=True)
    many = frame[groups].nunique()
    half = stats.t.ppf((1 + confidence_level) / 2, max(many - 1, 1))
    names = [name for name in fit.fe_params.index]
    table = pd.DataFrame(
        {"term": [unquote_term(name) for name in names], "estimate": fit.fe_params.to_numpy(), "error": fit.bse_fe.to_numpy()}
    )
    table["low"], table["high"] = table["estimate"] - half * table["error"], table["estimate"] + half * table["error"]
    spread = float(np.sqrt(max(float(np.asarray(fit.cov_re)[0, 0]), 0.0)))
    notes = ["the intervals take groups - 1 degrees of freedom; a p needs bootstrap_term_p"]
    if spread < 1e-4 * float(np.sqrt(fit.scale)):
        notes.append(f"{groups} explains next to nothing: the fit is at the edge of a model without it")
    if not quiet:
        notes.append("the optimiser did not settle; do not lean on this fit")
    return MixedModel(table, spread, float(np.sqrt(fit.scale)), many, len(frame), len(runs) - len(frame), quiet, tuple(notes))


def bootstrap_term_p(
    runs: pd.DataFrame, outcome: str, terms: Sequence[str], term: str, groups: str = "seed", num_resamples: int = 199, seed: int = 0
) -> PValue:
    """Whether ``term`` is needed: the likelihood ratio of the models with and without it, by parametric bootstrap."""
    if term not in terms:
        raise UserError(f"the model has no term {term!r}; it has {', '.join(terms)}")
    frame, without = select_usable_runs(runs, outcome, terms, groups), [other for other in terms if other != term]
    seen = likelihood_ratio(frame, outcome, terms, without, groups)
    null, _ = fit_model(frame, outcome, without, groups, reml=False)
    mean = np.asarray(null.model.exog) @ np.asarray(null.fe_params)
    spread, noise = np.sqrt(max(float(np.asarray(null.cov_re)[0, 0]), 0.0)), np.sqrt(float(null.scale))
    place = pd.factorize(frame[groups])[0]
    rng, far = numpy_stream(seed, "parametric bootstrap", outcome, term), 0
    for _ in range(num_resamples):
        own = rng.normal(0, spread, place.max() + 1)[place]
        again = frame.assign(**{outcome: mean + own + rng.normal(0, noise, len(frame))})
        far += likelihood_ratio(again, outcome, terms, without, groups) >= seen
    return PValue(
        (far + 1) / (num_resamples + 1), 1 / (num_resamples + 1), int(place.max() + 1), f"parametric bootstrap, {num_resamples} draws"
    )


def likelihood_ratio(frame: pd.DataFrame, outcome: str, terms: Sequence[str], without: Sequence[str], groups: str) -> float:
    """Twice the gain in log-likelihood; by ML, since REML likelihoods of different means do not compare."""
    whole, less = (fit_model(frame, outcome, some, groups, reml=False)[0].llf for some in (terms, without))
    return 2 * float(whole - less)


def fit_model(frame: pd.DataFrame, outcome: str, terms: Sequence[str], groups: str, reml: bool) -> tuple[Any, bool]:
    """The fit, and whether it converged."""
    formula = f"{quote_term(outcome)} ~ {' + '.join(map(quote_term, terms)) or '1'}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an edge of zero variance is an ordinary result here, and said in the notes
        fit = smf.mixedlm(formula, frame, groups=frame[groups]).fit(reml=reml)
    return fit, bool(fit.converged)


def select_usable_runs(runs: pd.DataFrame, outcome: str, terms: Sequence[str], groups: str) -> pd.DataFrame:
    """The runs with a finite outcome, and enough of them."""
    columns = sorted({name for term in terms for name in term.split(":")})
    require_columns(runs, [outcome, groups, *columns])
    frame = runs[[outcome, groups, *columns]].replace([np.inf, -np.inf], np.nan).dropna()
    if "diverged" in runs:
        frame = frame[~runs.loc[frame.index, "diverged"].astype(bool)]
    for name in columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].astype(str)
    if frame[groups].nunique() < 3:
        raise UserError(f"a mixed model wants 3 or more of {groups!r}; the runs with a finite {outcome!r} have {frame[groups].nunique()}")
    return frame


def quote_term(term: str) -> str:
    """A column, or an interaction of columns, whose names may have dots."""
    return ":".join(f"Q('{name}')" for name in term.split(":"))


def unquote_term(term: str) -> str:
    return term.replace("Q('", "").replace("')", "")
