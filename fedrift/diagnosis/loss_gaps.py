"""Detect loss gaps to the IID baseline, and unfairness between clients.

Loss gap: the final loss, overall or in one domain, is above the IID baseline's by more than a threshold and by more than the noise
of the last evaluations. It is not a failure mode of its own but the cost of all others. Without a gap, other findings have caused no
harm so far.
"""

from __future__ import annotations

import math

import numpy as np

from ..core.records import Trajectory, final_round_indices, perplexity_change_percent
from .failures import find_dead_model, find_training_divergence
from .finding import (
    Finding,
    RunEvidence,
    align_curves,
    client_table,
    clients_holding,
    final_gap,
    make_not_measured,
    make_series,
    noise_interval,
    single_run_grade,
)


def loss_gap(evidence: RunEvidence) -> list[Finding]:
    """Detect a final loss above the IID baseline's, overall and per domain."""
    rounds, run_loss, baseline_loss = align_curves(evidence.run, evidence.iid_baseline)
    common = evidence.thresholds["common"]
    if len(rounds) < common["shortest"]:
        return make_not_measured(
            "loss gap", f"at least {common['shortest']:.0f} evaluations in rounds that the run and an IID baseline share"
        )
    if find_training_divergence(evidence.run, evidence.thresholds)[0]:
        return make_not_measured("loss gap", "a run that has not diverged")
    if find_dead_model(evidence.iid_baseline, evidence.thresholds)[0]:
        return make_not_measured("loss gap", "an IID baseline whose model is not dead")
    return [overall_gap(evidence, rounds, run_loss, baseline_loss), *domain_gaps(evidence)]


def overall_gap(evidence: RunEvidence, rounds: np.ndarray, run_loss: np.ndarray, baseline_loss: np.ndarray) -> Finding:
    """Compare the final global loss with the IID baseline's.

    Args:
        evidence: The evidence.
        rounds: Common rounds, ``[K]``.
        run_loss: Losses of the run, ``[K]``.
        baseline_loss: Losses of the baseline, ``[K]``.
    """
    gap, limit = (
        final_gap(evidence.run, evidence.iid_baseline, num_last=int(evidence.thresholds["common"]["last"])),
        evidence.thresholds["gap"]["all"],
    )
    limit = max(limit, noise_interval(run_loss - baseline_loss, int(evidence.thresholds["common"]["last"])))
    message = (
        f"the final loss is {gap:.3f} nats per token above the IID baseline's ({perplexity_change_percent(gap):+.1f} % perplexity)"
        if gap > limit
        else "the final loss does not exceed the IID baseline's by more than the threshold"
    )
    return Finding(
        "loss gap",
        single_run_grade(gap > limit),
        message,
        gap,
        0.0,
        limit,
        "nats per token",
        is_positive=gap > limit,
        in_baseline=False,
        first_round=first_round_above(rounds, run_loss - baseline_loss, limit) if gap > limit else None,
        evidence=(make_series("loss", rounds, run_loss), make_series("loss of the IID baseline", rounds, baseline_loss)),
    )


def domain_gaps(evidence: RunEvidence) -> list[Finding]:
    """Compare the final loss of each domain with the IID baseline's, and report the largest gap."""
    gaps = {
        name: final_gap(evidence.run, evidence.iid_baseline, name, int(evidence.thresholds["common"]["last"]))
        for name in evidence.run.domains_of("loss")
    }
    finite_gaps = {name: value for name, value in gaps.items() if math.isfinite(value)}
    if not finite_gaps:
        return []
    worst, limit = max(finite_gaps, key=lambda name: finite_gaps[name]), evidence.thresholds["gap"]["domain"]
    rounds, run_loss, baseline_loss = align_curves(evidence.run, evidence.iid_baseline, "loss", worst)
    last = int(evidence.thresholds["common"]["last"])
    limit = max(limit, noise_interval(run_loss - baseline_loss, last, len(finite_gaps)))  # corrected for the selection of the worst domain
    positive = finite_gaps[worst] > limit
    baseline_gap = -min(finite_gaps.values())  # the largest gap in the opposite direction, i.e. the effect of selecting the worst domain
    domains = tuple(sorted((name for name in finite_gaps if finite_gaps[name] > limit), key=lambda name: -finite_gaps[name]))
    message = (
        f"the final loss on {worst} is {finite_gaps[worst]:.3f} nats per token above the IID baseline's"
        if positive
        else "no domain's final loss exceeds the IID baseline's by more than the threshold"
    )
    return [
        Finding(
            "domain gap",
            single_run_grade(positive),
            message,
            finite_gaps[worst],
            baseline_gap,
            limit,
            "nats per token",
            is_positive=positive,
            in_baseline=baseline_gap > limit,
            first_round=first_round_above(rounds, run_loss - baseline_loss, limit) if positive else None,
            locations=domains,
            clients=clients_holding(evidence, domains),
            evidence=(
                make_series(f"loss of {worst}", rounds, run_loss),
                make_series(f"loss of {worst} in the IID baseline", rounds, baseline_loss),
            ),
        )
    ]


def first_round_above(rounds: np.ndarray, differences: np.ndarray, threshold: float) -> int:
    """Return the round from which a difference stays above a threshold; the last round if it does not stay above."""
    below = np.flatnonzero(~(differences > threshold))
    start = below[-1] + 1 if len(below) else 0
    return int(rounds[min(start, len(rounds) - 1)])


