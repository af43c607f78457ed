"""Central differential privacy of clients: each change is clipped, and the server adds Gaussian noise to their sum.

McMahan, Ramage, Talwar & Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018,
arXiv:1710.06963 (Algorithm 1, fixed denominator). For a cohort of m clients:
change = (1/m) (sum_k delta_k min(1, S / ||delta_k||) + N(0, (z S)^2)), S ``clip``, z ``noise``.

Clients count alike, and one that failed still counts in m: the denominator must not tell who was there.
Central means that the server is trusted and sees every change; the released models are what is protected.
The noise comes from the run's seed, so that a run can be repeated: a study of privacy's price, not a protection
of anybody. ``privacy.epsilon`` says what a run would have spent.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt

from ...streams import torch_stream
from ...tree import Tree
from ...values import Report, Server
from .alike import Alike
from .mean import Frame
from .pooled import pool


@dataclass(frozen=True)
class Private(Alike):
    clip: Annotated[float, Gt(0)] = 1.0
    noise: Annotated[float, Ge(0)] = 1.0

    def combine(self, server: Server, report: Report) -> Tree:
        counts = (report.weight > 0).double()
        short = (self.clip / report.delta.norm().clamp_min(self.clip)) * counts
        total = pool(report.delta * short, report)
        size = report.group.bincount(minlength=len(report.population)).clamp_min(1)
        return Tree({name: leaf + self.noise * self.clip * torch.randn(
            leaf.shape, generator=torch_stream(report.draw, "privacy", name), dtype=torch.float64).to(leaf)
            for name, leaf in total.items()}) / size

    def refusals(self, algorithm: Frame, leaves: Collection[str]) -> list[str]:
        said = super().refusals(algorithm, leaves)
        if "memory" in algorithm.tells:
            said.append(f"Private protects the changes only, and {type(algorithm).__name__}'s server also reads what its clients "
                        "keep, unclipped and without noise: no epsilon would be true; use FedAvg or FedProx")
        return said

    def caveats(self, algorithm: Frame, weighting: str) -> list[str]:
        said = super().caveats(algorithm, weighting)
        if self.noise == 0:
            said.append("Private(noise=0) only clips: it protects nobody")
        if algorithm.personal:
            said.append(f"Private protects the shared model; those that {type(algorithm).__name__}'s clients wear are fitted to "
                        "their own data without noise, and what is reported of them is not protected")
        return said
