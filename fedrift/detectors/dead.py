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
from collections.abc import Mapping

import numpy as np

from ..records import Trajectory
from .curves import evaluated, table
from .finding import Case, Finding, judged, not_measured, series

FAILURE = "dead model"


def dead_model(case: Case) -> list[Finding]:
    """Find a model that gives every token the same probability, or that no gradient moves after an explosion."""
    if not is_measured(case.run):
        return not_measured(FAILURE, "`loss.uniform` with a loss after round 0, or `update.relative` and `gradient.norm`")
    words, since = death(case.run, case.limits)
    shown = None if case.twin is None or not is_measured(case.twin) else bool(death(case.twin, case.limits)[0])
    evidence = [series(metric, *evaluated(case.run, metric)) for metric in ("loss", "model.norm", "gradient.norm")]
    return [judged(FAILURE, float(bool(words)), math.nan if shown is None else float(shown), 0.5, "dead", positive=bool(words),
                   said=words or "the model is not dead", shown=shown, since=since, event=True,
                   evidence=tuple(each for each in evidence if each.rounds))]


def is_measured(run: Trajectory) -> bool:
    """Whether a run has the records that either of the two signs is read from."""
    rounds, _ = evaluated(run)
    return bool(run.has("loss.uniform") and (rounds > 0).any()) or (
        len(table(run, "update.relative")) > 0 and len(table(run, "gradient.norm")) > 0)


def death(run: Trajectory | None, limits: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Say why a model is dead, and since which round; ("", None) if it is not known to be."""
    if run is None:
        return "", None
    since = uniform_since(run, limits["dead"]["uniform"])
    if since is not None:
        level = run.curve("loss.uniform")[run.seen("loss.uniform")][0]
        return (f"the model is dead: from round {since} on its loss is {level:.4f} nats, ln {math.exp(level):.0f}, "
                "so that it gives every token the same probability"), since
    since = vanished_since(run, limits["explosion"]["relative"], limits["dead"]["vanished"])
    if since is not None:
        return (f"the model is dead: its weights or an update of them exploded in round {since - 1}, and from round {since} on "
                "its gradients are all but 0"), since
    return "", None


def uniform_since(run: Trajectory, within: float) -> int | None:
    """The round from which on every loss lies at that of a uniform guess; None if the last one does not."""
    rounds, loss = evaluated(run)
    if not run.has("loss.uniform") or not (rounds > 0).any():
        return None
    level = run.curve("loss.uniform")[run.seen("loss.uniform")][0]
    near = (np.abs(loss - level) <= within) & (rounds > 0)
    for domain in run.domains_of("loss"):
        values = run.curve("loss", domain)[np.isin(run.rounds, rounds)]
        near &= ~(np.abs(values - level) > within)  # a domain without a number says nothing against it
    away = np.flatnonzero(~near)
    first = int(away[-1]) + 1 if len(away) else 0
    return int(rounds[first]) if first < len(rounds) else None


def vanished_since(run: Trajectory, exploded: float, vanished: float) -> int | None:
    """The round after an explosion from which on there are no gradients; None if there was none, or gradients came after it."""
    relative, slope = table(run, "update.relative"), table(run, "gradient.norm")
    if not len(relative) or not len(slope):
        return None
    burst = (relative > exploded).any(axis=1)
    rounds, length = evaluated(run, "model.norm")
    grown = (length[1:] > exploded * length[:-1]) & (length[:-1] > 0)
    burst |= np.isin(run.rounds, rounds[1:][grown] - 1)  # a round begins from what the one before left
    seen = np.isfinite(slope).any(axis=1)
    most = np.where(seen, np.nan_to_num(slope, nan=0.0).max(axis=1), np.nan)  # [rounds]
    for row in np.flatnonzero(burst):
        before, after = most[:row + 1][seen[:row + 1]], most[row + 1:][seen[row + 1:]]
        if len(before) and len(after) and before.max() > 0 and (after <= vanished * before.max()).all():
            return int(run.rounds[row]) + 1
    return None
