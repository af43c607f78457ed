"""Angles between clients' changes. Of adapters, what counts is the change of the product B A: the same product has many factors.

<D_i, D_j> with D = (B + dB)(A + dA) - B A = [B + dB, -B] [A + dA; A] is summed from small matrices: D itself is never made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tree import Tree, wide


def inner(start: Tree, delta: Tree) -> Tensor:
    """Inner products of the changes of C clients, ``[C, ...] -> [C, C]`` float64; in product space where leaves are adapters.

    The factor that scales a product is left out: it is the same for all.
    """
    total: Tensor | None = None
    for path, leaf in delta.items():
        module, kind = path.rsplit(".", 1) if "." in path else (path, "")
        if kind == "A" and f"{module}.B" in delta:
            continue
        if kind == "B" and f"{module}.A" in delta:
            up, down = start[path], start[f"{module}.A"]
            left = torch.cat([wide(up + leaf), -wide(up)], 2)  # [C, O, 2R]
            right = torch.cat([wide(down + delta[f"{module}.A"]), wide(down)], 1)  # [C, 2R, I]
            part = (torch.einsum("cor,dos->cdrs", left, left) * torch.einsum("cri,dsi->cdrs", right, right)).sum((2, 3))
        else:
            flat = wide(leaf).flatten(1)
            part = flat @ flat.mT
        total = part if total is None else total + part
    if total is None:
        raise ValueError("an empty change has no angles")
    return total.cpu()


def cosines(products: Tensor) -> Tensor:
    """``[C, C]`` cosines of inner products; 0 with a change that is none."""
    length = products.diagonal().clamp_min(0).sqrt()
    return (products / (length[:, None] * length[None, :]).clamp_min(1e-300)).clamp(-1, 1)


__all__ = ["cosines", "inner"]