# Unfairness: the model benefits some clients at the expense of others.
#
# Two conditions must hold: the loss of the worst client exceeds the mean over clients by 0.1 nats more than in the IID baseline, and
# more than 15 % of the clients would have a lower loss with local-only training. A client's excess before the first round is
# subtracted, because it is due to difficult text and not to training. Without the local-only run, unfairness can only be suspected.


def unfairness(evidence: RunEvidence) -> list[Finding]:
    """Detect clients whose loss is far above the mean, and clients that local-only training would serve better."""
    if find_training_divergence(evidence.run, evidence.thresholds)[0]:
        return make_not_measured("unfairness", "a run that has not diverged")
    losses = final_client_losses(evidence.run, evidence)
    if len(losses) < 2 or not np.isfinite(losses).all():
        return make_not_measured("unfairness", "finite losses of at least two clients")
    limit, baseline_losses = evidence.thresholds["unfairness"], final_client_losses(evidence.iid_baseline, evidence)
    excess, baseline_excess = excess_over_mean(evidence.run, losses), excess_over_mean(evidence.iid_baseline, baseline_losses)
    worst, baseline_worst = float(excess.max()), float(baseline_excess.max()) if len(baseline_excess) else math.nan
    local_only_losses = final_client_losses(evidence.local_only, evidence)
    has_local_only = len(local_only_losses) == len(losses)
    harmed = np.flatnonzero(losses > local_only_losses + limit["margin"]) if has_local_only else np.zeros(0, dtype=int)
    share = len(harmed) / len(losses) if has_local_only else math.nan
    positive = bool(worst - (0 if math.isnan(baseline_worst) else baseline_worst) > limit["gap"] and not share <= limit["harmed"])
    order = np.argsort(-excess)
    message = (
        f"the final loss of client {order[0]} is {worst:.3f} nats per token above the clients' mean, not counting its initial excess"
        if positive
        else f"the final loss of the worst client is {worst:.3f} nats per token above the clients' mean, not counting its initial excess"
    )
    message += f" ({baseline_worst:.3f} in the IID baseline)" if math.isfinite(baseline_worst) else ""
    if has_local_only:
        message += f"; {100 * share:.0f} % of the clients would have a lower loss with local-only training"
    rounds = evidence.run.rounds
    table = client_table(evidence.run, "loss")
    worst_excess = worst_excess_per_round(table, evidence.run)
    curves = (make_series("excess of the worst client over the mean", rounds, worst_excess),) if len(table) else ()
    positive_rounds = (
        rounds[worst_excess - (0 if math.isnan(baseline_worst) else baseline_worst) > limit["gap"]] if len(table) else rounds[:0]
    )
    return [
        Finding(
            "unfairness",
            single_run_grade(positive),
            message,
            worst,
            baseline_worst,
            limit["gap"],
            "nats per token",
            is_positive=positive,
            in_baseline=None if math.isnan(baseline_worst) else baseline_worst > limit["gap"],
            first_round=int(positive_rounds[0]) if positive and len(positive_rounds) else None,
            clients=tuple(int(k) for k in (harmed if has_local_only else order[:1])) if positive else (),
            is_confirmable=has_local_only,
            missing_input="" if has_local_only else "a LocalOnly run, in which every client trains alone",
            evidence=curves,
        )
    ]


def final_client_losses(run: Trajectory | None, evidence: RunEvidence) -> np.ndarray:
    """Return the clients' final losses.

    Returns:
        Losses of the large final evaluation or, if there is none, the means of the last evaluations, ``[N]``; empty without losses.
    """
    final = client_table(run, "final.loss")
    values = final if len(final) else client_table(run, "loss")
    if run is None or not np.isfinite(values).any():
        return np.zeros(0)
    measured = np.isfinite(values).any(axis=1)
    means: np.ndarray = values[measured][final_round_indices(run.rounds[measured], int(evidence.thresholds["common"]["last"]))].mean(axis=0)
    return means


def excess_over_mean(run: Trajectory | None, values: np.ndarray) -> np.ndarray:
    """Compute how far losses are above their mean, minus the client's excess before the first round.

    Args:
        run: The run, whose round 0 gives the initial losses.
        values: Losses, ``[..., N]``.

    Returns:
        Excesses, ``[..., N]``. Nothing is subtracted if the initial losses are unknown.
    """
    table, excess = client_table(run, "loss"), values - values.mean(axis=-1, keepdims=True) if len(values) else values
    if not len(table) or run is None or run.rounds[0] != 0 or not np.isfinite(table[0]).all():
        return excess
    initial_excess: np.ndarray = (table[0] - table[0].mean()).clip(0)
    return excess - initial_excess if len(initial_excess) == excess.shape[-1] else excess


def worst_excess_per_round(values: np.ndarray, run: Trajectory) -> np.ndarray:
    """Compute the largest excess over the mean in every round, ``[rounds]``; NaN where a client was not measured."""
    measured = np.isfinite(values).all(axis=1)
    return np.where(measured, excess_over_mean(run, np.where(measured[:, None], values, 0)).max(axis=1), np.nan)
