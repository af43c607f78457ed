"""One paired comparison over seeds, whole: interval, exact p, effect sizes, and what could have been seen.

With a diverged run among them the mean has no interval: then it is the median, its interval by order statistics, and
signed ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .effect import hedges_g
from .evidence import ALPHA, Interval, P
from .paired import median_interval, paired_t
from .power import detectable as smallest_seen
from .ranks import rank_biserial, wilcoxon
from .signflip import sign_flip


@dataclass(frozen=True)
class Comparison:
    """What the differences of some seeds say."""

    seeds: int
    interval: Interval  # of the mean; of the median where some are infinite
    p: P  # exact sign-flip; of signed ranks where some are infinite
    g: float  # paired Hedges g
    rank_biserial: float
    detectable: float  # the minimum detectable effect; NaN where some are infinite
    infinite: int  # seeds where one side diverged and the other did not


def compare(d: np.ndarray, level: float = 0.95, alpha: float = ALPHA, power: float = 0.8, family: int = 1) -> Comparison:
    """The differences ``d [seeds]``, NaN left out; ``family`` is how many hypotheses share ``alpha``."""
    d = np.asarray(d, dtype=np.float64)
    d = d[~np.isnan(d)]
    infinite = int(np.isinf(d).sum())
    ranked = infinite > 0
    sd = float(d.std(ddof=1)) if len(d) > 1 and not ranked else math.nan
    return Comparison(
        seeds=len(d),
        interval=median_interval(d, level) if ranked else paired_t(d, level),
        p=wilcoxon(d) if ranked else sign_flip(d),
        g=hedges_g(d),
        rank_biserial=rank_biserial(d),
        detectable=smallest_seen(len(d), sd, alpha / max(family, 1), power),
        infinite=infinite,
    )
