"""Update geometry: how long the clients' updates are, and how far they agree."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tree import Tree
from ..values import Round
from .probe import Reading


def update_geometry(done: Round) -> Reading:
    """Lengths and angles of the clients' updates d_i, one round, before aggregation.

    Each client ``[C]``: ``update.norm`` |d_i|; ``update.cosine`` of d_i with the mean update.
    The federation: ``update.consensus`` |mean d| / mean |d|, 1 if all agree and 1 / sqrt(C) if they are
    orthogonal; ``update.diversity`` mean |d|^2 / |mean d|^2, from 1 (identical) to C (orthogonal) and beyond
    (Yin et al., AISTATS 2018, arXiv:1706.05699, over a round instead of a step); ``update.divergence``
    mean_{i<j} |d_i - d_j| / mean |d|; ``gradient.norm`` of each client's mean raw gradient, ``[C]``, and
    its variance over the clients ``gradient.norm.variance``. Failed clients are NaN and do not count.
    """
    sound = ~done.report.failed & (done.report.steps > 0)
    gram = inner_products(done.report.delta.rows(sound.nonzero().flatten().to(device(done.report.delta))))
    count = len(gram)
    reading: Reading = {}
    if count:
        norm, along = gram.diagonal().clamp_min(0).sqrt(), gram.mean(1)  # <d_i, mean d>
        length = gram.mean().clamp_min(0).sqrt()  # |mean d|
        reading["update.norm"] = scattered(norm, sound)
        reading["update.cosine"] = scattered(along / (norm * length).clamp_min(1e-30), sound)
        reading["update.consensus"] = length / norm.mean().clamp_min(1e-30)
        reading["update.diversity"] = norm.pow(2).mean() / length.pow(2).clamp_min(1e-30)
        if count > 1:
            apart = (norm.pow(2)[:, None] + norm.pow(2) - 2 * gram).clamp_min(0).sqrt()
            reading["update.divergence"] = apart.sum() / (count * (count - 1)) / norm.mean().clamp_min(1e-30)
    slope = done.report.gradient.norm().cpu()
    slope = torch.where(sound, slope, torch.nan)
    reading["gradient.norm"] = slope
    if count > 1:
        reading["gradient.norm.variance"] = slope[sound].var()
    return reading


def inner_products(tree: Tree) -> Tensor:
    """All inner products of the rows, ``[C, C]``, in float64 on the CPU."""
    flat = torch.cat([leaf.flatten(1) for leaf in tree.values()], 1).cpu().double()
    return flat @ flat.T


def scattered(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` of the clients at ``mask [C]``, NaN for the others, ``[C]``."""
    return torch.full((len(mask),), torch.nan, dtype=torch.float64).masked_scatter(mask, values)


def device(tree: Tree) -> torch.device:
    return next(iter(tree.values())).device
