"""FFA-LoRA: A stays as it was drawn, only B is trained, so averaging B is averaging B A.

Sun, Li, Li & Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv:2403.12313.
Half of the traffic, no aggregation error for any number of local steps, and the mean of products stays
linear under clipping and noise: ``inner`` is how B is aggregated, ``FFA(Private(clip=0.5))`` the paper's case.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from ...tree import Tree
from ...values import Report, Server
from .factors import decays, modules, needs_adapters
from .mean import Frame, Mean


@dataclass(frozen=True)
class FFA(Mean):
    pairs: ClassVar[bool] = True
    inner: Mean = Mean()

    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]:
        return frozenset(module + ".A" for module in modules(leaves))

    def combine(self, server: Server, report: Report) -> Tree:
        still = self.frozen(report.delta.keys(), 0)
        trained = Tree({name: leaf for name, leaf in report.delta.items() if name not in still})
        found = self.inner.combine(server, replace(report, delta=trained))
        return Tree({name: found[name] if name in found else leaf * 0 for name, leaf in server.params.items()})

    def refusals(self, algorithm: Frame, leaves: Collection[str]) -> list[str]:
        said = needs_adapters(self, leaves) + decays(self, algorithm.server)
        if self.inner.pairs:
            return [*said, f"FFA aggregates B alone, and {type(self.inner).__name__} is about B and A: use "
                           "inner=Mean, Median, TrimmedMean, Krum or Private"]
        return said + self.inner.refusals(algorithm, leaves)

    def caveats(self, algorithm: Frame, weighting: str) -> list[str]:
        return self.inner.caveats(algorithm, weighting)

    def thin(self, cohort: int) -> list[str]:
        return self.inner.thin(cohort)
