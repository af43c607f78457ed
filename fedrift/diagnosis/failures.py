"""Detect training failures: dead models, training divergence, exploding updates and failed clients.

Dead model: training destroyed the model, although its loss is finite. At a learning rate of 1e30, for example, all weights can
become 1e30. Normalization then makes every activation 0 and all logits equal. The loss is ln V for a vocabulary of V tokens, which
may be below the initial loss; gradients are 0 and the weights no longer change. On other processors the same run produces NaN,
depending on rounding. Each of two signs is sufficient:

- The last evaluation, of the federation and of every domain, is equal to ln V within the rounding error of single precision
  (``uniform`` nats). A model with random weights is near ln V, but not that near, because its logits differ.
- A client's update exploded (threshold ``explosion``), or the norm of the trained weights grew by more than the same factor from
  one round to the next. From then on all gradients are below ``vanished`` times the largest previous gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ..core.records import Record, RecordColumns, Trajectory, final_round_indices
from .finding import THRESHOLDS, Finding, RunEvidence, client_table, make_not_measured, make_series, read_curve, single_run_grade

DEAD_MODEL = "dead model"


def dead_model(evidence: RunEvidence) -> list[Finding]:
    """Detect a model that gives equal probability to all tokens, or whose gradients vanished after an explosion."""
    if not has_dead_model_records(evidence.run):
        return make_not_measured(DEAD_MODEL, "`loss.uniform` with a loss after round 0, or `update.relative` and `gradient.norm`")
    reason, since = find_dead_model(evidence.run, evidence.thresholds)
    in_baseline = (
        None
        if evidence.iid_baseline is None or not has_dead_model_records(evidence.iid_baseline)
        else bool(find_dead_model(evidence.iid_baseline, evidence.thresholds)[0])
    )
    curves = [make_series(metric, *read_curve(evidence.run, metric)) for metric in ("loss", "model.norm", "gradient.norm")]
    return [
        Finding(
            DEAD_MODEL,
            single_run_grade(bool(reason)),
            reason or "the model is not dead",
            float(bool(reason)),
            math.nan if in_baseline is None else float(in_baseline),
            0.5,
            "occurrences",
            is_positive=bool(reason),
            in_baseline=in_baseline,
            first_round=since,
            is_event=True,
            evidence=tuple(series for series in curves if series.rounds),
        )
    ]


def has_dead_model_records(run: Trajectory) -> bool:
    """Return whether a run has the records that one of the two signs is computed from."""
    rounds, _ = read_curve(run)
    return bool(run.has_curve("loss.uniform") and (rounds > 0).any()) or (
        len(client_table(run, "update.relative")) > 0 and len(client_table(run, "gradient.norm")) > 0
    )


def find_dead_model(run: Trajectory | None, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Find out whether and since when a model is dead.

    Returns:
        The reason in plain English and the first round; ("", None) if no sign was found.
    """
    if run is None:
        return "", None
    since = find_uniform_loss_round(run, thresholds["dead_model"]["uniform"])
    if since is not None:
        level = run.curve("loss.uniform")[run.observed_mask("loss.uniform")][0]
        return (
            f"the model is dead: from round {since} on, its loss is {level:.4f} nats per token (ln {math.exp(level):.0f}), "
            "so it assigns the same probability to every token"
        ), since
    since = find_vanished_gradient_round(run, thresholds["explosion"]["relative"], thresholds["dead_model"]["vanished"])
    if since is not None:
        return (
            f"the model is dead: its weights or a client's update exploded in round {since - 1}, and from round {since} on, "
            "its gradients are almost 0"
        ), since
    return "", None


