"""The dead model: training has destroyed it, and no number says so by being infinite.

At a learning rate of 1e30 all weights can go to 1e30; normalisation then makes every activation 0 and all logits equal. The
loss is ln V, V being the size of the vocabulary, which may lie below the loss at the start; gradients are 0 and no weight moves
again. On other processors the same run gives NaN: which of the two it is depends on rounding. Two signs, each of them enough:

- the last evaluation, of the whole and of every domain, lies at ln V within the rounding of single precision (``uniform``
  nats). A model with random weights comes near ln V and not that near, for its logits differ.
- a client's update exploded (see ``explosion``), or the length of the trained weights grew as much from one round to the
  next, and from then on all gradients are below ``vanished`` times the largest before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ..core.records import Record, RecordColumns, Trajectory, final_round_indices
from .curves import client_table, read_curve
from .finding import THRESHOLDS, Finding, RunEvidence, make_finding, make_not_measured, make_series

DEAD_MODEL = "dead model"


def dead_model(case: RunEvidence) -> list[Finding]:
    """Find a model that gives every token the same probability, or that no gradient moves after an explosion."""
    if not has_dead_model_records(case.run):
        return make_not_measured(DEAD_MODEL, "`loss.uniform` with a loss after round 0, or `update.relative` and `gradient.norm`")
    words, since = find_dead_model(case.run, case.thresholds)
    shown = (
        None
        if case.iid_baseline is None or not has_dead_model_records(case.iid_baseline)
        else bool(find_dead_model(case.iid_baseline, case.thresholds)[0])
    )
    evidence = [make_series(metric, *read_curve(case.run, metric)) for metric in ("loss", "model.norm", "gradient.norm")]
    return [
        make_finding(
            DEAD_MODEL,
            float(bool(words)),
            math.nan if shown is None else float(shown),
            0.5,
            "dead",
            is_positive=bool(words),
            message=words or "the model is not dead",
            in_baseline=shown,
            first_round=since,
            is_event=True,
            evidence=tuple(each for each in evidence if each.rounds),
        )
    ]


def has_dead_model_records(run: Trajectory) -> bool:
    """Whether a run has the records that either of the two signs is read from."""
    rounds, _ = read_curve(run)
    return bool(run.has_curve("loss.uniform") and (rounds > 0).any()) or (
        len(client_table(run, "update.relative")) > 0 and len(client_table(run, "gradient.norm")) > 0
    )


def find_dead_model(run: Trajectory | None, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Say why a model is dead, and since which round; ("", None) if it is not known to be."""
    if run is None:
        return "", None
    since = find_uniform_loss_round(run, thresholds["dead"]["uniform"])
    if since is not None:
        level = run.curve("loss.uniform")[run.observed_mask("loss.uniform")][0]
        return (
            f"the model is dead: from round {since} on its loss is {level:.4f} nats, ln {math.exp(level):.0f}, "
            "so that it gives every token the same probability"
        ), since
    since = find_vanished_gradient_round(run, thresholds["explosion"]["relative"], thresholds["dead"]["vanished"])
    if since is not None:
        return (
            f"the model is dead: its weights or an update of them exploded in round {since - 1}, and from round {since} on "
            "its gradients are all but 0"
        ), since
    return "", None


def find_uniform_loss_round(run: Trajectory, tolerance: float) -> int | None:
    """The round from which on every loss lies at that of a uniform guess; None if the last one does not."""
    rounds, loss = read_curve(run)
    if not run.has_curve("loss.uniform") or not (rounds > 0).any():
        return None
    level = run.curve("loss.uniform")[run.observed_mask("loss.uniform")][0]
    near = (np.abs(loss - level) <= tolerance) & (rounds > 0)
    for domain in run.domains_of("loss"):
        values = run.curve("loss", domain)[np.isin(run.rounds, rounds)]
        near &= ~(np.abs(values - level) > tolerance)  # a domain without a number says nothing against it
    away = np.flatnonzero(~near)
    first = int(away[-1]) + 1 if len(away) else 0
    return int(rounds[first]) if first < len(rounds) else None


