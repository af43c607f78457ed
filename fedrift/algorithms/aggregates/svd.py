"""The best adapter of the given rank: the ideal mean, cut by its singular values.

M = sum p_k B_k A_k = U S V^T; B = U_R sqrt(S_R), A = sqrt(S_R) V_R^T. No rank-R adapter is nearer to M (Eckart & Young,
1936); what is lost is sqrt(sum of the squares of the other singular values). Bai et al., "Federated
Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources" (FlexLoRA), NeurIPS 2024,
arXiv:2402.11505, aggregates so. M is never built: its factors are stacked and orthogonalised first.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tree import Tree
from ...values import Report, Server
from .factors import Products, forgets, modules, products
from .mean import Frame


@dataclass(frozen=True)
class Svd(Products):

    def combine(self, server: Server, report: Report) -> Tree:
        change = Tree(super().combine(server, report))
        for module in modules(server.params.keys()):
            down, up = server.params[module + ".A"].clone(), server.params[module + ".B"].clone()
            for model, tall, flat in products(server, report, module):
                tall, flat = cut(tall, flat, down.shape[1])
                up[model], down[model] = tall.to(up), flat.to(down)
            change[module + ".A"] = down - server.params[module + ".A"]
            change[module + ".B"] = up - server.params[module + ".B"]
        return change

    def refusals(self, algorithm: Frame, leaves: Collection[str]) -> list[str]:
        return super().refusals(algorithm, leaves) + forgets(self, algorithm, leaves)


def cut(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best ``[O, R]``, ``[R, I]`` for ``up [O, n] @ down [n, I]``; signs fixed, so that no order matters.

    A direction that carries nothing keeps a row in A (its B is zero): with both zero it could never learn.
    """
    left, core = torch.linalg.qr(up)
    right, other = torch.linalg.qr(down.mT)
    u, s, vt = torch.linalg.svd(core @ other.mT, full_matrices=False)
    u, s, v = left @ u[:, :rank], s[:rank], right @ vt[:rank].mT
    flip = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()  # [1, R]
    root = s.sqrt()
    alive = s > s[0] * 1e-7
    return u * flip * root * alive, ((v * flip) * torch.where(alive, root, 1.0)).mT


__all__ = ["Svd", "cut"]
