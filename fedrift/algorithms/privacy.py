"""What a run with ``Private`` would have spent: the (epsilon, delta) of central, client-level differential privacy.

Two fleets are neighbours if one client's data is replaced by anything else. Each round draws its cohort uniformly
without replacement and releases a sum of clipped changes with Gaussian noise: Wang, Balle & Kasiviswanathan,
"Subsampled Rényi Differential Privacy and Analytical Moments Accountant", AISTATS 2019, arXiv:1808.00087,
composed over the rounds by Google's dp-accounting. (Poisson accountants, such as Opacus', would be wrong here.)

Replacing a client moves the sum by up to 2 clip, so the accountant is given half of ``Private.noise``.
"""

from __future__ import annotations

from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant

from .aggregates.private import Private


def epsilon(rule: Private, *, rounds: int, cohort: int, size: int, delta: float) -> float:
    """The epsilon of ``rounds`` rounds with ``cohort`` of ``size`` clients, at ``delta``; infinite without noise.

    ``delta`` should be well below 1 / size. Tuning on the data, early stops and released metrics are not counted.
    """
    if rule.noise == 0 or rounds == 0:
        return float("inf") if rounds else 0.0
    noisy = GaussianDpEvent(rule.noise / 2)
    event = noisy if cohort == size else SampledWithoutReplacementDpEvent(size, cohort, noisy)
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    return float(accountant.compose(SelfComposedDpEvent(event, rounds)).get_epsilon(delta))