def find_uniform_loss_round(run: Trajectory, tolerance: float) -> int | None:
    """Return the first round from which every loss stays within ``tolerance`` of ln V; None if the last loss does not."""
    rounds, loss = read_curve(run)
    if not run.has_curve("loss.uniform") or not (rounds > 0).any():
        return None
    level = run.curve("loss.uniform")[run.observed_mask("loss.uniform")][0]
    is_uniform = (np.abs(loss - level) <= tolerance) & (rounds > 0)
    for domain in run.domains_of("loss"):
        values = run.curve("loss", domain)[np.isin(run.rounds, rounds)]
        is_uniform &= ~(np.abs(values - level) > tolerance)  # a missing domain loss (NaN) does not count against it
    different = np.flatnonzero(~is_uniform)
    start = int(different[-1]) + 1 if len(different) else 0
    return int(rounds[start]) if start < len(rounds) else None


def find_vanished_gradient_round(run: Trajectory, explosion_ratio: float, vanishing_ratio: float) -> int | None:
    """Find the round after an explosion from which all gradients have vanished.

    Args:
        run: The run.
        explosion_ratio: Smallest relative norm of an exploding update, and smallest growth factor of exploding weights.
        vanishing_ratio: Largest vanished gradient, relative to the largest gradient before.

    Returns:
        The round; None without an explosion, or if there were larger gradients after it.
    """
    relative, gradients = client_table(run, "update.relative"), client_table(run, "gradient.norm")
    if not len(relative) or not len(gradients):
        return None
    exploded = (relative > explosion_ratio).any(axis=1)
    rounds, norm = read_curve(run, "model.norm")
    grown = (norm[1:] > explosion_ratio * norm[:-1]) & (norm[:-1] > 0)
    # ``model.norm`` is measured before training, so the previous round exploded.
    exploded |= np.isin(run.rounds, rounds[1:][grown] - 1)
    measured = np.isfinite(gradients).any(axis=1)
    largest = np.where(measured, np.nan_to_num(gradients, nan=0.0).max(axis=1), np.nan)  # [rounds]
    for row in np.flatnonzero(exploded):
        before, after = largest[: row + 1][measured[: row + 1]], largest[row + 1 :][measured[row + 1 :]]
        if len(before) and len(after) and before.max() > 0 and (after <= vanishing_ratio * before.max()).all():
            return int(run.rounds[row]) + 1
    return None


# Training divergence: the loss leaves the values of a trained model. Each of these conditions is sufficient:
#
# - The global loss is not finite, or a client's loss or update is infinite.
# - For ``in_a_row`` evaluations, the loss is above ``rise`` times its initial value and ``climb`` nats above its minimum.
# - The server's step grows by the factor ``growth`` per round for ``growing`` rounds, while the loss increases.
# - No client's update is finite. The server ignores such updates, so the loss may stay finite although no client trains.
# - The model is dead. Its loss is finite and may be low.
# - The final loss (mean of the last evaluations) is more than ``above`` nats above the loss of the untrained model in round 0. This
#   needs no baseline and no noise estimate, because every evaluation uses the same held-out text.
#
# Heterogeneity is the cause if the IID baseline is stable. On quadratics of curvature 1 and 9.5 with ten local steps, the baseline
# is stable up to a learning rate of 0.381 and the heterogeneous run up to 0.2176. If both end above their initial loss,
# heterogeneity is not the cause.

FINITE_METRICS = ("loss", "loss.before", "train.loss", "update.norm", "update.step")
DIVERGENCE_METRICS = (
    *FINITE_METRICS,
    "failed",
    "gradient.norm",
    "loss.uniform",
    "model.norm",
    "update.relative",
)  # the metrics that ``find_training_divergence`` reads


