"""Gradient dissimilarity: how far the clients' gradients at the same weights point apart, without the noise of samples.

With g_k client k's gradient, p_k its share and g = sum_k p_k g_k (Li et al., "Federated Optimization in Heterogeneous
Networks", MLSys 2020, arXiv:1812.06127, definition 3; Karimireddy et al., "SCAFFOLD", ICML 2020, arXiv:1910.06378,
assumption A1):

G^2 = sum_k p_k |g_k - g|^2,  B^2 = sum_k p_k |g_k|^2 / |g|^2 = 1 + G^2 / |g|^2,

and the gradient diversity of Yin et al., AISTATS 2018, arXiv:1706.05699: sum_k |g_k|^2 / |sum_k g_k|^2.

Gradients of samples are g_k plus noise, and |g_k + noise|^2 is too large. So each client's probe is cut into two disjoint
halves with independent noise, and every product <x, y> is taken between a gradient of one half and one of the other.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..tree import Tree
from ..values import Objective
from .probe import Reading


def mean_gradient(objective: Objective, params: Tree, batches: Iterable[dict[str, Tensor]]) -> Tree:
    """Each client's gradient of its mean loss over all batches, ``[C, ...]``, at ``params [C, ...]``.

    A batch counts for a client as much as its ``weight [C]`` says (1 if absent).
    """
    total, mass = params.zeros(), torch.zeros(len(next(iter(params.values()))), dtype=torch.float64)
    for batch in batches:
        leaves = params.map(lambda leaf: leaf.detach().requires_grad_())
        loss = objective(leaves, batch)
        weight = batch.get("weight", torch.ones(len(loss))).to(loss)
        found = torch.autograd.grad((loss * weight).sum(), list(leaves.values()))
        total, mass = total + Tree(dict(zip(leaves, found, strict=True))), mass + weight.double().cpu()
    return total * (1 / mass.clamp_min(1e-12)).to(next(iter(total.values())).device)


def dissimilarity(one: Tree, two: Tree, share: Tensor) -> Reading:
    """``gradient.G2``, ``gradient.B2``, ``gradient.diversity``, and ``gradient.cosine``, the mean over pairs of clients.

    ``one`` and ``two``, ``[C, ...]``, are the gradients of the two halves; ``share [C]`` the clients' weights. Estimates,
    unbiased but for the ratios: G2 of identical clients is 0 on average and may be below. NaN where the
    noise leaves no length to divide by.
    """
    gram = flat(one) @ flat(two).T
    gram = (gram + gram.T) / 2  # <g_i, g_j>, [C, C]
    p = share.double().cpu() / share.double().sum().cpu()
    own, length = gram.diagonal(), p @ gram @ p
    norm = torch.where(own > 0, own, torch.nan).sqrt()
    apart = ~torch.eye(len(gram), dtype=torch.bool)
    return {"gradient.G2": p @ own - length, "gradient.B2": ratio(p @ own, length),
            "gradient.diversity": ratio(own.sum(), gram.sum()),
            "gradient.cosine": (gram / (norm[:, None] * norm))[apart].nanmean()}


def ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, torch.nan)


def flat(tree: Tree) -> Tensor:
    """All leaves side by side, ``[C, total]``, float64 on the CPU."""
    return torch.cat([leaf.flatten(1) for leaf in tree.values()], 1).cpu().double()
