"""Detect forgetting of general text, syntax and domains of absent clients, and collapse of the representation.

General text is not part of any client's training data. Forgetting means that its loss increases, and more than in the IID baseline.
Syntax is tested with minimal pairs. Forgetting means that the accuracy, or the margin of the log-probabilities, decreases more than
in the baseline. An increase of the loss alone is not forgetting of syntax.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..core.lazy_imports import stats
from ..core.records import Trajectory
from .failures import find_training_divergence
from .finding import (
    Finding,
    RunEvidence,
    align_curves,
    client_table,
    domain_holders,
    find_last_layer,
    make_not_measured,
    make_series,
    noise_interval,
    read_curve,
    single_run_grade,
)


def forgetting_general_text(evidence: RunEvidence) -> list[Finding]:
    """Detect a loss on general text that increases more than in the IID baseline."""
    rounds, loss = read_curve(evidence.run, "general.loss")
    if len(loss) < 2 or find_training_divergence(evidence.run, evidence.thresholds)[0]:
        return make_not_measured(
            "forgetting of general text", "`general.loss` in at least two evaluations, and a run that has not diverged"
        )
    limit, baseline_increase = evidence.thresholds["forgetting"]["general"], net_increase(evidence.iid_baseline, "general.loss", evidence)
    increase = net_increase(evidence.run, "general.loss", evidence)
    positive = increase > limit and not increase - baseline_increase <= max(limit, baseline_noise(evidence, "general.loss"))
    message = (
        f"the loss on general text increased by {increase:.3f} nats per token"
        + (f" ({baseline_increase:.3f} in the IID baseline)" if math.isfinite(baseline_increase) else "")
        if positive
        else "general text is not forgotten"
    )
    rows = np.flatnonzero(loss - loss[0] > limit)
    return [
        Finding(
            "forgetting of general text",
            single_run_grade(positive),
            message,
            increase,
            baseline_increase,
            limit,
            "nats per token",
            is_positive=positive,
            in_baseline=None if math.isnan(baseline_increase) else baseline_increase > limit,
            first_round=int(rounds[rows[0]]) if positive and len(rows) else None,
            evidence=(make_series("general.loss", rounds, loss),),
        )
    ]


def forgetting_syntax(evidence: RunEvidence) -> list[Finding]:
    """Detect an accuracy or margin of minimal pairs that decreases more than in the IID baseline."""
    rounds, accuracy = read_curve(evidence.run, "syntax.accuracy")
    margin_rounds, margin = read_curve(evidence.run, "syntax.margin")
    if len(accuracy) < 2 and len(margin) < 2:
        return make_not_measured("forgetting of syntax", "`syntax.accuracy` or `syntax.margin` in at least two evaluations")
    limit = evidence.thresholds["forgetting"]
    drops = {
        name: (-net_increase(evidence.run, f"syntax.{name}", evidence), -net_increase(evidence.iid_baseline, f"syntax.{name}", evidence))
        for name in ("accuracy", "margin")
    }
    initial_margin = abs(float(margin[0])) or math.nan if len(margin) else math.nan
    scaled = {"accuracy": drops["accuracy"], "margin": (drops["margin"][0] / initial_margin, drops["margin"][1] / initial_margin)}
    noise = {"accuracy": baseline_noise(evidence, "syntax.accuracy"), "margin": baseline_noise(evidence, "syntax.margin") / initial_margin}
    is_forgotten = {name: is_beyond_baseline(*scaled[name], limit[name], noise[name]) for name in scaled}
    worst = max(scaled, key=lambda name: -math.inf if math.isnan(scaled[name][0]) else scaled[name][0] / limit[name])
    (drop, baseline_drop), positive = scaled[worst], any(is_forgotten.values())
    description = {
        "accuracy": "of the minimal pairs are no longer judged correctly",
        "margin": "of the log-probability margin of minimal pairs is lost",
    }[worst]
    message = f"{100 * drop:.1f} % {description}" if positive else "syntax is not forgotten"
    message += f" ({100 * baseline_drop:.1f} % in the IID baseline)" if positive and math.isfinite(baseline_drop) else ""
    curves = {"accuracy": (rounds, accuracy), "margin": (margin_rounds, margin / initial_margin)}
    in_baseline = None if math.isnan(baseline_drop) else any(scaled[name][1] > limit[name] for name in scaled)
    return [
        Finding(
            "forgetting of syntax",
            single_run_grade(positive),
            message,
            drop,
            baseline_drop,
            limit[worst],
            f"share of {worst}",
            is_positive=positive,
            in_baseline=in_baseline,
            locations=most_forgotten_phenomena(evidence, limit["accuracy"]) if positive else (),
            first_round=first_round_below(*curves[worst], limit[worst]) if positive else None,
            evidence=(make_series("syntax.accuracy", rounds, accuracy), make_series("syntax.margin", margin_rounds, margin)),
        )
    ]


def first_round_below(rounds: np.ndarray, values: np.ndarray, threshold: float) -> int | None:
    """Return the first round in which a curve is below its first value by more than a threshold, or None."""
    rows = np.flatnonzero(values < values[0] - threshold) if len(values) else np.zeros(0, dtype=int)
    return int(rounds[rows[0]]) if len(rows) else None


def is_beyond_baseline(drop: float, baseline: float, threshold: float, noise: float) -> bool:
    """Return whether a drop exceeds the threshold and the baseline's drop.

    Args:
        drop: Drop of the run.
        baseline: Drop of the IID baseline; NaN without a baseline.
        threshold: Smallest relevant drop, and smallest relevant difference from the baseline.
        noise: Difference from the baseline that may occur by chance, or NaN.
    """
    return drop > threshold and not drop - baseline <= (threshold if math.isnan(noise) else max(threshold, noise))


def baseline_noise(evidence: RunEvidence, metric: str) -> float:
    """Compute how large the final difference from the IID baseline may be by chance."""
    _, run_values, baseline_values = align_curves(evidence.run, evidence.iid_baseline, metric)
    return noise_interval(run_values - baseline_values, min(int(evidence.thresholds["common"]["last"]), max(1, len(run_values) // 4)))


def most_forgotten_phenomena(evidence: RunEvidence, threshold: float) -> tuple[str, ...]:
    """Return the phenomena whose accuracy dropped by more than a threshold, the largest drop first."""
    drops = (
        {name: -net_increase(evidence.run, "syntax.accuracy", evidence, name) for name in evidence.run.domains_of("syntax.accuracy")}
        if "syntax.accuracy" in evidence.run.metrics
        else {}
    )
    return tuple(sorted((name for name in drops if drops[name] > threshold), key=lambda name: -drops[name]))


def net_increase(run: Trajectory | None, metric: str, evidence: RunEvidence, domain: str = "") -> float:
    """Compute the increase of a metric from its first value to the mean of its last values.

    Args:
        run: The run, or None.
        metric: Name of the metric.
        evidence: The evidence, for its thresholds.
        domain: Name of the domain; "" is the whole federation.

    Returns:
        The increase; NaN with fewer than two values. With few values, the mean is over fewer than ``common.last`` values.
    """
    values = read_curve(run, metric, domain)[1]
    if len(values) < 2:
        return math.nan
    last = min(int(evidence.thresholds["common"]["last"]), max(1, len(values) // 4))
    return float(values[-last:].mean() - values[0])


# Forgetting during absence: a domain gets worse while none of its clients participate, and recovers when one returns.
#
# An absence is a sequence of evaluated rounds in which no client of the cohort holds the domain. A client holds a domain if its share
# of it is at least half the overall share. The increase of the domain's loss from the last round with a holder to the end of the
# absence, minus the IID baseline's in the same rounds, is averaged over absences. It must also grow with the length of the absence:
# the slope of the increase over the rounds of absence, after subtracting the mean of each domain (a regression with domains as fixed
# effects), is tested one-sided.

FORGETTING_DURING_ABSENCE = "forgetting during absence"


class Absence(NamedTuple):
    """One evaluated round of an absence."""

    domain: str
    last_present_round: int  # the last round in which a holder participated
    rounds: int  # rounds of absence so far
    increase: float  # increase of the domain's loss since then, in nats per token


def forgetting_during_absence(evidence: RunEvidence) -> list[Finding]:
    """Detect domains whose loss increases while none of their clients participate."""
    limit = evidence.thresholds["forgetting"]
    if find_training_divergence(evidence.run, evidence.thresholds)[0]:
        return make_not_measured(FORGETTING_DURING_ABSENCE, "a run that has not diverged")
    if not evidence.info.domains or not len(participation_mask(evidence.run)):
        return make_not_measured(
            FORGETTING_DURING_ABSENCE, "the domains of each client and the cohort of each round (`train.steps` or `update.norm`)"
        )
    is_holder = domain_holders(evidence.info, limit["holder"])
    absences = list_absences(evidence.run, evidence.info.domains, is_holder, evidence.iid_baseline)
    last_rounds = [
        absence
        for index, absence in enumerate(absences)  # the last round of each absence
        if index + 1 == len(absences) or absences[index + 1][:2] != absence[:2]
    ]
    if len(last_rounds) < limit["episodes"]:
        return make_not_measured(
            FORGETTING_DURING_ABSENCE, f"at least {limit['episodes']:.0f} absences of all clients of a domain; there are {len(last_rounds)}"
        )
    mean_increase = float(np.mean([absence.increase for absence in last_rounds]))
    slope, p = fit_trend(absences)
    positive = mean_increase > limit["absent"] and p < limit["p"]
    increases = {
        name: np.mean([absence.increase for absence in last_rounds if absence.domain == name])
        for name in sorted({absence.domain for absence in last_rounds})
    }
    domains = tuple(sorted((name for name in increases if increases[name] > limit["absent"]), key=lambda name: -increases[name]))
    holders = {client for name in domains for client in np.flatnonzero(is_holder[:, evidence.info.domains.index(name)])}
    beyond = " beyond the IID baseline" if evidence.iid_baseline is not None else ""
    message = (
        f"a domain's loss increases by {mean_increase:.3f} nats per token{beyond} while none of its clients participate "
        f"({slope:.3f} per round of absence)"
        if positive
        else f"a domain's loss changes by {mean_increase:+.3f} nats per token{beyond} while none of its clients participate"
    )
    baseline = math.nan if evidence.iid_baseline is None else 0.0
    return [
        Finding(
            FORGETTING_DURING_ABSENCE,
            single_run_grade(positive),
            message,
            mean_increase,
            baseline,
            limit["absent"],
            "nats per token",
            is_positive=positive,
            in_baseline=None if evidence.iid_baseline is None else False,
            first_round=last_rounds[0].last_present_round if positive else None,
            clients=tuple(sorted(map(int, holders))) if positive else (),
            locations=domains if positive else (),
            evidence=(
                make_series("rounds absent", [a.last_present_round + a.rounds for a in absences], [a.rounds for a in absences]),
                make_series("increase", [a.last_present_round + a.rounds for a in absences], [a.increase for a in absences]),
            ),
        )
    ]


def participation_mask(run: Trajectory) -> np.ndarray:
    """Return which clients participated in which round, ``[rounds, N]`` bool; without rounds if it was not recorded."""
    for metric in ("train.steps", "update.norm", "train.loss"):
        values = client_table(run, metric)
        if len(values):
            return np.isfinite(values) & (values > 0)
    return np.zeros((0, 0), dtype=bool)


def list_absences(run: Trajectory, domains: tuple[str, ...], is_holder: np.ndarray, baseline: Trajectory | None) -> list[Absence]:
    """List every evaluated round of every absence.

    Args:
        run: The run.
        domains: Names of J domains.
        is_holder: Which client holds which domain, ``[N, J]`` bool.
        baseline: The IID baseline, whose losses are subtracted, or None.

    Returns:
        The rounds of absence, ordered by domain and round.
    """
    participates, absences = participation_mask(run), []
    participates = (
        participates[:, : len(is_holder)]
        if participates.shape[1] >= len(is_holder)
        else np.pad(participates, ((0, 0), (0, len(is_holder) - participates.shape[1])))
    )
    for index, name in enumerate(domains):
        if not run.has_curve("loss", name):
            continue
        loss = run.curve("loss", name)
        if baseline is not None:
            loss = loss - losses_at_rounds(baseline, name, run.rounds)
        last_present, present_loss, rounds_absent = -1, math.nan, 0
        for row in range(len(run.rounds)):
            if (participates[row] & is_holder[:, index]).any():
                last_present, present_loss, rounds_absent = int(run.rounds[row]), loss[row], 0
            elif last_present >= 0:
                rounds_absent += 1
                if math.isfinite(loss[row]) and math.isfinite(present_loss):
                    absences.append(Absence(name, last_present, rounds_absent, float(loss[row] - present_loss)))
    return absences


def losses_at_rounds(baseline: Trajectory, name: str, rounds: np.ndarray) -> np.ndarray:
    """Return the baseline's loss of a domain in some rounds; NaN where it has none."""
    values = np.full(len(rounds), np.nan)
    if baseline.has_curve("loss", name):
        _, target, source = np.intersect1d(rounds, baseline.rounds, return_indices=True)
        values[target] = baseline.curve("loss", name)[source]
    return values