def divergence(evidence: RunEvidence) -> list[Finding]:
    """Detect a run that diverged, whose model is dead, or that ends above its initial loss."""
    rounds, loss = read_curve(evidence.run)
    reason, since = find_divergence(evidence.run, evidence.thresholds)
    if not reason and len(loss) < evidence.thresholds["common"]["shortest"]:
        return make_not_measured(
            "divergence", f"at least {evidence.thresholds['common']['shortest']:.0f} evaluations of the loss; there are {len(loss)}"
        )
    baseline_reason = find_divergence(evidence.iid_baseline, evidence.thresholds)[0] if evidence.iid_baseline is not None else ""
    if reason and evidence.iid_baseline is not None:
        if (
            excess_over_initial_loss(evidence.run, evidence.thresholds) is not None
            and excess_over_initial_loss(evidence.iid_baseline, evidence.thresholds) is not None
        ):
            reason += ", and the IID baseline also ends above its initial loss, so heterogeneity is not the cause"
        elif baseline_reason:
            reason += ", and the IID baseline also diverges, so heterogeneity is not the cause"
    in_baseline = None if evidence.iid_baseline is None else bool(baseline_reason)
    baseline = float(bool(baseline_reason)) if evidence.iid_baseline is not None else np.nan
    return [
        Finding(
            "divergence",
            single_run_grade(bool(reason)),
            reason or "the run has not diverged",
            float(bool(reason)),
            baseline,
            0.5,
            "occurrences",
            is_positive=bool(reason),
            in_baseline=in_baseline,
            first_round=since,
            is_event=True,
            evidence=(make_series("loss", rounds, loss),),
        )
    ]


