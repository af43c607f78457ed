"""Aggregation error of low-rank adapters: the mean of the factors is not the mean of the products.

The error of a round, |mean of products - product of means| over what the round changed, is above .1, and costs: averaging exactly
in the same round would have given a loss lower by .01 nats. The error is there without heterogeneity too and grows with
the local steps, so the twin's is its base. Without the counterfactual loss (`adapters.error.loss`) it is suspected only.
"""

from __future__ import annotations

import math

import numpy as np

from ..records import Trajectory
from .curves import evaluated
from .finding import Case, Finding, judged, not_measured, series


def aggregation(case: Case) -> list[Finding]:
    rounds, error = evaluated(case.run, "adapters.error.update")
    if len(error) < case.limits["common"]["shortest"]:
        return not_measured("aggregation error", f"`adapters.error.update` in {case.limits['common']['shortest']:.0f} rounds: "
                                                 "adapters, averaged factor by factor")
    limit = case.limits["aggregation"]
    mine, theirs = middle(case.run, "adapters.error.update"), middle(case.twin, "adapters.error.update")
    cost = middle(case.run, "adapters.error.loss")
    positive = mine > limit["error"] and not cost <= limit["loss"]
    said = f"averaging factors loses {mine:.1%} of what a round changes"
    if math.isfinite(theirs):
        said += f" ({theirs:.1%} in the twin)"
    if positive and math.isfinite(cost):
        said += f"; averaging exactly would save {cost:.3f} nats"
    wanting = "" if math.isfinite(cost) else "`adapters.error.loss`: what exact aggregation would have saved in the same round"
    over = np.flatnonzero(error > limit["error"])
    shown = None if math.isnan(theirs) else bool(theirs > limit["error"] and theirs > mine / 2)
    return [judged("aggregation error", mine, theirs, limit["error"], "share of a round", positive=positive, said=said,
                   shown=shown, since=int(rounds[over[0]]) if positive and len(over) else None,
                   confirmable=not wanting, needs=wanting,
                   evidence=(series("adapters.error.update", rounds, error),))]


def middle(run: Trajectory | None, metric: str) -> float:
    """The median of a curve over its rounds."""
    values = evaluated(run, metric)[1]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else math.nan
