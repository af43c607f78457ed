"""Exploding updates: a client sends back a change many times as long as the trained weights that it received.

The limit ``relative`` in ``thresholds.yaml`` is derived. A step of Adam moves a weight by about its learning rate at most
(Kingma & Ba, ICLR 2015, arXiv:1412.6980, section 2.1), so K steps of rate lr move P weights by lr K sqrt(P) at most. Trained
weights are smallest beside their number in LoRA, whose A begins with the length sqrt(R / 3) and has, with B, P = 2 D R weights
at width D: the ratio is lr K sqrt(6 D) at most, 16 for 100 steps of 1e-3 at D = 4,096, and less where steps do not all agree.
SGD with clipped gradients moves by lr K clip at most. In the 260 runs of studies/results the highest ratio is 23, in a run that
diverged; it is below 1 where the loss fell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ..records import Record
from .curves import table
from .finding import LIMITS, Case, Finding, judged, not_measured, series

FAILURE = "exploding updates"


def explosion(case: Case) -> list[Finding]:
    """Find clients whose update was many times as long as the model that they received."""
    ours, theirs = table(case.run, "update.relative"), table(case.twin, "update.relative")
    if not len(ours):
        return not_measured(FAILURE, "`update.relative` of the clients")
    limit = case.limits["explosion"]
    over, other = ours > limit["relative"], theirs > limit["relative"]
    said = "no client's update exploded"
    if over.any():
        row, client = np.unravel_index(int(np.nanargmax(ours)), ours.shape)
        said = sentence(int(client), int(case.run.rounds[row]), float(ours[row, client]))
        if over.sum() > 1:
            said += f" ({over.sum()} updates of {over.any(axis=0).sum()} clients exploded)"
    known, most = case.twin is not None and len(theirs) > 0, limit["clients"]
    count, base = float(over.sum()), float(other.sum())
    when = case.run.rounds[over.any(axis=1)]
    seen = np.isfinite(ours).any(axis=1)
    return [judged(FAILURE, count, base if known else np.nan, most, "client-rounds", positive=count > most, said=said,
                   shown=base > most if known else None, since=int(when[0]) if len(when) else None,
                   clients=tuple(map(int, np.flatnonzero(over.any(axis=0)))), event=True,
                   evidence=(series("largest update / model", case.run.rounds[seen], np.nanmax(ours[seen], axis=1)),))]


def sentence(client: int, round: int, ratio: float) -> str:
    """Say whose update exploded, in which round and by how much."""
    return f"client {client}'s update in round {round} is {ratio:.2g} times as long as the model it received"


def exploded(rows: Iterable[Record], limits: Mapping[str, Mapping[str, float]] = LIMITS) -> Iterator[tuple[int, str]]:
    """Yield the client and a message for every exploding update among the records of a round."""
    for row in rows:
        if row.metric == "update.relative" and row.value > limits["explosion"]["relative"]:
            yield row.client, sentence(row.client, row.round, row.value)