def find_vanished_gradient_round(run: Trajectory, explosion_ratio: float, vanishing_ratio: float) -> int | None:
    """The round after an explosion from which on there are no gradients; None if there was none, or gradients came after it."""
    relative, slope = client_table(run, "update.relative"), client_table(run, "gradient.norm")
    if not len(relative) or not len(slope):
        return None
    burst = (relative > explosion_ratio).any(axis=1)
    rounds, length = read_curve(run, "model.norm")
    grown = (length[1:] > explosion_ratio * length[:-1]) & (length[:-1] > 0)
    burst |= np.isin(run.rounds, rounds[1:][grown] - 1)  # a round begins from what the one before left
    seen = np.isfinite(slope).any(axis=1)
    most = np.where(seen, np.nan_to_num(slope, nan=0.0).max(axis=1), np.nan)  # [rounds]
    for row in np.flatnonzero(burst):
        before, after = most[: row + 1][seen[: row + 1]], most[row + 1 :][seen[row + 1 :]]
        if len(before) and len(after) and before.max() > 0 and (after <= vanishing_ratio * before.max()).all():
            return int(run.rounds[row]) + 1
    return None


# Divergence: the loss leaves for infinity, or a number already is there.
#
# Any of these: a global loss that is not finite, or an infinity in a client's loss or update; a loss above both ``rise`` times
# its start and ``climb`` nats over its lowest, ``in_a_row`` evaluations running; a server step that grows by ``growth`` a round
# for ``growing`` rounds while the loss rises; a round of which no client's update was a number, for the server leaves those out
# and the loss may stay finite where nobody is left to train; a dead model (see ``dead``), whose loss is finite and may be low; an
# end, the mean of the last evaluations, more than ``above`` nats over the loss of the untrained model in round 0. The last needs
# no baseline, so that no scatter of the run widens it: held-out text is the same at every evaluation.
#
# That heterogeneity is the cause shows where the IID baseline stays: on quadratics of curvature 1 and 9.5 the baseline is stable
# up to a rate of .381, the skewed run to .2176 (ten local steps). If both end above their start, heterogeneity is not the cause.

FINITE_METRICS = ("loss", "loss.before", "train.loss", "update.norm", "update.step")
DIVERGENCE_METRICS = (
    *FINITE_METRICS,
    "failed",
    "gradient.norm",
    "loss.uniform",
    "model.norm",
    "update.relative",
)  # what ``find_runaway`` reads


def divergence(case: RunEvidence) -> list[Finding]:
    rounds, loss = read_curve(case.run)
    words, since = find_divergence(case.run, case.thresholds)
    if not words and len(loss) < case.thresholds["common"]["shortest"]:
        return make_not_measured("divergence", f"{case.thresholds['common']['shortest']:.0f} evaluations of loss; there are {len(loss)}")
    theirs = find_divergence(case.iid_baseline, case.thresholds)[0] if case.iid_baseline is not None else ""
    if words and case.iid_baseline is not None:
        if (
            excess_over_initial_loss(case.run, case.thresholds) is not None
            and excess_over_initial_loss(case.iid_baseline, case.thresholds) is not None
        ):
            words += ", and its IID baseline ends above its start too: heterogeneity is not the cause"
        elif theirs:
            words += ", and its IID baseline breaks too: heterogeneity is not the cause"
    shown = None if case.iid_baseline is None else bool(theirs)
    base = float(bool(theirs)) if case.iid_baseline is not None else np.nan
    return [
        make_finding(
            "divergence",
            float(bool(words)),
            base,
            0.5,
            "diverged",
            is_positive=bool(words),
            message=words or "no divergence",
            in_baseline=shown,
            first_round=since,
            is_event=True,
            evidence=(make_series("loss", rounds, loss),),
        )
    ]


