"""FedEx-LoRA: factors are averaged, and what that loses is added under them.

Singhal, Ponkshe & Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of
Foundation Models", ACL 2025, arXiv:2410.09432. B̄ = sum p_k B_k, Ā = sum p_k A_k,
base <- base + (sum p_k B_k A_k - B̄ Ā); a module computes W + s (base + B A), so the model is the ideal mean.
The residual takes the same p_k as the factors and is an ``[O, I]`` matrix that every client must receive.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from ...tree import Tree, wide
from ...values import Report, Server
from .factors import Products, lifted, modules, no_base, products
from .mean import Frame


@dataclass(frozen=True)
class FedEx(Products):
    lifts: ClassVar[bool] = True

    def begin(self, params: Tree) -> Tree:
        return no_base(params)

    def rebase(self, before: Server, after: Server, report: Report) -> Server:
        base = Tree(after.base)
        for module in modules(before.params.keys()):
            for model, up, down in products(before, report, module):
                kept = wide(after.params[module + ".B"][model]) @ wide(after.params[module + ".A"][model])
                base[f"{module}.base"] = lifted(base, module, model, up @ down - kept)
        return replace(after, base=base)

    def refusals(self, algorithm: Frame, leaves: Collection[str]) -> list[str]:
        said = super().refusals(algorithm, leaves)
        if algorithm.personal:
            said.append(f"FedEx moves the weights under everybody's adapters by what the shared ones lack, and "
                        f"{type(algorithm).__name__}'s clients wear their own; use Mean or FFA with it")
        return said
