"""Severity in common units: the dial of one regime set so that it measures as much as the dial of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ..corpus.corpus import Corpus
from ..errors import UserError
from ..seeds import numpy_stream
from .divergence import generalised_jsd, normalised_jsd
from .margins import cut
from .partition import Partition, Partitioner, weights
from .tallies import label_table, pooled, written
from .words import count_words

AnyPartitioner = TypeVar("AnyPartitioner", bound=Partitioner)
Severity = Callable[[Corpus, Partition], float]


def label_severity(corpus: Corpus, partition: Partition) -> float:
    """Jensen-Shannon divergence of the clients' topics over the most that it can be, in [0, 1]."""
    owner = partition.owner(len(corpus))
    held = np.flatnonzero(owner >= 0)
    dealt = corpus.take(held)
    return float(normalised_jsd(label_table(dealt, weights(dealt, 1), owner[held], len(partition))))


def token_severity(corpus: Corpus, partition: Partition) -> float:
    """Jensen-Shannon divergence of the clients' words above a chance deal's, over log2 N less that: 0 to 1.

    The chance deal has the same documents, as their owners write them, and the same budgets; its cut is
    always the same one.
    """
    owner = partition.owner(len(corpus))
    held = np.flatnonzero(owner >= 0)
    dealt, owner, clients = corpus.take(held), owner[held], len(partition)
    counts = count_words(written(dealt, partition, owner)).counts
    size = np.maximum(counts.sum(axis=1), 1.0)
    mixed = numpy_stream(0, "token severity").permutation(len(owner))
    chance = np.empty_like(owner)
    chance[mixed] = cut(size[mixed], np.bincount(owner, weights=size, minlength=clients))
    found, null = (generalised_jsd(pooled(counts, who, clients)) for who in (owner, chance))
    most = np.log2(clients) if clients > 1 else 1.0
    return float((found - null) / max(most - null, 1e-12))


def calibrate(
    partitioner: AnyPartitioner,
    corpus: Corpus,
    target: float,
    stream: Callable[[], np.random.Generator],
    *,
    severity: Severity = label_severity,
    close: float = 0.01,
    trials: int = 30,
    nearest: bool = False,
) -> AnyPartitioner:
    """The same regime with the dial where ``severity`` measures ``target``, within ``close``; by bisection.

    ``stream`` gives a fresh generator of one name at each call, so that only the dial changes from trial to
    trial. A target that the regime does not reach, or steps over, is refused with what it can measure;
    ``nearest`` takes the nearest dial instead.
    """
    changeable: Any = partitioner

    def at(dial: float) -> tuple[AnyPartitioner, float]:
        trial = replace(changeable, severity=dial)
        return trial, severity(corpus, trial(corpus, stream()))

    low, high = 0.0, 1.0
    tried = [at(low), at(high)]
    within = tried[0][1] - close <= target <= tried[1][1] + close
    for _ in range(trials if within else 0):
        best, found = min(tried, key=lambda trial: abs(trial[1] - target))
        if abs(found - target) <= close:
            return best
        middle = (low + high) / 2
        tried.append(at(middle))
        low, high = (middle, high) if tried[-1][1] < target else (low, middle)
    best, found = min(tried, key=lambda trial: abs(trial[1] - target))
    if nearest or abs(found - target) <= close:
        return best
    raise UserError(
        f"{type(partitioner).__name__} cannot be set to measure {target:.3f} on corpus {corpus.name!r}: it "
        f"measures {tried[0][1]:.3f} at severity 0, {tried[1][1]:.3f} at 1, and at the nearest {found:.3f} "
        f"(severity {best.severity:.3f}). Choose such a target, another regime, or another corpus."
    )
