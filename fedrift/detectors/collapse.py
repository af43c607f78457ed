"""Collapse of the representation: the last layer's states crowd into few directions, or into one.

The effective rank of the hidden states falls below .7 of the pretrained model's, or their mean cosine rises by .15; and both more
than in the anchor that trained on everything, or in the twin. Fine-tuning alone narrows a model too.
"""

from __future__ import annotations

import math

import numpy as np

from ..records import Trajectory
from .curves import evaluated, last_layer
from .finding import Case, Finding, judged, not_measured, series


def collapse(case: Case) -> list[Finding]:
    if not {"hidden.rank.ratio", "hidden.anisotropy"} & set(case.run.metrics):
        return not_measured("collapse of the representation", "`hidden.rank.ratio` or `hidden.anisotropy`")
    limit = case.limits["collapse"]
    other = case.central if case.central is not None else case.twin
    mine, theirs = narrowed(case.run), narrowed(other)
    lacking = [math.nan if other is None else theirs[name] for name in ("rank", "anisotropy")]
    over = [name for name, base in zip(("rank", "anisotropy"), lacking, strict=True)
            if mine[name] > limit[name] and not mine[name] - base <= limit[name] / 2]
    worst = max(over or mine, key=lambda name: float(np.nanmax([mine[name] / limit[name], theirs[name] / limit[name], -np.inf])))
    words = {"rank": f"the last layer has lost {mine['rank']:.0%} of its effective rank",
             "anisotropy": f"hidden states of the last layer have come {mine['anisotropy']:.2f} closer in cosine"}
    base = theirs[worst] if other is not None else math.nan
    metric = {"rank": "hidden.rank.ratio", "anisotropy": "hidden.anisotropy"}[worst]
    layer = last_layer(case.run, metric)
    rounds, values = evaluated(case.run, metric, layer)
    unit = {"rank": "share of rank", "anisotropy": "cosine"}[worst]
    said = " and ".join(words[name] for name in over) or "the representation has not collapsed"
    return [judged("collapse of the representation", mine[worst], base, limit[worst], unit, positive=bool(over), said=said,
                   shown=None if other is None else any(theirs[name] > limit[name] for name in theirs),
                   since=since(rounds, values, worst, limit[worst]) if over else None, where=(layer,) if layer else (),
                   evidence=(series(metric, rounds, values),))]


def narrowed(run: Trajectory | None) -> dict[str, float]:
    """How much rank the last layer has lost and how much cosine it has won, at the end."""
    found = {"rank": math.nan, "anisotropy": math.nan}
    if run is None:
        return found
    for name, metric in (("rank", "hidden.rank.ratio"), ("anisotropy", "hidden.anisotropy")):
        values = evaluated(run, metric, last_layer(run, metric) if metric in run.metrics else "")[1]
        if len(values):
            found[name] = float(1 - values[-1] if name == "rank" else values[-1] - values[0])
    return found


def since(rounds: np.ndarray, values: np.ndarray, name: str, limit: float) -> int | None:
    over = np.flatnonzero(1 - values > limit if name == "rank" else values - values[0] > limit)
    return int(rounds[over[0]]) if len(over) else None
