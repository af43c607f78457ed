"""What a run with ``Private`` would have spent: the (epsilon, delta) of central, client-level differential privacy.

Two fleets are neighbours if one client's data is replaced by anything else. Each round draws its cohort uniformly
without replacement and releases a sum of clipped changes with Gaussian noise: Wang, Balle & Kasiviswanathan,
"Subsampled Rényi Differential Privacy and Analytical Moments Accountant", AISTATS 2019, arXiv:1808.00087,
composed over the rounds by Google's dp-accounting. (Poisson accountants, such as Opacus', would be wrong here.)

Replacing a client moves the sum by up to 2 clip, so the accountant is given half of ``Private.noise``.

A cohort's sum is also protected as if everybody were in every cohort: for each cohort that can be drawn, the two fleets' sums
differ by one client at most, and the divergence of a mixture is at most the largest of its parts (van Erven & Harremoës, "Rényi
Divergence and Kullback-Leibler Divergence", IEEE Trans. Inf. Theory 60, 2014, Theorem 13). Both bounds hold, the one for
sampling is the looser where most clients are drawn, and the smaller is given.
"""

from __future__ import annotations

from dp_accounting import DpEvent, GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant

from ..errors import UserError, quote
from .aggregates.private import Private


def epsilon(rule: Private, *, rounds: int, cohort: int, size: int, delta: float) -> float:
    """The epsilon of ``rounds`` rounds with ``cohort`` of ``size`` clients, at ``delta``; infinite without noise.

    ``delta`` should be well below 1 / size. Tuning on the data, early stops and released metrics are not counted.

    Raises:
        UserError: If there are no such rounds, cohort or delta.
    """
    if rounds < 0:
        raise UserError(f"rounds: wanted a whole number of at least 0, got {quote(rounds)}")
    if not 1 <= cohort <= size:
        raise UserError(f"cohort: wanted a whole number from 1 to {size}, the number of clients, got {quote(cohort)}")
    if not 0 < delta < 1:
        raise UserError(f"delta: wanted a number above 0 and below 1, got {quote(delta)}")
    if rule.noise == 0 or rounds == 0:
        return float("inf") if rounds else 0.0
    noisy = GaussianDpEvent(rule.noise / 2)
    everybody = composed(noisy, rounds, delta)
    if cohort == size or everybody == 0:
        return everybody
    return min(everybody, composed(SampledWithoutReplacementDpEvent(size, cohort, noisy), rounds, delta))


def composed(event: DpEvent, rounds: int, delta: float) -> float:
    """The epsilon of as many equal rounds."""
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    return float(accountant.compose(SelfComposedDpEvent(event, rounds)).get_epsilon(delta))
