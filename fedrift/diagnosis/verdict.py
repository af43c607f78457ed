"""Summarize one run, compared with its IID baseline, in one verdict on the run.

One run has one seed, so a verdict is ``none`` or ``suspected`` and never ``confirmed``. The verdict ``none`` does not prove that
there is no failure; its sentence names the smallest effect that would have been detected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.records import Trajectory, perplexity_change_percent
from .across_seeds import FACTUAL_FAILURES
from .detectors import run_detectors
from .failures import find_training_divergence
from .finding import THRESHOLDS, RunEvidence, domain_variability, final_gap, final_loss, final_losses, read_curve

MIN_EVALUATIONS = int(THRESHOLDS["common"]["shortest"])
NUM_LAST_EVALUATIONS = int(THRESHOLDS["common"]["last"])
MAX_EXPONENT = 690.0  # the exponential of a larger loss is not representable


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
        domain_variability: Fluctuation of the domain losses in the second half of the run, see ``finding.domain_variability``.
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
    initial_loss, final = float(loss[0]) if len(loss) else math.nan, final_loss(run, NUM_LAST_EVALUATIONS)
    gap = final_gap(run, baseline, num_last=NUM_LAST_EVALUATIONS)
    worst_domain, worst_gap = find_worst_domain(run, baseline)
    variability, baseline_variability = domain_variability(run, rounds), domain_variability(baseline, rounds)
    ratio = variability / baseline_variability if baseline_variability > 0 else math.nan
    order = ("dead model", "divergence", "exploding updates", "failed clients", "loss gap", "domain gap", "domain oscillation")
    findings.sort(key=lambda finding: order.index(finding.failure) if finding.failure in order else len(order))
    messages = list(dict.fromkeys(finding.message for finding in findings))  # a dead model is also a divergence, with the same message
    reasons = [message for message in messages if not any(other != message and other.startswith(message) for other in messages)]
    has_failed, has_diverged = (
        any(finding.failure in FACTUAL_FAILURES for finding in findings),
        bool(find_training_divergence(run, THRESHOLDS)[0]),
    )
    numbers = VerdictNumbers(
        float(loss[0]) if len(loss) > 1 and rounds[0] == 0 else math.nan,
        final,
        final_losses(run, baseline, num_last=NUM_LAST_EVALUATIONS),
        has_diverged,
        bool(find_training_divergence(baseline, THRESHOLDS)[0]),
    )
    return Verdict(
        "suspected" if reasons else "none",
        initial_loss,
        final,
        gap,
        perplexity_change_percent(gap),
        worst_domain,
        worst_gap,
        variability,
        ratio,
        has_diverged,
        len(loss),
        tuple(reasons),
        write_verdict_sentence(numbers, len(loss), reasons, has_failed),
    )


@dataclass(frozen=True)
class VerdictNumbers:
    """The numbers that a verdict on a run quotes. Losses are in nats per token.

    Attributes:
        untrained_loss: Loss in round 0; NaN if it was not evaluated or if nothing was evaluated after it.
        final_loss: Mean loss of the last evaluations.
        shared_losses: Mean losses of the run and of its IID baseline over their last shared evaluations; NaN without a baseline.
        has_diverged: Whether the run diverged.
        baseline_diverged: Whether the IID baseline diverged.
    """

    untrained_loss: float
    final_loss: float
    shared_losses: tuple[float, float]
    has_diverged: bool = False
    baseline_diverged: bool = False

    @property
    def gap(self) -> float:
        """Return the final loss minus the IID baseline's in the same rounds."""
        return self.shared_losses[0] - self.shared_losses[1]


