"""An aggregator with central, client-level differential privacy.

Central means that the server is trusted and sees every update; the released models are protected. The noise is derived from the
seed of the run, so that a run can be repeated. This is suitable for studying the cost of privacy, but it does not protect real
clients. ``privacy_accountant.compute_epsilon`` computes the privacy loss that a run with secret noise would have had.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from ...core.lazy_imports import torch
from ...core.random import torch_stream
from ...core.tree import Tree
from ...core.types import CohortUpdate, ServerState
from .base import AlgorithmInfo, Unweighted
from .mean import cluster_sum


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