def find_divergence(run: Trajectory | None, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Say what diverged and since when, an end above the untrained model's loss included; ("", None) if nothing did."""
    words, since = find_runaway(run, thresholds)
    above = None if words else excess_over_initial_loss(run, thresholds)
    if above is None:
        return words, since
    assert run is not None
    rounds, loss = read_curve(run)
    level, within = loss[0], thresholds["divergence"]["above"]
    below = np.flatnonzero(loss <= level + within)
    return (
        f"the run ends {above:.3f} nats above the loss of the untrained model ({level:.3f}): it would be better not to train",
        int(rounds[min(int(below[-1]) + 1, len(rounds) - 1)]),
    )


def excess_over_initial_loss(run: Trajectory | None, thresholds: Mapping[str, Mapping[str, float]]) -> float | None:
    """How far the mean of the last evaluations lies above the loss in round 0; None if by no more than the limit, or unknown."""
    rounds, loss = read_curve(run)
    if len(loss) < thresholds["common"]["shortest"] or rounds[0] != 0:
        return None
    above = float(loss[final_round_indices(rounds, int(thresholds["common"]["last"]))].mean() - loss[0])
    return above if above > thresholds["divergence"]["above"] else None


def find_runaway(run: Trajectory | None, thresholds: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """What diverged, in words, and since when; ("", None) if nothing did."""
    limit, (rounds, loss) = thresholds["divergence"], read_curve(run)
    if run is None:
        return "", None
    dead = find_dead_model(run, thresholds)
    if dead[0]:
        return dead
    odd = rounds[~np.isfinite(loss)]
    if len(odd):
        return f"the loss is not a finite number in round {odd[0]}", int(odd[0])
    records = RecordColumns.from_records(run.records)
    for place in np.flatnonzero(np.isinf(records.value)):
        record = records[int(place)]
        if record.metric in FINITE_METRICS:
            where = record.domain or (f"client {record.client}" if record.client >= 0 else "the federation")
            return f"{record.metric} of {where} is infinite in round {record.round}", record.round
    failed = client_table(run, "failed")
    gone = np.isfinite(failed).any(axis=1) & (np.nan_to_num(failed, nan=1.0) > 0).all(axis=1) if len(failed) else np.zeros(0)
    lost = find_first_streak(gone, int(limit["in_a_row"]))  # a lone client that fails once is a client's failure
    if lost is None and gone.any() and gone[np.isfinite(failed).any(axis=1)].all():  # nobody has ever trained
        lost = int(gone.argmax())
    if lost is not None:
        return f"no client's update is a number from round {run.rounds[lost]} on", int(run.rounds[lost])
    if len(loss) < thresholds["common"]["shortest"]:
        return "", None
    high = loss > np.maximum(limit["rise"] * loss[0], np.minimum.accumulate(loss) + limit["climb"])
    first = find_first_streak(high, int(limit["in_a_row"]))
    if first is not None:
        return f"the loss runs away from round {rounds[first]} on", int(rounds[first])
    at, step = read_curve(run, "update.step")
    if len(step) > limit["growing"]:
        first = find_first_streak((step[1:] >= limit["growth"] * step[:-1]) & (step[1:] > 0), int(limit["growing"]))
        if first is not None:
            early, late = np.searchsorted(rounds, [at[first], at[first + int(limit["growing"])]])
            if late < len(loss) and loss[late] > loss[early]:
                return f"the server's steps grow from round {at[first]} on, and the loss with them", int(at[first])
    return "", None


def has_worse_final_loss(run: Trajectory, num_last: int = 3) -> bool:
    """Whether the mean of the ``num_last`` last evaluations lies above the loss before round 1: training left less than there was.

    No finding, for a little of that is noise. A search for what a run survives needs it beside ``find_runaway``: a wrecked language
    model's loss is bounded (`pocket`: 7, where it began at 4.6), so that a ruined run need not come to ``rise`` times its start.
    """
    _, loss = read_curve(run)
    return bool(len(loss) > num_last and loss[-num_last:].mean() > loss[0])


def find_first_streak(mask: np.ndarray, length: int) -> int | None:
    """Where a mask is first true so many times running."""
    if len(mask) < length:
        return None
    whole = np.convolve(mask, np.ones(length), "valid") == length
    return int(whole.argmax()) if whole.any() else None


# Exploding updates: a client sends back a change many times as long as the trained weights that it received.
#
# The limit ``relative`` in ``thresholds.yaml`` is derived. A step of Adam moves a weight by about its learning rate at most
# (Kingma & Ba, ICLR 2015, arXiv:1412.6980, section 2.1), so K steps of rate lr move P weights by lr K sqrt(P) at most. Trained
# weights are smallest beside their number in LoRA, whose A begins with the length sqrt(R / 3) and has, with B, P = 2 D R weights
# at width D: the ratio is lr K sqrt(6 D) at most, 16 for 100 steps of 1e-3 at D = 4,096, and less where steps do not all agree.
# SGD with clipped gradients moves by lr K clip at most. In the 260 runs of studies/results the highest ratio is 23, in a run that
# diverged; it is below 1 where the loss fell.

EXPLODING_UPDATES = "exploding updates"


def exploding_updates(case: RunEvidence) -> list[Finding]:
    """Find clients whose update was many times as long as the model that they received."""
    ours, theirs = client_table(case.run, "update.relative"), client_table(case.iid_baseline, "update.relative")
    if not len(ours):
        return make_not_measured(EXPLODING_UPDATES, "`update.relative` of the clients")
    limit = case.thresholds["explosion"]
    over, other = ours > limit["relative"], theirs > limit["relative"]
    said = "no client's update exploded"
    if over.any():
        row, client = np.unravel_index(int(np.nanargmax(ours)), ours.shape)
        said = describe_explosion(int(client), int(case.run.rounds[row]), float(ours[row, client]))
        if over.sum() > 1:
            said += f" ({over.sum()} updates of {over.any(axis=0).sum()} clients exploded)"
    known, most = case.iid_baseline is not None and len(theirs) > 0, limit["clients"]
    count, base = float(over.sum()), float(other.sum())
    when = case.run.rounds[over.any(axis=1)]
    seen = np.isfinite(ours).any(axis=1)
    return [
        make_finding(
            EXPLODING_UPDATES,
            count,
            base if known else np.nan,
            most,
            "client-rounds",
            is_positive=count > most,
            message=said,
            in_baseline=base > most if known else None,
            first_round=int(when[0]) if len(when) else None,
            clients=tuple(map(int, np.flatnonzero(over.any(axis=0)))),
            is_event=True,
            evidence=(make_series("largest update / model", case.run.rounds[seen], np.nanmax(ours[seen], axis=1)),),
        )
    ]


def describe_explosion(client: int, round: int, ratio: float) -> str:
    """Say whose update exploded, in which round and by how much."""
    return f"client {client}'s update in round {round} is {ratio:.2g} times as long as the model it received"


def find_exploding_updates(
    records: Iterable[Record], thresholds: Mapping[str, Mapping[str, float]] = THRESHOLDS
) -> Iterator[tuple[int, str]]:
    """Yield the client and a message for every exploding update among the records of a round."""
    for row in records:
        if row.metric == "update.relative" and row.value > thresholds["explosion"]["relative"]:
            yield row.client, describe_explosion(row.client, row.round, row.value)


# Failed clients: their update was not a number, so the server quarantined it and their text was not heard.


def failed_clients(case: RunEvidence) -> list[Finding]:
    ours, theirs = client_table(case.run, "failed"), client_table(case.iid_baseline, "failed")
    if not len(ours):
        return make_not_measured("failed clients", "`failed` of the clients")
    who = np.flatnonzero((ours > 0).any(axis=0))
    when = case.run.rounds[(ours > 0).any(axis=1)]
    said = f"client {', '.join(map(str, who))} failed, first in round {when[0]}" if len(who) else "every update could be used"
    limit = case.thresholds["left_out"]["clients"]
    count, base = float((ours > 0).sum()), float((theirs > 0).sum())
    known = case.iid_baseline is not None and len(theirs) > 0
    return [
        make_finding(
            "failed clients",
            count,
            base if known else np.nan,
            limit,
            "client-rounds",
            is_positive=count > limit,
            message=said,
            in_baseline=base > limit if known else None,
            first_round=int(when[0]) if len(when) else None,
            clients=tuple(map(int, who)),
            is_event=True,
            evidence=(make_series("failed clients", case.run.rounds, np.nansum(ours, axis=1)),),
        )
    ]