def fit_trend(absences: list[Absence]) -> tuple[float, float]:
    """Fit the slope of the increase over the rounds of absence within domains, and compute its one-sided p-value."""
    names = sorted({absence.domain for absence in absences})
    x, y = [np.array([getattr(absence, field) for absence in absences], dtype=float) for field in ("rounds", "increase")]
    for name in names:
        rows = np.array([absence.domain == name for absence in absences])
        x[rows], y[rows] = x[rows] - x[rows].mean(), y[rows] - y[rows].mean()
    degrees_of_freedom = len(absences) - len(names) - 1
    if degrees_of_freedom < 1 or not (x @ x) > 0:
        return 0.0, 1.0
    slope = float(x @ y / (x @ x))
    standard_error = float(np.sqrt(((y - slope * x) ** 2).sum() / degrees_of_freedom / (x @ x)))
    return slope, float(stats.t.sf(slope / standard_error, degrees_of_freedom)) if standard_error > 0 else float(slope <= 0)


# Collapse of the representation: the hidden states of the last layer use few directions, or become similar to each other.
#
# The effective rank of the hidden states falls below 0.7 of the pretrained model's, or their mean cosine increases by 0.15. Either
# change must also exceed that of the centralized run or, if there is none, of the IID baseline, because fine-tuning alone reduces the
# rank too.


