"""A run against its IID baseline in one line: what went worse than it would have without the skew.

One run is one seed: it can raise a suspicion and never confirm one, so a verdict is ``none`` or
``suspected``. Nor is ``none`` a certificate: it names the smallest effect that would have been called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.records import Trajectory, final_round_indices
from .across_seeds import FACTUAL_FAILURES
from .curves import domain_variability, final_gap, perplexity_change_percent, read_curve
from .detectors import run_detectors
from .failures import find_runaway
from .finding import THRESHOLDS, RunEvidence

MIN_EVALUATIONS = int(THRESHOLDS["common"]["shortest"])
NUM_LAST_EVALUATIONS = int(THRESHOLDS["common"]["last"])


@dataclass(frozen=True)
class Verdict:
    """What one run says beside its twin. Losses in nats per token; NaN where there is nothing to say."""

    grade: str  # "none" or "suspected"
    initial_loss: float  # the first evaluated loss
    final_loss: float  # the mean of the last evaluations
    gap_to_iid: float  # end above the twin's, same rounds
    perplexity_gap_percent: float  # the same as per cent of perplexity
    worst_domain: str  # where the gap is largest; without a twin, where the loss is highest
    worst_domain_gap: float
    domain_variability: float  # how much the domains' losses move there and back, second half (``curves.domain_variability``)
    domain_variability_ratio: float  # to the twin's
    has_diverged: bool  # left for infinity or died; an end above the untrained model is a reason alone
    num_evaluations: int
    reasons: tuple[str, ...]  # what is suspected, one phrase each
    sentence: str


def judge_run(run: Trajectory, baseline: Trajectory | None = None) -> Verdict:
    """Judge a run by all detectors, beside its IID baseline where there is one."""
    rounds, loss = read_curve(run)
    found = [finding for finding in run_detectors(RunEvidence(run, baseline)) if finding.grade == "suspected"]
    start, end = (
        (float(loss[0]), float(loss[final_round_indices(rounds, NUM_LAST_EVALUATIONS)].mean())) if len(loss) else (math.nan, math.nan)
    )
    gap = final_gap(run, baseline, num_last=NUM_LAST_EVALUATIONS)
    worst, worst_gap = find_worst_domain(run, baseline)
    mine, base = domain_variability(run, rounds), domain_variability(baseline, rounds)
    ratio = mine / base if base > 0 else math.nan
    first = ("dead model", "divergence", "exploding updates", "failed clients", "loss gap", "domain gap", "domain oscillation")
    found.sort(key=lambda finding: first.index(finding.failure) if finding.failure in first else len(first))
    reasons = list(dict.fromkeys(finding.message for finding in found))  # a dead model is a divergence in the same words
    failed, diverged = any(finding.failure in FACTUAL_FAILURES for finding in found), bool(find_runaway(run, THRESHOLDS)[0])
    return Verdict(
        "suspected" if reasons else "none",
        start,
        end,
        gap,
        perplexity_change_percent(gap),
        worst,
        worst_gap,
        mine,
        ratio,
        diverged,
        len(loss),
        tuple(reasons),
        write_verdict_sentence(start, end, gap, len(loss), reasons, failed),
    )


def write_verdict_sentence(start: float, end: float, gap: float, num_evaluations: int, reasons: list[str], has_failed: bool = False) -> str:
    """The verdict in plain English; that training ``failed`` is a fact of one seed, and no suspicion."""
    limit = THRESHOLDS["gap"]
    if not num_evaluations and not reasons:
        return "Nothing has been evaluated yet, so there is nothing to judge."
    told = (
        f"Loss went from {start:.3f} to {end:.3f} nats per token"
        if math.isfinite(start + end)
        else f"Loss began at {start:.3f} nats per token and did not end as a finite number"
    )
    if math.isfinite(gap) and (gap <= limit["all"] or not reasons):  # above, it is among the reasons
        side = "above" if gap >= 0 else "below"
        told += f", {abs(gap):.3f} {side} the IID baseline ({perplexity_change_percent(gap):+.1f}% perplexity)"
    if has_failed:
        return f"Training failed: {'; '.join(reasons)}. {told}. One seed cannot tell whether heterogeneity is the cause."
    if reasons:
        return f"Suspected: {'; '.join(reasons)}. {told}. One seed can raise a suspicion, not confirm it."
    if num_evaluations < MIN_EVALUATIONS:
        return f"{told}. Too early to judge: that takes {MIN_EVALUATIONS} evaluations, and there are {num_evaluations}."
    if math.isnan(gap):
        return f"{told}; no divergence. Without an IID baseline the effect of the skew cannot be told."
    return (
        f"Nothing found that the IID baseline has not. {told}. A gap under {limit['all']} nats in all, or under "
        f"{limit['domain']} in one domain, would not have been called; and one seed proves nothing."
    )


def find_worst_domain(run: Trajectory, baseline: Trajectory | None) -> tuple[str, float]:
    """The domain with the largest gap and that gap; without a twin the one with the highest loss, and NaN."""
    domains = run.domains_of("loss")
    gaps = {domain: final_gap(run, baseline, domain, NUM_LAST_EVALUATIONS) for domain in domains}
    known = {domain: gap for domain, gap in gaps.items() if math.isfinite(gap)}
    if known:
        worst = max(known, key=lambda domain: known[domain])
        return worst, known[worst]
    last = {domain: run.curve("loss", domain)[run.observed_mask("loss", domain)][-1] for domain in domains}
    last = {domain: loss for domain, loss in last.items() if np.isfinite(loss)}
    return (max(last, key=lambda domain: last[domain]) if last else ""), math.nan
