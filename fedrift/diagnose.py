"""A run against its IID twin: what went worse than it would have without the skew.

One run is one seed: it can raise a suspicion and never confirm one, so a verdict is ``none`` or
``suspected``. Nor is ``none`` a certificate: it names the smallest effect that would have been called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .records import Trajectory

LAST = 5  # evaluations whose mean is the end, never the best one: the usual final statistic, fixed in advance
SHORTEST = 5  # evaluations before anything but a non-finite loss is judged
RISE = 1.5  # divergence: loss above so many times its start ...
CLIMB = math.log(4.0)  # ... and so many nats (four times the perplexity) above its lowest ...
IN_A_ROW = 3  # ... for so many evaluations running
GAP = 0.05  # nats above the twin in all; the margin used for forgetting, about 5 % perplexity
DOMAIN_GAP = 0.1  # nats above the twin in one domain; the margin used for unfairness
SWING_RATIO = 2.0  # times the twin's swing; first looks gave 2.6 and 5 under topic isolation; not calibrated
SWING_FLOOR = 0.02  # nats between evaluations; a smaller swing is harmless whatever the ratio; not calibrated


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
    swing: float  # mean absolute change between evaluations, over domains, in the second half
    swing_ratio: float  # to the twin's
    diverged: bool
    evaluations: int
    reasons: tuple[str, ...]  # what is suspected, one phrase each
    sentence: str


def verdict(run: Trajectory, twin: Trajectory | None = None) -> Verdict:
    """Judge a run by its global and per-domain loss, beside its IID twin where there is one."""
    rounds, loss = evaluated(run)
    diverged = divergence(run)
    start, end = (float(loss[0]), mean_of_last(loss)) if len(loss) else (math.nan, math.nan)
    ours, theirs = shared_rounds(run, twin)
    gap = end_gap(run, twin, "", ours, theirs)
    worst, worst_gap = worst_domain(run, twin, ours, theirs)
    swing, base = second_half_swing(run, rounds), second_half_swing(twin, rounds)
    ratio = swing / base if base > 0 else math.nan

    reasons = []
    if diverged:
        reasons.append(diverged)
    failed = failures(run)
    if failed:
        reasons.append(failed)
    if len(loss) >= SHORTEST and not diverged:
        if gap > GAP:
            reasons.append(f"the end loss is {gap:.3f} nats above the IID twin's "
                           f"({percent(gap):+.1f}% perplexity)")
        if worst_gap > DOMAIN_GAP:
            reasons.append(f"{worst} ends {worst_gap:.3f} nats above the twin")
        if ratio > SWING_RATIO and swing > SWING_FLOOR:
            reasons.append(f"domains swing {ratio:.1f} times as much as in the twin")
    grade = "suspected" if reasons else "none"
    said = sentence(start, end, gap, len(loss), reasons)
    return Verdict(grade, start, end, gap, percent(gap), worst, worst_gap, swing, ratio, bool(diverged),
                   len(loss), tuple(reasons), said)


def sentence(start: float, end: float, gap: float, evaluations: int, reasons: list[str]) -> str:
    """The verdict in plain English."""
    if not evaluations and not reasons:
        return "Nothing has been evaluated yet, so there is nothing to judge."
    told = (f"Loss went from {start:.3f} to {end:.3f} nats per token" if math.isfinite(start + end) else
            f"Loss began at {start:.3f} nats per token and did not end as a finite number")
    if math.isfinite(gap) and (gap <= GAP or not reasons):  # above, it is among the reasons
        side = "above" if gap >= 0 else "below"
        told += f", {abs(gap):.3f} {side} the IID twin ({percent(gap):+.1f}% perplexity)"
    if reasons:
        return f"Suspected: {'; '.join(reasons)}. {told}. One seed can raise a suspicion, not confirm it."
    if evaluations < SHORTEST:
        return f"{told}. Too early to judge: that takes {SHORTEST} evaluations, and there are {evaluations}."
    if math.isnan(gap):
        return f"{told}; no divergence. Without an IID twin the effect of the skew cannot be told."
    return (f"Nothing found that the IID twin has not. {told}. A gap under {GAP} nats in all, or under "
            f"{DOMAIN_GAP} in one domain, would not have been called; and one seed proves nothing.")


def evaluated(run: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """The rounds with a global loss, and that loss; a loss written as NaN stays, a missing one does not."""
    if not run.has("loss"):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    seen = run.seen("loss")
    return run.rounds[seen], run.curve("loss")[seen]


def divergence(run: Trajectory) -> str:
    """What diverged, in words; "" if nothing did.

    A global loss that is not finite, an infinity in any loss or update norm, or a loss above both RISE
    times its start and CLIMB over its lowest for IN_A_ROW evaluations running.
    """
    rounds, loss = evaluated(run)
    odd = rounds[~np.isfinite(loss)]
    if len(odd):
        return f"the loss is not a finite number in round {odd[0]}"
    for record in run.records:
        if math.isinf(record.value) and record.metric in ("loss", "loss.before", "train.loss", "update.norm"):
            where = record.domain or (f"client {record.client}" if record.client >= 0 else "the federation")
            return f"{record.metric} of {where} is infinite in round {record.round}"
    if len(loss) < SHORTEST:
        return ""
    high = loss > np.maximum(RISE * loss[0], np.minimum.accumulate(loss) + CLIMB)
    running = np.convolve(high, np.ones(IN_A_ROW), "valid") == IN_A_ROW
    return f"the loss runs away from round {rounds[running.argmax()]} on" if running.any() else ""


def failures(run: Trajectory) -> str:
    """Which clients were left out because their update was not usable, in words; "" if none was."""
    if not run.has_table("failed"):
        return ""
    table = run.table("failed")
    who = np.flatnonzero((table > 0).any(axis=0))
    if not len(who):
        return ""
    first = run.rounds[(table > 0).any(axis=1).argmax()]
    return f"client {', '.join(map(str, who))} failed, first in round {first}"


def shared_rounds(run: Trajectory, twin: Trajectory | None) -> tuple[np.ndarray, np.ndarray]:
    """Where each of the two has the last evaluations that both have, as indices into its ``rounds``."""
    if twin is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    both = np.intersect1d(evaluated(run)[0], evaluated(twin)[0])[-LAST:]
    return np.searchsorted(run.rounds, both), np.searchsorted(twin.rounds, both)


def end_gap(run: Trajectory, twin: Trajectory | None, domain: str,
            ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean loss of the last shared evaluations, above the twin's; NaN where either has none."""
    if twin is None or not len(ours) or not (run.has("loss", domain) and twin.has("loss", domain)):
        return math.nan
    return float(run.curve("loss", domain)[ours].mean() - twin.curve("loss", domain)[theirs].mean())