def representation_collapse(evidence: RunEvidence) -> list[Finding]:
    """Detect hidden states whose effective rank falls or whose mean cosine increases."""
    if not {"hidden.rank.ratio", "hidden.anisotropy"} & set(evidence.run.metrics):
        return make_not_measured("representation collapse", "`hidden.rank.ratio` or `hidden.anisotropy`")
    limit = evidence.thresholds["collapse"]
    reference = evidence.centralized if evidence.centralized is not None else evidence.iid_baseline
    run_change, reference_change = measure_collapse(evidence.run), measure_collapse(reference)
    reference_values = [math.nan if reference is None else reference_change[name] for name in ("rank", "anisotropy")]
    exceeded = [
        name
        for name, reference_value in zip(("rank", "anisotropy"), reference_values, strict=True)
        if run_change[name] > limit[name] and not run_change[name] - reference_value <= limit[name] / 2
    ]
    worst = max(
        exceeded or run_change,
        key=lambda name: float(np.nanmax([run_change[name] / limit[name], reference_change[name] / limit[name], -np.inf])),
    )
    descriptions = {
        "rank": f"the last layer has lost {100 * run_change['rank']:.0f} % of its effective rank",
        "anisotropy": f"the mean cosine between hidden states of the last layer increased by {run_change['anisotropy']:.2f}",
    }
    reference_value = reference_change[worst] if reference is not None else math.nan
    metric = {"rank": "hidden.rank.ratio", "anisotropy": "hidden.anisotropy"}[worst]
    layer = find_last_layer(evidence.run, metric)
    rounds, values = read_curve(evidence.run, metric, layer)
    unit = {"rank": "share of rank", "anisotropy": "cosine"}[worst]
    message = " and ".join(descriptions[name] for name in exceeded) or "the representation has not collapsed"
    return [
        Finding(
            "representation collapse",
            single_run_grade(bool(exceeded)),
            message,
            run_change[worst],
            reference_value,
            limit[worst],
            unit,
            is_positive=bool(exceeded),
            in_baseline=None if reference is None else any(reference_change[name] > limit[name] for name in reference_change),
            first_round=first_collapsed_round(rounds, values, worst, limit[worst]) if exceeded else None,
            locations=(layer,) if layer else (),
            evidence=(make_series(metric, rounds, values),),
        )
    ]


def measure_collapse(run: Trajectory | None) -> dict[str, float]:
    """Compute the loss of effective rank and the increase of the mean cosine in the last layer at the end of a run."""
    changes = {"rank": math.nan, "anisotropy": math.nan}
    if run is None:
        return changes
    for name, metric in (("rank", "hidden.rank.ratio"), ("anisotropy", "hidden.anisotropy")):
        values = read_curve(run, metric, find_last_layer(run, metric) if metric in run.metrics else "")[1]
        if len(values):
            changes[name] = float(1 - values[-1] if name == "rank" else values[-1] - values[0])
    return changes


def first_collapsed_round(rounds: np.ndarray, values: np.ndarray, name: str, threshold: float) -> int | None:
    """Return the first round in which the rank or the mean cosine exceeds the threshold, or None."""
    rows = np.flatnonzero(1 - values > threshold if name == "rank" else values - values[0] > threshold)
    return int(rounds[rows[0]]) if len(rows) else None
