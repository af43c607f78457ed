"""An aggregator with central, client-level differential privacy, and the (epsilon, delta) of a run with it.

Central means that the server is trusted and sees every update; the released models are protected. The noise is derived from the
seed of the run, so that a run can be repeated. This is suitable for studying the cost of privacy, but it does not protect real
clients. ``compute_epsilon`` computes the privacy loss that a run with secret noise would have had.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from ...core.errors import UserError, quote_value
from ...core.lazy_imports import torch
from ...core.random import torch_stream
from ...core.tree import Tree
from ...core.types import CohortUpdate, ServerState
from .base import AlgorithmInfo, Unweighted
from .mean import cluster_sum

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@dataclass(frozen=True)
class DPMean(Unweighted):
    """The mean of clipped updates with Gaussian noise.

    McMahan, Ramage, Talwar & Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv:1710.06963
    (Algorithm 1, fixed denominator). For a cohort of m clients, the update of the model is
    (1/m) (sum_k delta_k min(1, S / ||delta_k||) + N(0, (z S)^2)), where S is ``clip_norm`` and z is ``noise_multiplier``.

    All clients have the same weight. A failed client still counts in m, because the denominator must not reveal participation.

    Args:
        clip_norm: Largest norm S of the update of a client.
        noise_multiplier: Standard deviation z of the noise, in units of ``clip_norm``.
    """

    clip_norm: Annotated[float, Gt(0)] = 1.0
    noise_multiplier: Annotated[float, Ge(0)] = 1.0

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        counts = (update.weight > 0).double()
        clip_factor = (self.clip_norm / update.delta.norm().clamp_min(self.clip_norm)) * counts
        total = cluster_sum(update.delta * clip_factor, update)
        size = update.cluster_ids.bincount(minlength=len(update.cluster_sizes)).clamp_min(1)
        return (
            Tree(
                {
                    name: leaf
                    + self.noise_multiplier
                    * self.clip_norm
                    * torch.randn(leaf.shape, generator=torch_stream(update.server_seed, "privacy", name), dtype=torch.float64).to(leaf)
                    for name, leaf in total.items()
                }
            )
            / size
        )

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        reasons = super().incompatibilities(algorithm, param_names)
        if "client_state" in algorithm.uploads:
            reasons.append(
                f"DPMean protects the updates only, but the server of {type(algorithm).__name__} also reads client states, "
                "without clipping or noise, so no privacy guarantee would hold; use FedAvg or FedProx"
            )
        return reasons

    def warnings(self, algorithm: AlgorithmInfo, weighting: str) -> list[str]:
        messages = super().warnings(algorithm, weighting)
        if self.noise_multiplier == 0:
            messages.append("DPMean(noise_multiplier=0) only clips the updates and gives no privacy guarantee")
        if algorithm.is_personalized:
            messages.append(
                f"DPMean protects the shared model only: the personalized models of {type(algorithm).__name__} are trained on the "
                "data of the clients without noise, and their metrics are not protected"
            )
        return messages


def compute_epsilon(aggregator: DPMean, *, num_rounds: int, cohort_size: int, num_clients: int, delta: float) -> float:
    """Compute epsilon for a run with ``DPMean``.

    Two federations are neighbors if they differ in the data of one client. Each round samples its cohort uniformly without replacement
    and releases a sum of clipped updates with Gaussian noise: Wang, Balle & Kasiviswanathan, "Subsampled Rényi Differential Privacy and
    Analytical Moments Accountant", AISTATS 2019, arXiv:1808.00087. Google's dp-accounting composes the rounds. Accountants for Poisson
    sampling, such as that of Opacus, do not apply to this sampling. Replacing a client changes the sum by up to 2 clip_norm, so the
    accountant receives half of the noise multiplier.

    A second bound ignores the sampling: for every possible cohort, the sums of the two federations differ in at most one client, and
    the divergence of a mixture is at most the largest divergence of its components (van Erven & Harremoës, "Rényi Divergence and
    Kullback-Leibler Divergence", IEEE Trans. Inf. Theory 60, 2014, Theorem 13). The first bound is looser if most clients are sampled,
    so the smaller of the two is returned.

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
        UserError: ``num_rounds``, ``cohort_size`` or ``delta`` is out of range, or dp-accounting is not installed.

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
    try:
        from dp_accounting import GaussianDpEvent, SampledWithoutReplacementDpEvent  # imported here because it takes a second
    except ImportError:
        raise UserError("the privacy loss is computed by dp-accounting, which is not installed: pip install 'fedrift[privacy]'") from None
    noisy = GaussianDpEvent(aggregator.noise_multiplier / 2)
    without_sampling = compose_epsilon(noisy, num_rounds, delta)
    if cohort_size == num_clients or without_sampling == 0:
        return without_sampling
    return min(without_sampling, compose_epsilon(SampledWithoutReplacementDpEvent(num_clients, cohort_size, noisy), num_rounds, delta))


def compose_epsilon(event: DpEvent, num_rounds: int, delta: float) -> float:
    """Compute epsilon at ``delta`` for the composition of ``num_rounds`` rounds with the same privacy event."""
    from dp_accounting import NeighboringRelation, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    return float(accountant.compose(SelfComposedDpEvent(event, num_rounds)).get_epsilon(delta))
