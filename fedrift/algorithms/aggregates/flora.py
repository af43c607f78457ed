"""FLoRA: the clients' adapters are stacked, merged under fresh ones, and everybody starts anew.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
NeurIPS 2024, arXiv:2409.05976. A = [A_1; ...; A_m], B = [p_1 B_1, ..., p_m B_m], base <- base + B A; the weights
stand on one factor only (on both they would be squared). Then B = 0 and a fresh random A, the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...streams import torch_stream
from ...tree import Tree
from ...values import Report, Server
from .factors import Products, forgets, lifted, modules, no_base, products
from .mean import Frame


@dataclass(frozen=True)
class FLoRA(Products):
    lifts: ClassVar[bool] = True

    def begin(self, params: Tree) -> Tree:
        return no_base(params)

    def combine(self, server: Server, report: Report) -> Tree:
        change = Tree(super().combine(server, report))
        for module in modules(server.params.keys()):
            down, up = server.params[module + ".A"], server.params[module + ".B"]
            bound = 1 / math.sqrt(down.shape[-1])
            fresh = torch.empty(down.shape, dtype=torch.float64).uniform_(
                -bound, bound, generator=torch_stream(report.draw, "flora", module)).to(down)
            change[module + ".A"], change[module + ".B"] = fresh - down, -up
        return change

    def rebase(self, before: Server, after: Server, report: Report) -> Server:
        base = Tree(after.base)
        for module in modules(before.params.keys()):
            for model, up, down in products(before, report, module):
                base[f"{module}.base"] = lifted(base, module, model, up @ down)
        return replace(after, base=base)

    def refusals(self, algorithm: Frame, leaves: Collection[str]) -> list[str]:
        return super().refusals(algorithm, leaves) + forgets(self, algorithm, leaves)
