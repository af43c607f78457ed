"""Client drift: local steps carry the clients apart, and the mean of where they end is not where the mean would go.

The statistic is the diversity of the updates, R = mean |d_k|^2 / |mean d|^2, in the baseline's (log of the ratio of the medians
over the rounds): with sampling noise alone both have the same. It grows with the number K of local steps: where runs with
other K are at hand, the distance apart sqrt(mean |d_k|^2 (1 - 1 / R)) must grow with K, log against log. That it costs
anything is confirmed only by the arm without local steps (FedSGD), which must close half of the loss gap to the baseline.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
from scipy import stats

from ..core.records import Trajectory
from .curves import align_curves, client_table, final_gap, read_curve
from .finding import Finding, RunEvidence, make_finding, make_not_measured, make_series

MAX_DIVERSITY = 1e6  # of R: it has no upper end where the mean update vanishes


def client_drift(case: RunEvidence) -> list[Finding]:
    limit = case.thresholds["drift"]
    rounds, ours, theirs = align_curves(case.run, case.iid_baseline, "update.diversity")
    sound = np.isfinite(ours) & np.isfinite(theirs)
    if sound.sum() < limit["rounds"]:
        return make_not_measured("client drift", f"`update.diversity` of the run and of an IID baseline in {limit['rounds']:.0f} rounds")
    ratio = float(np.median(ours[sound].clip(1, MAX_DIVERSITY)) / np.median(theirs[sound].clip(1, MAX_DIVERSITY)))
    rises, closed = drift_growth_exponent(case), closed_gap_share(case)
    positive = ratio > limit["ratio"] and not rises <= limit["slope"] and not closed < limit["closes"]
    wanting = []
    if math.isnan(rises):
        wanting.append("runs with another number of local steps")
    if math.isnan(closed):
        wanting.append("the same run without local steps (FedSGD) and a loss gap for it to close")
    said = f"the clients' updates are {ratio:.2f} times as diverse as in the baseline"
    if positive and math.isfinite(rises):
        said += f"; they part as K^{rises:.2f} with the local steps K"
    if positive and math.isfinite(closed):
        said += f"; without local steps {closed:.0%} of the loss gap closes"
    return [
        make_finding(
            "client drift",
            math.log(ratio),
            0.0,
            math.log(limit["ratio"]),
            "log ratio to the baseline",
            is_positive=positive,
            message=said,
            in_baseline=False,
            first_round=int(rounds[sound][0]) if positive else None,
            clients=opposing_clients(case),
            locations=most_diverse_layers(case, limit["ratio"]) if positive else (),
            is_confirmable=not wanting,
            missing_input=" and ".join(wanting),
            evidence=(make_series("update.diversity", rounds, ours), make_series("update.diversity of the baseline", rounds, theirs)),
        )
    ]


def drift_growth_exponent(case: RunEvidence) -> float:
    """Of log distance apart in log local steps, over the run and its ladder; NaN without two numbers of steps."""
    points = {steps: client_spread(run) for steps, run in case.local_steps_sweep.items()}
    if case.info.local_steps:
        points[case.info.local_steps] = client_spread(case.run)
    sound = {steps: far for steps, far in points.items() if far > 0 and math.isfinite(far)}
    if len(sound) < 2:
        return math.nan
    return float(np.polyfit(np.log(list(sound)), np.log(list(sound.values())), 1)[0])


def client_spread(run: Trajectory) -> float:
    """How far the clients of a round end from their mean, root mean square, median over the rounds."""
    diversity = read_curve(run, "update.diversity")[1]
    norm = client_table(run, "update.norm")
    if not len(diversity) or not len(norm):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rounds in which nobody trained
        square = np.nanmean(norm[run.observed_mask("update.diversity")] ** 2, axis=1)
        return float(np.nanmedian(np.sqrt(square * (1 - 1 / diversity.clip(1, None)))))


def closed_gap_share(case: RunEvidence) -> float:
    """The share of the loss gap to the baseline that the arm without local steps does not have; NaN where there is none."""
    last = int(case.thresholds["common"]["last"])
    whole, left = (
        final_gap(case.run, case.iid_baseline, num_last=last),
        final_gap(case.run, case.fedsgd, num_last=last) if case.fedsgd else math.nan,
    )
    return left / whole if math.isfinite(left) and whole > case.thresholds["drift"]["floor"] else math.nan


def most_diverse_layers(case: RunEvidence, ratio: float) -> tuple[str, ...]:
    """The layers whose updates are that much more diverse than in the baseline, the worst first."""
    found = {}
    for name in case.run.domains_of("update.diversity"):
        _, ours, theirs = align_curves(case.run, case.iid_baseline, "update.diversity", name)
        if len(ours):
            found[name] = float(np.nanmedian(ours.clip(1, MAX_DIVERSITY)) / np.nanmedian(theirs.clip(1, MAX_DIVERSITY)))
    return tuple(sorted((name for name in found if found[name] > ratio), key=lambda name: -found[name]))


def opposing_clients(case: RunEvidence) -> tuple[int, ...]:
    """Clients whose updates point against the mean update, on average."""
    cosine = client_table(case.run, "update.cosine")
    if not len(cosine):
        return ()
    there = np.isfinite(cosine).any(axis=0)
    return tuple(int(client) for client in np.flatnonzero(there) if np.nanmean(cosine[:, client]) < 0)


# Stale control variates (SCAFFOLD): a client's memory of its gradient is of a model long gone.
#
# The distance of a control c_k from the client's gradient, in lengths of that gradient, grows with the rounds since the client
# last took part. Minibatch noise puts any control off, a fresh one too: where there is a twin, it must be further off than there.
# Beside it the identity c = mean c_k, which holds in every round whoever takes part: where it is broken the algorithm is (a sum
# divided by the cohort, not the fleet), and nothing that it does is a phenomenon.


def control_variates(case: RunEvidence) -> list[Finding]:
    return [*stale_control_variates(case), *control_variate_invariant(case)]


def stale_control_variates(case: RunEvidence) -> list[Finding]:
    limit, (age, far) = case.thresholds["staleness"], age_distance_pairs(case.run)
    if len(age) < limit["pairs"]:
        return make_not_measured(
            "stale control variates", f"`control.age` and `control.staleness` {limit['pairs']:.0f} times; there are {len(age)}"
        )
    if np.ptp(age) == 0:
        return make_not_measured("stale control variates", "partial participation: every control has the same age")
    rho, ratio = rank_correlation(age, far), float(np.median(far))
    others, other = age_distance_pairs(case.iid_baseline)
    base = float(np.median(other)) if len(other) else math.nan
    positive = rho > limit["correlation"] and ratio > limit["ratio"] and not ratio - base <= limit["beyond"]
    said = (
        f"controls are {ratio:.1f} gradients off, the more the older (rho {rho:.2f})"
        if positive
        else f"controls are {ratio:.2f} gradients off, rho {rho:.2f} with their age"
    )
    ages, distances = client_table(case.run, "control.age"), client_table(case.run, "control.staleness")
    seen = np.isfinite(ages) & np.isfinite(distances) if positive else np.zeros((0, 0), dtype=bool)
    far_off = np.where(seen, distances, 0.0).sum(axis=0) / seen.sum(axis=0).clip(1) if positive else np.zeros(0)  # [N]
    shown = base > limit["ratio"] and rank_correlation(others, other) > limit["correlation"]
    return [
        make_finding(
            "stale control variates",
            ratio,
            base,
            limit["ratio"],
            "lengths of the gradient",
            is_positive=positive,
            message=said,
            in_baseline=None if math.isnan(base) else shown,
            first_round=first_stale_round(case.run, limit) if positive else None,
            clients=tuple(int(k) for k in np.flatnonzero(far_off > limit["ratio"])),
            evidence=(make_series("control.age", range(len(age)), age), make_series("control.staleness", range(len(far)), far)),
        )
    ]


def rank_correlation(age: np.ndarray, distance: np.ndarray) -> float:
    """Spearman's correlation of age and distance; 0 where either is all the same."""
    return float(stats.spearmanr(age, distance).statistic) if np.ptp(age) > 0 and np.ptp(distance) > 0 else 0.0


