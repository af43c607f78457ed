"""The bootstrap, for items inside one run only: documents, minimal pairs, tokens.

Items of a template or a document are alike, so whole clusters are drawn, not items (Davison & Hinkley, "Bootstrap
Methods and their Application", 1997, section 3.8). Never over seeds: with fewer than about thirty the percentile
interval covers too little.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..errors import UserError
from ..seeds import numpy_stream
from .evidence import Interval

FEWEST = 15  # clusters; below it the percentile interval of the mean covers less than 92 % for 95 %


def bootstrap(values: np.ndarray, clusters: np.ndarray | None = None, statistic: Callable[[np.ndarray], float] = np.mean,
              level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """The percentile interval of ``statistic`` over items ``values [items]``, drawn by whole ``clusters [items]``."""
    values = np.asarray(values, dtype=np.float64)
    members = [values[[number]] for number in range(len(values))] if clusters is None else grouped(values, np.asarray(clusters))
    if len(members) < FEWEST:
        kind = "items" if clusters is None else "clusters"
        raise UserError(f"a bootstrap of {len(members)} {kind} covers too little; it wants {FEWEST} or more. "
                        "Over seeds use paired_t and sign_flip")
    rng = numpy_stream(seed, "bootstrap")
    drawn = [float(statistic(np.concatenate([members[place] for place in rng.integers(0, len(members), len(members))])))
             for _ in range(draws)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    estimate = float(statistic(values)) if len(values) else math.nan
    return Interval(estimate, float(low), float(high), level)


def grouped(values: np.ndarray, clusters: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(clusters[order][1:] != clusters[order][:-1]) + 1
    return np.split(values[order], starts)