def write_verdict_sentence(numbers: VerdictNumbers, num_evaluations: int, reasons: list[str], has_failed: bool = False) -> str:
    """Write the verdict on a run in plain English, with perplexity and the gap to the IID baseline in every case.

    Args:
        numbers: The numbers to quote.
        num_evaluations: Number of evaluations.
        reasons: One phrase per suspected failure.
        has_failed: Whether training failed, which one seed is enough to state.
    """
    limit = THRESHOLDS["gap"]
    if not num_evaluations and not reasons:
        return "No evaluation has been recorded yet, so there is nothing to judge."
    summary = write_summary(numbers)
    if has_failed:
        return f"Training failed: {'; '.join(reasons)}. {summary} A single seed cannot show whether heterogeneity is the cause."
    if numbers.final_loss > numbers.untrained_loss and to_perplexity(numbers.final_loss) != to_perplexity(numbers.untrained_loss):
        summary = (
            f"The run ends above the untrained model: perplexity {to_perplexity(numbers.final_loss)} after training, "
            f"{to_perplexity(numbers.untrained_loss)} before. {summary}"
        )
    if reasons:
        return f"{summary} Suspected: {'; '.join(reasons)}. A single seed can raise a suspicion but not confirm it."
    if num_evaluations < MIN_EVALUATIONS:
        return f"{summary} Too early to judge: {MIN_EVALUATIONS} evaluations are required, and there are {num_evaluations}."
    if math.isnan(numbers.gap):
        return f"{summary} No divergence was found. Without an IID baseline, the effect of heterogeneity is unknown."
    return (
        f"{summary} No failure was found beyond the IID baseline. A gap below {limit['all']} nats per token overall, or "
        f"below {limit['domain']} nats per token in one domain, would not have been detected. A single seed proves nothing."
    )


def write_summary(numbers: VerdictNumbers) -> str:
    """Write the perplexity of a run, its distance to the IID baseline, and the change of the loss, as one or two sentences."""
    run_loss, baseline_loss = numbers.shared_losses
    start, end = numbers.untrained_loss, numbers.final_loss
    change = ""
    if math.isfinite(start + end):
        change = f" The loss changed from {start:.3f} to {end:.3f} nats per token (perplexity before training: {to_perplexity(start)})."
    elif math.isfinite(start):
        change = f" The loss before training was {start:.3f} nats per token (perplexity {to_perplexity(start)})."
    both = "Both runs diverged. " if numbers.has_diverged and numbers.baseline_diverged else ""
    if not math.isfinite(end):
        baseline = f"; the matched IID baseline's is {to_perplexity(baseline_loss)}" if math.isfinite(baseline_loss) else ""
        return f"{both}The final perplexity is not finite{baseline}.{change}"
    if math.isnan(numbers.gap):
        baseline = ", and the matched IID baseline's is not finite because that run diverged" if numbers.baseline_diverged else ""
        return f"The final perplexity is {to_perplexity(end)}{baseline}.{change}"
    difference = write_perplexity_gap(run_loss, baseline_loss)
    only = " The matched IID baseline diverged, and this run did not." if numbers.baseline_diverged and not numbers.has_diverged else ""
    return f"{both}The final perplexity is {difference}.{only}{change}"


def write_perplexity_gap(run_loss: float, baseline_loss: float) -> str:
    """Write ``73.8, 5.2 above the matched IID baseline's 68.6 (+7.6 %; +0.074 nats per token)``.

    Args:
        run_loss: Finite loss of the run in nats per token.
        baseline_loss: Loss of its IID baseline in the same rounds.
    """
    gap = run_loss - baseline_loss
    if not math.isfinite(baseline_loss):
        return f"{to_perplexity(run_loss)}; the matched IID baseline's is not finite"
    percent = perplexity_change_percent(gap)
    relative = f"{percent:+.1f} %" if abs(percent) < 1e4 else "more than +10,000 %"
    if to_perplexity(run_loss) == to_perplexity(baseline_loss):
        return f"{to_perplexity(run_loss)}, as high as the matched IID baseline's ({relative}; {gap:+.3f} nats per token)"
    distance = math.inf if max(run_loss, baseline_loss) > MAX_EXPONENT else abs(math.exp(run_loss) - math.exp(baseline_loss))
    return (
        f"{to_perplexity(run_loss)}, {format_perplexity(distance)} {'above' if gap > 0 else 'below'} the matched IID baseline's "
        f"{to_perplexity(baseline_loss)} ({relative}; {gap:+.3f} nats per token)"
    )


def to_perplexity(loss: float) -> str:
    """Convert a loss in nats per token to the text of a perplexity: 73.8, 1,234, 1.2e+09; "" if the loss is NaN."""
    return "" if math.isnan(loss) else format_perplexity(math.exp(loss) if loss <= MAX_EXPONENT else math.inf)


def format_perplexity(value: float) -> str:
    """Format a perplexity or a difference of two."""
    if not math.isfinite(value):
        return "more than 1e+300" if value > 0 else str(value)
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2g}"


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