def first_stale_round(run: Trajectory, thresholds: Mapping[str, float]) -> int | None:
    """The first round in which a control was further off than allowed."""
    far = np.nan_to_num(client_table(run, "control.staleness"), nan=0.0)
    over = np.flatnonzero((far > thresholds["ratio"]).any(axis=1))
    return int(run.rounds[over[0]]) if len(over) else None


def age_distance_pairs(run: Trajectory | None) -> tuple[np.ndarray, np.ndarray]:
    """Age and distance wherever both were seen."""
    age, far = client_table(run, "control.age"), client_table(run, "control.staleness")
    if not len(age) or not len(far):
        return np.zeros(0), np.zeros(0)
    both = np.isfinite(age) & np.isfinite(far)
    return age[both], far[both]


def control_variate_invariant(case: RunEvidence) -> list[Finding]:
    rounds, off = read_curve(case.run, "control.imbalance")
    if not len(off):
        return make_not_measured("control-variate invariant violated", "`control.imbalance`")
    limit = case.thresholds["staleness"]
    most = float(np.nanmedian(off[: int(limit["first"])]))
    positive = most > limit["imbalance"]
    said = f"c lies {most:.2g} of its length off the mean of the c_k"
    return [
        make_finding(
            "control-variate invariant violated",
            most,
            0.0,
            limit["imbalance"],
            "of |c|",
            is_positive=positive,
            message=said,
            in_baseline=False,
            is_implementation_error=True,
            first_round=int(rounds[np.flatnonzero(off > limit["imbalance"])[0]]) if positive else None,
            evidence=(make_series("control.imbalance", rounds, off),),
        )
    ]


