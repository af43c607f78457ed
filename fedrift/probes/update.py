"""Update geometry: how long the clients' updates are, and how far they agree, in all and layer by layer."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from ..tree import Tree
from ..values import Round
from .probe import Reading

LAYER = re.compile(r"\.(\d+)\.")


class Agreement(NamedTuple):
    """What the inner products of n updates say."""

    norm: Tensor  # [n] |d_i|
    cosine: Tensor  # [n] of d_i with the mean update
    consensus: Tensor  # |mean d| / mean |d|
    diversity: Tensor  # mean |d|^2 / |mean d|^2
    pairwise: Tensor  # mean cosine of two different updates; NaN of one alone


def update_geometry(done: Round) -> Reading:
    """Lengths and angles of the clients' updates d_i, one round, before aggregation.

    Each client ``[C]``: ``update.norm`` |d_i|; ``update.cosine`` of d_i with the mean update; ``update.relative``
    |d_i| / |w_i|, w_i the trained weights that the client received (NaN where they are all 0).
    The federation: ``model.norm``, the mean of |w_i| over the cohort; ``update.consensus`` |mean d| / mean |d|, 1 if all
    agree and 1 / sqrt(C) if they are orthogonal; ``update.diversity`` mean |d|^2 / |mean d|^2, from 1 (identical) to C
    (orthogonal) and beyond (Yin et al., AISTATS 2018, arXiv:1706.05699, over a round instead of a step); both by layer too,
    with the domain ``layer 03``; ``update.pairwise`` mean cosine of two clients' updates; ``update.divergence``
    mean_{i<j} |d_i - d_j| / mean |d|; ``gradient.norm`` of each client's mean raw gradient over its local steps,
    ``[C]``, its mean over the clients, of the same name, and its variance ``gradient.norm.variance``. Failed clients are
    NaN and do not count.
    """
    sound = ~done.report.failed & (done.report.steps > 0)
    grams = by_layer(done.report.delta.rows(sound.nonzero().flatten().to(device(done.report.delta))))
    gram = torch.stack(list(grams.values())).sum(0)
    count = len(gram)
    received = received_norm(done)
    reading: Reading = {("model.norm", ""): received.mean()}
    if count:
        said = agreement(gram)
        reading["update.norm"] = scattered(said.norm, sound)
        reading["update.relative"] = reading["update.norm"] / received.where(received > 0, torch.nan)
        reading["update.cosine"] = scattered(said.cosine, sound)
        reading["update.consensus"], reading["update.diversity"] = said.consensus, said.diversity
        for layer, own in grams.items():
            if layer and bool(own.diagonal().any()):  # a layer that nobody trains has no direction
                part = agreement(own)
                reading["update.consensus", layer], reading["update.diversity", layer] = part.consensus, part.diversity
        if count > 1:
            norm = said.norm
            apart = (norm.pow(2)[:, None] + norm.pow(2) - 2 * gram).clamp_min(0).sqrt()
            reading["update.divergence"] = apart.sum() / (count * (count - 1)) / norm.mean().clamp_min(1e-30)
            reading["update.pairwise"] = said.pairwise
    slope = done.report.gradient.norm().cpu()
    slope = torch.where(sound, slope, torch.nan)
    reading["gradient.norm"] = slope
    if count:
        reading["gradient.norm", ""] = slope[sound].mean()
    if count > 1:
        reading["gradient.norm.variance"] = slope[sound].var()
    return reading


def received_norm(done: Round) -> Tensor:
    """The Euclidean length of the trained weights that each client of the cohort received, ``[C]`` float64."""
    models, place = done.before.group[done.cohort].unique(return_inverse=True)
    return done.before.server.params.rows(models).norm().cpu().double()[place.cpu()]


def agreement(gram: Tensor) -> Agreement:
    """From the inner products ``[n, n]`` of n updates, n at least 1."""
    norm, along = gram.diagonal().clamp_min(0).sqrt(), gram.mean(1)  # <d_i, mean d>
    length = gram.mean().clamp_min(0).sqrt()  # |mean d|
    apart = ~torch.eye(len(gram), dtype=torch.bool)
    return Agreement(norm, along / (norm * length).clamp_min(1e-30), length / norm.mean().clamp_min(1e-30),
                     norm.pow(2).mean() / length.pow(2).clamp_min(1e-30),
                     (gram / (norm[:, None] * norm).clamp_min(1e-30))[apart].mean())


def by_layer(tree: Tree) -> dict[str, Tensor]:
    """All inner products of the rows, ``[C, C]``, in float64 on the CPU, layer by layer; "" is what is in no layer."""
    grams: dict[str, Tensor] = {}
    for name, leaf in tree.items():
        flat = leaf.flatten(1).cpu().double()
        layer = layer_of(name)
        grams[layer] = grams.get(layer, 0.0) + flat @ flat.T
    return grams


def layer_of(name: str) -> str:
    """``layer 03`` for a leaf of the fourth block, "" for one that is in no block."""
    found = LAYER.search(name)
    return f"layer {int(found[1]):02d}" if found else ""


def scattered(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` of the clients at ``mask [C]``, NaN for the others, ``[C]``."""
    return torch.full((len(mask),), torch.nan, dtype=torch.float64).masked_scatter(mask, values)


def device(tree: Tree) -> torch.device:
    return next(iter(tree.values())).device
