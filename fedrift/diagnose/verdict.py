"""A run against its IID twin in one line: what went worse than it would have without the skew.

One run is one seed: it can raise a suspicion and never confirm one, so a verdict is ``none`` or
``suspected``. Nor is ``none`` a certificate: it names the smallest effect that would have been called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..detectors import findings
from ..detectors.curves import end_gap, evaluated, percent, swing
from ..detectors.divergence import runaway
from ..detectors.finding import LIMITS, Case
from ..records import Trajectory, at_the_end
from .seeds import FACTS

SHORTEST = int(LIMITS["common"]["shortest"])
LAST = int(LIMITS["common"]["last"])


@dataclass(frozen=True)
class Verdict:
    """What one run says beside its twin. Losses in nats per token; NaN where there is nothing to say."""

    grade: str  # "none" or "suspected"
    start: float  # the first evaluated loss
    end: float  # the mean of the last evaluations
    gap: float  # end above the twin's, same rounds
    gap_percent: float  # the same as per cent of perplexity
    worst_domain: str  # where the gap is largest; without a twin, where the loss is highest
    worst_gap: float
    swing: float  # back-and-forth movement of the domains' losses between evaluations, second half (``curves.swing``)
    swing_ratio: float  # to the twin's
    diverged: bool  # left for infinity or died; an end above the untrained model is a reason alone
    evaluations: int
    reasons: tuple[str, ...]  # what is suspected, one phrase each
    sentence: str


def verdict(run: Trajectory, twin: Trajectory | None = None) -> Verdict:
    """Judge a run by all detectors, beside its IID twin where there is one."""
    rounds, loss = evaluated(run)
    found = [finding for finding in findings(Case(run, twin)) if finding.grade == "suspected"]
    start, end = (float(loss[0]), float(loss[at_the_end(rounds, LAST)].mean())) if len(loss) else (math.nan, math.nan)
    gap = end_gap(run, twin, last=LAST)
    worst, worst_gap = worst_domain(run, twin)
    mine, base = swing(run, rounds), swing(twin, rounds)
    ratio = mine / base if base > 0 else math.nan
    first = ("dead model", "divergence", "exploding updates", "left out", "loss gap", "domain gap", "domain swings")
    found.sort(key=lambda finding: first.index(finding.failure) if finding.failure in first else len(first))
    reasons = list(dict.fromkeys(finding.said for finding in found))  # a dead model is a divergence in the same words
    failed, diverged = any(finding.failure in FACTS for finding in found), bool(runaway(run, LIMITS)[0])
    return Verdict("suspected" if reasons else "none", start, end, gap, percent(gap), worst, worst_gap, mine, ratio,
                   diverged, len(loss), tuple(reasons), sentence(start, end, gap, len(loss), reasons, failed))


def sentence(start: float, end: float, gap: float, evaluations: int, reasons: list[str], failed: bool = False) -> str:
    """The verdict in plain English; that training ``failed`` is a fact of one seed, and no suspicion."""
    limit = LIMITS["gap"]
    if not evaluations and not reasons:
        return "Nothing has been evaluated yet, so there is nothing to judge."
    told = (f"Loss went from {start:.3f} to {end:.3f} nats per token" if math.isfinite(start + end) else
            f"Loss began at {start:.3f} nats per token and did not end as a finite number")
    if math.isfinite(gap) and (gap <= limit["all"] or not reasons):  # above, it is among the reasons
        side = "above" if gap >= 0 else "below"
        told += f", {abs(gap):.3f} {side} the IID twin ({percent(gap):+.1f}% perplexity)"
    if failed:
        return f"Training failed: {'; '.join(reasons)}. {told}. One seed cannot tell whether heterogeneity is the cause."
    if reasons:
        return f"Suspected: {'; '.join(reasons)}. {told}. One seed can raise a suspicion, not confirm it."
    if evaluations < SHORTEST:
        return f"{told}. Too early to judge: that takes {SHORTEST} evaluations, and there are {evaluations}."
    if math.isnan(gap):
        return f"{told}; no divergence. Without an IID twin the effect of the skew cannot be told."
    return (f"Nothing found that the IID twin has not. {told}. A gap under {limit['all']} nats in all, or under "
            f"{limit['domain']} in one domain, would not have been called; and one seed proves nothing.")


def worst_domain(run: Trajectory, twin: Trajectory | None) -> tuple[str, float]:
    """The domain with the largest gap and that gap; without a twin the one with the highest loss, and NaN."""
    domains = run.domains_of("loss")
    gaps = {domain: end_gap(run, twin, domain, LAST) for domain in domains}
    known = {domain: gap for domain, gap in gaps.items() if math.isfinite(gap)}
    if known:
        worst = max(known, key=lambda domain: known[domain])
        return worst, known[worst]
    last = {domain: run.curve("loss", domain)[run.seen("loss", domain)][-1] for domain in domains}
    last = {domain: loss for domain, loss in last.items() if np.isfinite(loss)}
    return (max(last, key=lambda domain: last[domain]) if last else ""), math.nan
