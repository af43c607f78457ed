"""Two runs beside each other: what differs in what was asked, and in what came, over the rounds that both have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..records import at_the_end
from ..store import Run
from ..store.query import flat

MISSING = "(none)"
LAST = 5


@dataclass(frozen=True)
class Difference:
    """Of one metric of the federation or of a domain: the mean over the last shared rounds of each, and of other less one."""

    metric: str
    domain: str
    one: float
    other: float
    end: float
    largest: float  # the difference of largest size in any shared round
    at: int  # and its round
    rounds: int


def asked(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """What differs in the experiments, by path."""
    left, right = (flat({key: value for key, value in run.experiment.items() if key not in ("id", "partition_table")})
                   for run in (one, other))
    return {path: (left.get(path, MISSING), right.get(path, MISSING)) for path in {**left, **right}
            if left.get(path, MISSING) != right.get(path, MISSING)}


def came(one: Run, other: Run) -> list[Difference]:
    """What differs in the outcomes: every number of the federation and of domains that both runs have."""
    found = []
    left, right = one.trajectory(), other.trajectory()
    for metric in sorted(set(left.metrics) & set(right.metrics)):
        domains = sorted(set(left.domains_of(metric)) & set(right.domains_of(metric)))
        for domain in ([""] if left.has(metric) and right.has(metric) else []) + domains:
            a, b = left.seen(metric, domain), right.seen(metric, domain)
            both, ours, theirs = np.intersect1d(left.rounds[a], right.rounds[b], return_indices=True)
            if not len(both):
                continue
            x, y = left.curve(metric, domain)[a][ours], right.curve(metric, domain)[b][theirs]
            apart = y - x
            worst = int(np.nanargmax(np.abs(apart))) if not np.isnan(apart).all() else 0
            late = at_the_end(both, LAST)
            found.append(Difference(metric, domain, float(x[late].mean()), float(y[late].mean()), float(apart[late].mean()),
                                    float(apart[worst]), int(both[worst]), len(both)))
    return found
