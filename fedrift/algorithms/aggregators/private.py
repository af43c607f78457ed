"""Central differential privacy of clients: each change is clipped, and the server adds Gaussian noise to their sum.

McMahan, Ramage, Talwar & Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018,
arXiv:1710.06963 (Algorithm 1, fixed denominator). For a cohort of m clients:
change = (1/m) (sum_k delta_k min(1, S / ||delta_k||) + N(0, (z S)^2)), S ``clip_norm``, z ``noise_multiplier``.

Clients count alike, and one that failed still counts in m: the denominator must not tell who was there.
Central means that the server is trusted and sees every change; the released models are what is protected.
The noise comes from the run's seed, so that a run can be repeated: a study of privacy's price, not a protection
of anybody. ``privacy_accountant.compute_epsilon`` says what a run would have spent.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt

from ...core.random import torch_stream
from ...core.tree import Tree
from ...core.types import CohortUpdate, ServerState
from .mean import AlgorithmInfo, Unweighted, cluster_sum


@dataclass(frozen=True)
class DPMean(Unweighted):
    clip_norm: Annotated[float, Gt(0)] = 1.0
    noise_multiplier: Annotated[float, Ge(0)] = 1.0

    def aggregate(self, server: ServerState, report: CohortUpdate) -> Tree:
        counts = (report.weight > 0).double()
        short = (self.clip_norm / report.delta.norm().clamp_min(self.clip_norm)) * counts
        total = cluster_sum(report.delta * short, report)
        size = report.cluster_ids.bincount(minlength=len(report.cluster_sizes)).clamp_min(1)
        return (
            Tree(
                {
                    name: leaf
                    + self.noise_multiplier
                    * self.clip_norm
                    * torch.randn(leaf.shape, generator=torch_stream(report.server_seed, "privacy", name), dtype=torch.float64).to(leaf)
                    for name, leaf in total.items()
                }
            )
            / size
        )

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        said = super().incompatibilities(algorithm, param_names)
        if "client_state" in algorithm.uploads:
            said.append(
                f"DPMean protects the changes only, and {type(algorithm).__name__}'s server also reads what its clients "
                "keep, unclipped and without noise: no epsilon would be true; use FedAvg or FedProx"
            )
        return said

    def warnings(self, algorithm: AlgorithmInfo, weighting: str) -> list[str]:
        said = super().warnings(algorithm, weighting)
        if self.noise_multiplier == 0:
            said.append("DPMean(noise_multiplier=0) only clips: it protects nobody")
        if algorithm.is_personalized:
            said.append(
                f"DPMean protects the shared model; those that {type(algorithm).__name__}'s clients wear are fitted to "
                "their own data without noise, and what is reported of them is not protected"
            )
        return said