def worst_domain(run: Trajectory, twin: Trajectory | None,
                 ours: np.ndarray, theirs: np.ndarray) -> tuple[str, float]:
    """The domain with the largest gap and that gap; without a twin the one with the highest loss, and NaN."""
    domains = run.domains_of("loss")
    gaps = {domain: end_gap(run, twin, domain, ours, theirs) for domain in domains}
    known = {domain: gap for domain, gap in gaps.items() if math.isfinite(gap)}
    if known:
        worst = max(known, key=lambda domain: known[domain])
        return worst, known[worst]
    last = {domain: run.curve("loss", domain)[run.seen("loss", domain)][-1] for domain in domains}
    last = {domain: loss for domain, loss in last.items() if math.isfinite(loss)}
    return (max(last, key=lambda domain: last[domain]) if last else ""), math.nan


def second_half_swing(run: Trajectory | None, rounds: np.ndarray) -> float:
    """Mean absolute change of a domain's loss between evaluations, in the second half of ``rounds``.

    Over the rounds that are given, so that a run and its twin are measured on the same ones. NaN without
    domains or with fewer than two evaluations there.
    """
    if run is None:
        return math.nan
    late = np.isin(run.rounds, rounds[len(rounds) // 2:])
    changes = [np.abs(np.diff(run.curve("loss", domain)[late])) for domain in run.domains_of("loss")]
    every = np.concatenate(changes) if changes else np.zeros(0)
    every = every[np.isfinite(every)]
    return float(every.mean()) if len(every) else math.nan


def mean_of_last(loss: np.ndarray) -> float:
    """The final statistic; NaN if one of the last evaluations was."""
    return float(loss[-LAST:].mean())


def percent(gap: float) -> float:
    """A difference of losses in nats as per cent of perplexity."""
    return math.inf if gap > 700 else 100 * math.expm1(gap)