def find_divergence(run: Trajectory | None, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Find out whether and since when a run diverged, including a final loss above the untrained model's.

    Returns:
        The reason in plain English and the first round; ("", None) if it did not.
    """
    reason, since = find_training_divergence(run, thresholds)
    excess = None if reason else excess_over_initial_loss(run, thresholds)
    if excess is None:
        return reason, since
    assert run is not None
    rounds, loss = read_curve(run)
    initial_loss, tolerance = loss[0], thresholds["divergence"]["above"]
    good = np.flatnonzero(loss <= initial_loss + tolerance)
    return (
        f"the run ends {excess:.3f} nats per token above the loss of the untrained model ({initial_loss:.3f}), so training made the model "
        "worse",
        int(rounds[min(int(good[-1]) + 1, len(rounds) - 1)]),
    )


def excess_over_initial_loss(run: Trajectory | None, thresholds: Mapping[str, Mapping[str, float]]) -> float | None:
    """Compute how far the mean of the last evaluations is above the loss in round 0.

    Returns:
        The excess in nats; None if it is within the threshold, or if there are too few evaluations or none in round 0.
    """
    rounds, loss = read_curve(run)
    if len(loss) < thresholds["common"]["shortest"] or rounds[0] != 0:
        return None
    excess = float(loss[final_round_indices(rounds, int(thresholds["common"]["last"]))].mean() - loss[0])
    return excess if excess > thresholds["divergence"]["above"] else None


def find_training_divergence(run: Trajectory | None, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Find out whether and since when a run diverged, not including a final loss above the untrained model's.

    Returns:
        The reason in plain English and the first round; ("", None) if it did not.
    """
    if run is None:
        return "", None
    for find_sign in DIVERGENCE_SIGNS:
        reason, since = find_sign(run, thresholds)
        if reason:
            return reason, since
    return "", None


def find_non_finite_loss(run: Trajectory, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Find the first evaluation whose loss is not a finite number."""
    rounds, loss = read_curve(run)
    non_finite = rounds[~np.isfinite(loss)]
    return (f"the loss is not a finite number in round {non_finite[0]}", int(non_finite[0])) if len(non_finite) else ("", None)


def find_infinite_metric(run: Trajectory, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Find the first infinite record of a loss or of an update of a client, a domain or the federation."""
    records = RecordColumns.from_records(run.records)
    for index in np.flatnonzero(np.isinf(records.value)):
        record = records[int(index)]
        if record.metric in FINITE_METRICS:
            source = record.domain or (f"client {record.client}" if record.client >= 0 else "the federation")
            return f"{record.metric} of {source} is infinite in round {record.round}", record.round
    return "", None


def find_rounds_without_updates(run: Trajectory, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Find the first of ``in_a_row`` rounds in which no client's update is finite; or the first round, if none ever is."""
    failed = client_table(run, "failed")
    all_failed = np.isfinite(failed).any(axis=1) & (np.nan_to_num(failed, nan=1.0) > 0).all(axis=1) if len(failed) else np.zeros(0)
    first_row = find_first_streak(all_failed, int(thresholds["divergence"]["in_a_row"]))  # fewer such rounds are not training divergence
    if first_row is None and all_failed.any() and all_failed[np.isfinite(failed).any(axis=1)].all():  # no client ever trained successfully
        first_row = int(all_failed.argmax())
    if first_row is None:
        return "", None
    return f"no client's update is finite from round {run.rounds[first_row]} on", int(run.rounds[first_row])


def find_rising_loss(run: Trajectory, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Find the first of ``in_a_row`` evaluations with a loss far above its initial value and its minimum so far."""
    limit, (rounds, loss) = thresholds["divergence"], read_curve(run)
    if len(loss) < thresholds["common"]["shortest"]:
        return "", None
    too_high = loss > np.maximum(limit["rise"] * loss[0], np.minimum.accumulate(loss) + limit["climb"])
    start = find_first_streak(too_high, int(limit["in_a_row"]))
    return ("", None) if start is None else (f"the loss diverges from round {rounds[start]} on", int(rounds[start]))


def find_growing_steps(run: Trajectory, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Find the first of ``growing`` rounds in which the server's step grows by the factor ``growth`` and the loss increases."""
    limit, (rounds, loss), (step_rounds, step) = thresholds["divergence"], read_curve(run), read_curve(run, "update.step")
    if len(loss) < thresholds["common"]["shortest"] or len(step) <= limit["growing"]:
        return "", None
    start = find_first_streak((step[1:] >= limit["growth"] * step[:-1]) & (step[1:] > 0), int(limit["growing"]))
    if start is None:
        return "", None
    first_index, last_index = np.searchsorted(rounds, [step_rounds[start], step_rounds[start + int(limit["growing"])]])
    if last_index < len(loss) and loss[last_index] > loss[first_index]:
        return f"the server's steps and the loss grow from round {step_rounds[start]} on", int(step_rounds[start])
    return "", None


# The first sign that a run shows is reported.
DIVERGENCE_SIGNS = (
    find_dead_model,
    find_non_finite_loss,
    find_infinite_metric,
    find_rounds_without_updates,
    find_rising_loss,
    find_growing_steps,
)


def has_worse_final_loss(run: Trajectory, num_last: int = 3) -> bool:
    """Return whether the mean of the ``num_last`` last evaluations is above the loss before round 1.

    This is not a finding, because small differences are noise. The search for the largest stable setting needs it in addition to
    ``find_training_divergence``. The loss of a destroyed language model is bounded (for `pocket` it is 7, from 4.6 initially), so it
    need not reach ``rise`` times its initial value.
    """
    _, loss = read_curve(run)
    return bool(len(loss) > num_last and loss[-num_last:].mean() > loss[0])


def find_first_streak(mask: np.ndarray, length: int) -> int | None:
    """Return the first index from which a mask is true ``length`` times in a row, or None."""
    if len(mask) < length:
        return None
    is_streak = np.convolve(mask, np.ones(length), "valid") == length
    return int(is_streak.argmax()) if is_streak.any() else None


# Exploding updates: the norm of a client's update is many times that of the trained weights that the client received.
#
# The threshold ``relative`` in ``thresholds.yaml`` is derived. One Adam step changes a weight by at most about the learning rate
# (Kingma & Ba, ICLR 2015, arXiv:1412.6980, section 2.1), so K steps with rate lr move P weights by at most lr K sqrt(P). The norm of
# the trained weights relative to their number is smallest for LoRA. There, A has the initial norm sqrt(R / 3), and A and B have
# P = 2 D R weights at width D. The ratio is therefore at most lr K sqrt(6 D): 16 for 100 steps of 1e-3 at D = 4,096, and less if
# steps have different directions. SGD with clipped gradients moves by at most lr K clip. In the 260 runs of studies/results the
# largest ratio is 23, in a run that diverged; it is below 1 in runs whose loss decreased.

EXPLODING_UPDATES = "exploding updates"


def exploding_updates(evidence: RunEvidence) -> list[Finding]:
    """Detect clients whose update is many times larger than the trained weights that they received."""
    ratios, baseline_ratios = client_table(evidence.run, "update.relative"), client_table(evidence.iid_baseline, "update.relative")
    if not len(ratios):
        return make_not_measured(EXPLODING_UPDATES, "`update.relative` per client")
    limit = evidence.thresholds["explosion"]
    exploded, baseline_exploded = ratios > limit["relative"], baseline_ratios > limit["relative"]
    message = "no client's update exploded"
    if exploded.any():
        row, client = np.unravel_index(int(np.nanargmax(ratios)), ratios.shape)
        message = describe_explosion(int(client), int(evidence.run.rounds[row]), float(ratios[row, client]))
        if exploded.sum() > 1:
            message += f" ({exploded.sum()} updates of {exploded.any(axis=0).sum()} clients exploded in total)"
    has_baseline, max_count = evidence.iid_baseline is not None and len(baseline_ratios) > 0, limit["clients"]
    count, baseline_count = float(exploded.sum()), float(baseline_exploded.sum())
    rounds = evidence.run.rounds[exploded.any(axis=1)]
    measured = np.isfinite(ratios).any(axis=1)
    return [
        Finding(
            EXPLODING_UPDATES,
            single_run_grade(count > max_count),
            message,
            count,
            baseline_count if has_baseline else np.nan,
            max_count,
            "updates",
            is_positive=count > max_count,
            in_baseline=baseline_count > max_count if has_baseline else None,
            first_round=int(rounds[0]) if len(rounds) else None,
            clients=tuple(map(int, np.flatnonzero(exploded.any(axis=0)))),
            is_event=True,
            evidence=(make_series("largest relative update", evidence.run.rounds[measured], np.nanmax(ratios[measured], axis=1)),),
        )
    ]


def describe_explosion(client: int, round: int, ratio: float) -> str:
    """Describe which client's update exploded, in which round and by how much."""
    return f"client {client}'s update in round {round} is {ratio:.2g} times as large as the trained weights that the client received"


def find_exploding_updates(
    records: Iterable[Record], thresholds: Mapping[str, Mapping[str, float]] = THRESHOLDS
) -> Iterator[tuple[int, str]]:
    """Yield the client and a message for every exploding update among the records of a round."""
    for row in records:
        if row.metric == "update.relative" and row.value > thresholds["explosion"]["relative"]:
            yield row.client, describe_explosion(row.client, row.round, row.value)


# Failed clients: their update was not finite, so the server ignored it and did not learn from their data.


def failed_clients(evidence: RunEvidence) -> list[Finding]:
    """Detect clients whose update was not finite and was therefore ignored."""
    failed, baseline_failed = client_table(evidence.run, "failed"), client_table(evidence.iid_baseline, "failed")
    if not len(failed):
        return make_not_measured("failed clients", "`failed` per client")
    clients = np.flatnonzero((failed > 0).any(axis=0))
    rounds = evidence.run.rounds[(failed > 0).any(axis=1)]
    message = f"client {', '.join(map(str, clients))} failed, first in round {rounds[0]}" if len(clients) else "no client failed"
    limit = evidence.thresholds["failed_clients"]["clients"]
    count, baseline_count = float((failed > 0).sum()), float((baseline_failed > 0).sum())
    has_baseline = evidence.iid_baseline is not None and len(baseline_failed) > 0
    return [
        Finding(
            "failed clients",
            single_run_grade(count > limit),
            message,
            count,
            baseline_count if has_baseline else np.nan,
            limit,
            "updates",
            is_positive=count > limit,
            in_baseline=baseline_count > limit if has_baseline else None,
            first_round=int(rounds[0]) if len(rounds) else None,
            clients=tuple(map(int, clients)),
            is_event=True,
            evidence=(make_series("failed clients", evidence.run.rounds, np.nansum(failed, axis=1)),),
        )
    ]
