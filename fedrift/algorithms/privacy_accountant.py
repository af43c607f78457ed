"""What a run with ``DPMean`` would have spent: the (epsilon, delta) of central, client-level differential privacy.

Two fleets are neighbours if one client's data is replaced by anything else. Each round draws its cohort uniformly
without replacement and releases a sum of clipped changes with Gaussian noise: Wang, Balle & Kasiviswanathan,
"Subsampled Rényi Differential Privacy and Analytical Moments Accountant", AISTATS 2019, arXiv:1808.00087,
composed over the rounds by Google's dp-accounting. (Poisson accountants, such as Opacus', would be wrong here.)

Replacing a client moves the sum by up to 2 clip_norm, so the accountant is given half of ``DPMean.noise_multiplier``.

A cohort's sum is also protected as if everybody were in every cohort: for each cohort that can be drawn, the two fleets' sums
differ by one client at most, and the divergence of a mixture is at most the largest of its parts (van Erven & Harremoës, "Rényi
Divergence and Kullback-Leibler Divergence", IEEE Trans. Inf. Theory 60, 2014, Theorem 13). Both bounds hold, the one for
sampling is the looser where most clients are drawn, and the smaller is given.
"""

from __future__ import annotations

from dp_accounting import DpEvent, GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant

from ..core.errors import UserError, quote_value
from .aggregators.private import DPMean


def compute_epsilon(aggregator: DPMean, *, num_rounds: int, cohort_size: int, num_clients: int, delta: float) -> float:
    """The epsilon of ``num_rounds`` rounds with ``cohort_size`` of ``num_clients`` clients, at ``delta``; infinite without noise.

    ``delta`` should be well below 1 / num_clients. Tuning on the data, early stops and released metrics are not counted.

    Raises:
        UserError: If there are no such rounds, cohort or delta.
    """
    if num_rounds < 0:
        raise UserError(f"num_rounds: wanted a whole number of at least 0, got {quote_value(num_rounds)}")
    if not 1 <= cohort_size <= num_clients:
        raise UserError(
            f"cohort_size: wanted a whole number from 1 to {num_clients}, the number of clients, got {quote_value(cohort_size)}"
        )
    if not 0 < delta < 1:
        raise UserError(f"delta: wanted a number above 0 and below 1, got {quote_value(delta)}")
    if aggregator.noise_multiplier == 0 or num_rounds == 0:
        return float("inf") if num_rounds else 0.0
    noisy = GaussianDpEvent(aggregator.noise_multiplier / 2)
    everybody = compose_epsilon(noisy, num_rounds, delta)
    if cohort_size == num_clients or everybody == 0:
        return everybody
    return min(everybody, compose_epsilon(SampledWithoutReplacementDpEvent(num_clients, cohort_size, noisy), num_rounds, delta))


def compose_epsilon(event: DpEvent, num_rounds: int, delta: float) -> float:
    """The epsilon of as many equal rounds."""
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    return float(accountant.compose(SelfComposedDpEvent(event, num_rounds)).get_epsilon(delta))
