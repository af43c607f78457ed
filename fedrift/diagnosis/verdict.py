"""Summarize one run, compared with its IID baseline, in one verdict.

One run has one seed, so a verdict is ``none`` or ``suspected`` and never ``confirmed``. The verdict ``none`` does not prove that
there is no failure; its sentence names the smallest effect that would have been detected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.records import Trajectory, final_round_indices
from .across_seeds import FACTUAL_FAILURES
from .curves import domain_variability, final_gap, perplexity_change_percent, read_curve
from .detectors import run_detectors
from .failures import find_training_divergence
from .finding import THRESHOLDS, RunEvidence

MIN_EVALUATIONS = int(THRESHOLDS["common"]["shortest"])
NUM_LAST_EVALUATIONS = int(THRESHOLDS["common"]["last"])


@dataclass(frozen=True)
class Verdict:
    """The verdict on one run. Losses are in nats per token, and missing values are NaN.

    Attributes:
        grade: "none" or "suspected".
        initial_loss: First evaluated loss.
        final_loss: Mean loss of the last evaluations.
        gap_to_iid: Final loss minus the IID baseline's in the same rounds.
        perplexity_gap_percent: The same gap as a percentage of perplexity.
        worst_domain: Domain with the largest gap; without a baseline, the domain with the highest loss.
        worst_domain_gap: Gap of the worst domain.
        domain_variability: Fluctuation of the domain losses in the second half of the run, see ``curves.domain_variability``.
        domain_variability_ratio: The fluctuation divided by the IID baseline's.
        has_diverged: Whether the run diverged or the model is dead. A final loss above the untrained model's is only a reason.
        num_evaluations: Number of evaluations of the loss.
        reasons: One phrase per suspected failure.
        sentence: The verdict in plain English.
    """

    grade: str
    initial_loss: float
    final_loss: float
    gap_to_iid: float
    perplexity_gap_percent: float
    worst_domain: str
    worst_domain_gap: float
    domain_variability: float
    domain_variability_ratio: float
    has_diverged: bool
    num_evaluations: int
    reasons: tuple[str, ...]
    sentence: str


def judge_run(run: Trajectory, baseline: Trajectory | None = None) -> Verdict:
    """Judge a run with all detectors.

    Args:
        run: The run's records.
        baseline: Records of the matched IID baseline.
    """
    rounds, loss = read_curve(run)
    findings = [finding for finding in run_detectors(RunEvidence(run, baseline)) if finding.grade == "suspected"]
    initial_loss, final_loss = (
        (float(loss[0]), float(loss[final_round_indices(rounds, NUM_LAST_EVALUATIONS)].mean())) if len(loss) else (math.nan, math.nan)
    )
    gap = final_gap(run, baseline, num_last=NUM_LAST_EVALUATIONS)
    worst_domain, worst_gap = find_worst_domain(run, baseline)
    variability, baseline_variability = domain_variability(run, rounds), domain_variability(baseline, rounds)
    ratio = variability / baseline_variability if baseline_variability > 0 else math.nan
    order = ("dead model", "divergence", "exploding updates", "failed clients", "loss gap", "domain gap", "domain oscillation")
    findings.sort(key=lambda finding: order.index(finding.failure) if finding.failure in order else len(order))
    reasons = list(dict.fromkeys(finding.message for finding in findings))  # a dead model is also a divergence with the same message
    has_failed, has_diverged = (
        any(finding.failure in FACTUAL_FAILURES for finding in findings),
        bool(find_training_divergence(run, THRESHOLDS)[0]),
    )
    return Verdict(
        "suspected" if reasons else "none",
        initial_loss,
        final_loss,
        gap,
        perplexity_change_percent(gap),
        worst_domain,
        worst_gap,
        variability,
        ratio,
        has_diverged,
        len(loss),
        tuple(reasons),
        write_verdict_sentence(initial_loss, final_loss, gap, len(loss), reasons, has_failed),
    )


def write_verdict_sentence(
    initial_loss: float, final_loss: float, gap: float, num_evaluations: int, reasons: list[str], has_failed: bool = False
) -> str:
    """Write the verdict in plain English.

    Args:
        initial_loss: First evaluated loss.
        final_loss: Final loss.
        gap: Final loss minus the IID baseline's.
        num_evaluations: Number of evaluations.
        reasons: One phrase per suspected failure.
        has_failed: Whether training failed, which one seed is enough to state.
    """
    limit = THRESHOLDS["gap"]
    if not num_evaluations and not reasons:
        return "No evaluation has been recorded yet, so there is nothing to judge."
    summary = (
        f"The loss changed from {initial_loss:.3f} to {final_loss:.3f} nats per token"
        if math.isfinite(initial_loss + final_loss)
        else f"The loss started at {initial_loss:.3f} nats per token and is not finite at the end"
    )
    if math.isfinite(gap) and (gap <= limit["all"] or not reasons):  # otherwise the gap is one of the reasons
        side = "above" if gap >= 0 else "below"
        summary += f", which is {abs(gap):.3f} {side} the IID baseline ({perplexity_change_percent(gap):+.1f}% perplexity)"
    if has_failed:
        return f"Training failed: {'; '.join(reasons)}. {summary}. A single seed cannot show whether heterogeneity is the cause."
    if reasons:
        return f"Suspected: {'; '.join(reasons)}. {summary}. A single seed can raise a suspicion but not confirm it."
    if num_evaluations < MIN_EVALUATIONS:
        return f"{summary}. Too early to judge: {MIN_EVALUATIONS} evaluations are required, and there are {num_evaluations}."
    if math.isnan(gap):
        return f"{summary}. No divergence was found. Without an IID baseline, the effect of heterogeneity is unknown."
    return (
        f"No failure was found beyond the IID baseline. {summary}. A gap below {limit['all']} nats overall, or below "
        f"{limit['domain']} nats in one domain, would not have been detected. A single seed proves nothing."
    )


def find_worst_domain(run: Trajectory, baseline: Trajectory | None) -> tuple[str, float]:
    """Return the domain with the largest gap and the gap; without a baseline, the domain with the highest loss and NaN."""
    domains = run.domains_of("loss")
    gaps = {domain: final_gap(run, baseline, domain, NUM_LAST_EVALUATIONS) for domain in domains}
    finite_gaps = {domain: gap for domain, gap in gaps.items() if math.isfinite(gap)}
    if finite_gaps:
        worst = max(finite_gaps, key=lambda domain: finite_gaps[domain])
        return worst, finite_gaps[worst]
    last_losses = {domain: run.curve("loss", domain)[run.observed_mask("loss", domain)][-1] for domain in domains}
    last_losses = {domain: loss for domain, loss in last_losses.items() if np.isfinite(loss)}
    return (max(last_losses, key=lambda domain: last_losses[domain]) if last_losses else ""), math.nan
