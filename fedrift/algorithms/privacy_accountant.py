"""Privacy accounting for ``DPMean``: the (epsilon, delta) of central, client-level differential privacy.

Two federations are neighbors if they differ in the data of one client. Each round samples its cohort uniformly without replacement
and releases a sum of clipped updates with Gaussian noise: Wang, Balle & Kasiviswanathan, "Subsampled Rényi Differential Privacy and
Analytical Moments Accountant", AISTATS 2019, arXiv:1808.00087. Google's dp-accounting composes the rounds. Accountants for Poisson
sampling, such as that of Opacus, do not apply to this sampling.

Replacing a client changes the sum by up to 2 clip_norm, so the accountant receives half of ``DPMean.noise_multiplier``.

A second bound ignores the sampling: for every possible cohort, the sums of the two federations differ in at most one client, and the
divergence of a mixture is at most the largest divergence of its components (van Erven & Harremoës, "Rényi Divergence and
Kullback-Leibler Divergence", IEEE Trans. Inf. Theory 60, 2014, Theorem 13). Both bounds hold. The first is looser if most clients are
sampled, so the smaller of the two is returned.
"""

from __future__ import annotations

from dp_accounting import DpEvent, GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant

from ..core.errors import UserError, quote_value
from .aggregators.private import DPMean


def compute_epsilon(aggregator: DPMean, *, num_rounds: int, cohort_size: int, num_clients: int, delta: float) -> float:
    """Compute epsilon for a run with ``DPMean``.

    Hyperparameter tuning on the data, early stopping and released metrics also cost privacy; they are not included.

    Args:
        aggregator: The aggregator of the run.
        num_rounds: Number of rounds.
        cohort_size: Number of clients per round.
        num_clients: Number of clients in total.
        delta: The delta of (epsilon, delta); it should be well below 1 / num_clients.

    Returns:
        Epsilon; infinite without noise, and 0 for a run without rounds.

    Raises:
        UserError: ``num_rounds``, ``cohort_size`` or ``delta`` is out of range.

    Example:
        >>> compute_epsilon(DPMean(noise_multiplier=1.0), num_rounds=30, cohort_size=10, num_clients=1000, delta=1e-5)  # doctest: +SKIP
    """
    if num_rounds < 0:
        raise UserError(f"num_rounds: expected a whole number of at least 0, got {quote_value(num_rounds)}")
    if not 1 <= cohort_size <= num_clients:
        raise UserError(
            f"cohort_size: expected a whole number from 1 to {num_clients}, the number of clients, got {quote_value(cohort_size)}"
        )
    if not 0 < delta < 1:
        raise UserError(f"delta: expected a number above 0 and below 1, got {quote_value(delta)}")
    if aggregator.noise_multiplier == 0 or num_rounds == 0:
        return float("inf") if num_rounds else 0.0
    noisy = GaussianDpEvent(aggregator.noise_multiplier / 2)
    without_sampling = compose_epsilon(noisy, num_rounds, delta)
    if cohort_size == num_clients or without_sampling == 0:
        return without_sampling
    return min(without_sampling, compose_epsilon(SampledWithoutReplacementDpEvent(num_clients, cohort_size, noisy), num_rounds, delta))


def compose_epsilon(event: DpEvent, num_rounds: int, delta: float) -> float:
    """Compute epsilon at ``delta`` for the composition of ``num_rounds`` rounds with the same privacy event."""
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    return float(accountant.compose(SelfComposedDpEvent(event, num_rounds)).get_epsilon(delta))