# Aggregation error of low-rank adapters: the mean of the factors is not the mean of the products.
#
# The error of a round, |mean of products - product of means| over what the round changed, is above .1, and costs: averaging
# exactly in the same round would have given a loss lower by .01 nats. The error is there without heterogeneity too and grows with
# the local steps, so the baseline's is its base. Without the counterfactual loss (`adapters.error.loss`) it is suspected only.


def aggregation_error(case: RunEvidence) -> list[Finding]:
    rounds, error = read_curve(case.run, "adapters.error.update")
    if len(error) < case.thresholds["common"]["shortest"]:
        return make_not_measured(
            "aggregation error",
            f"`adapters.error.update` in {case.thresholds['common']['shortest']:.0f} rounds: adapters, averaged factor by factor",
        )
    limit = case.thresholds["aggregation"]
    mine, theirs = (median_over_rounds(case.run, "adapters.error.update"), median_over_rounds(case.iid_baseline, "adapters.error.update"))
    cost = median_over_rounds(case.run, "adapters.error.loss")
    positive = mine > limit["error"] and not cost <= limit["loss"]
    said = f"averaging factors loses {mine:.1%} of what a round changes"
    if math.isfinite(theirs):
        said += f" ({theirs:.1%} in the baseline)"
    if positive and math.isfinite(cost):
        said += f"; averaging exactly would save {cost:.3f} nats"
    wanting = "" if math.isfinite(cost) else "`adapters.error.loss`: what exact aggregation would have saved in the same round"
    over = np.flatnonzero(error > limit["error"])
    shown = None if math.isnan(theirs) else bool(theirs > limit["error"] and theirs > mine / 2)
    return [
        make_finding(
            "aggregation error",
            mine,
            theirs,
            limit["error"],
            "share of a round",
            is_positive=positive,
            message=said,
            in_baseline=shown,
            first_round=int(rounds[over[0]]) if positive and len(over) else None,
            is_confirmable=not wanting,
            missing_input=wanting,
            evidence=(make_series("adapters.error.update", rounds, error),),
        )
    ]


def median_over_rounds(run: Trajectory | None, metric: str) -> float:
    """The median of a curve over its rounds."""
    values = read_curve(run, metric)[1]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else math.nan
