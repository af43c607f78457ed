"""RoLoRA: one round trains B with A still, the next A with B still, and each is averaged exactly.

Chen, Guo, Ju, Dalal, Zhu & Khisti, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", 2025,
arXiv:2502.01755 (RoLoRA). The first round trains B: while B is zero, A has no gradient.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from .factors import decays, modules, needs_adapters, recalls
from .mean import Frame, Mean


@dataclass(frozen=True)
class RoLoRA(Mean):
    pairs: ClassVar[bool] = True

    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]:
        still = "A" if round % 2 == 0 else "B"
        return frozenset(f"{module}.{still}" for module in modules(leaves))

    def refusals(self, algorithm: Frame, leaves: Collection[str]) -> list[str]:
        said = needs_adapters(self, leaves) + decays(self, algorithm.server)
        if "memory" in algorithm.tells and recalls(algorithm, leaves):
            said.append(f"RoLoRA trains each factor every other round only, and what {type(algorithm).__name__} remembers of it "
                        "would be of a round in which it stood still; use Mean or FFA with it")
        if getattr(algorithm.server, "momentum", 0) or getattr(algorithm.server, "betas", (0,))[0]:
            said.append(f"RoLoRA holds one factor still; the momentum of {algorithm.server} would move it")
        return said
