"""Adapters as maps: how many directions they use, and whether the clients use the same ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tree import wide
from ..values import Round, State
from .bench import Bench
from .panel import After, Look
from .probe import Reading
from .representation import exponent_of_entropy
from .update import layer_of
from .worn import mean_model, sound

GROUP = "adapters"

SLIGHT = 1e-6  # of the largest singular value: what is smaller is rounding, and no direction


def adapter_subspaces(done: Round) -> Reading:
    """Of the product B A of each adapted module: the mean over a layer's modules (``layer 03``), and over all modules.

    The server's adapters after the round: ``adapters.rank``, exp of the entropy of the singular values' shares;
    ``adapters.rank.stable``, |B A|_F^2 / |B A|_2^2. The clients' after training: ``adapters.angle``, the mean over pairs
    of clients of the mean squared cosine of the principal angles between their column spaces and between their
    row spaces (also as ``columns`` and ``rows``): 1 if they are the same space, 0 if orthogonal, R / O or R / I by chance.
    Row spaces begin alike, for all begin with one A. From QR of the factors; no ``[O, I]`` matrix is built, no token read.
    A product that is zero has no directions and does not count. Without adapters the reading is empty.
    """
    return server_ranks(done.after) | client_angles(done)


def server_ranks(state: State) -> Reading:
    """``adapters.rank`` and ``adapters.rank.stable``; of several models, the mean over the fleet."""
    params, ranks, stable = state.server.params, {}, {}
    for module in adapted(params):
        values = product(params[module + ".B"], params[module + ".A"])[1]  # [M, R]
        there = values[:, 0] > 0
        ranks[module] = torch.where(there, exponent_of_entropy(values), torch.nan)
        stable[module] = torch.where(there, values.pow(2).sum(1) / values[:, 0].pow(2), torch.nan)
    return {key: mean_model(value, state) for name, found in {"adapters.rank": ranks, "adapters.rank.stable": stable}.items()
            for key, value in means(name, found).items()}


def client_angles(done: Round) -> Reading:
    """``adapters.angle`` between the clients that trained."""
    rows = sound(done).nonzero().flatten()
    if len(rows) < 2:
        return {}
    local = done.local
    found: dict[str, dict[str, Tensor]] = {"columns": {}, "rows": {}, "": {}}
    for module in adapted(local):
        up, values, down = product(local[module + ".B"].cpu()[rows], local[module + ".A"].cpu()[rows])
        there = values > SLIGHT * values[:, :1]  # [C, R]
        columns, across = overlap(up, there), overlap(down, there)
        found["columns"][module], found["rows"][module], found[""][module] = columns, across, (columns + across) / 2
    reading: Reading = {**means("adapters.angle", found[""])}
    for side in ("columns", "rows"):
        for key, value in means("adapters.angle", found[side]).items():
            reading["adapters.angle", f"{key[1]} {side}" if isinstance(key, tuple) else side] = value
    return reading


def product(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD of B A from its factors ``[A, O, R], [A, R, I]``: ``[A, O, R], [A, R], [A, I, R]``, float64.

    NaN where a factor is not finite.
    """
    up, down = wide(up).cpu(), wide(down).cpu()
    finite = (up.isfinite().flatten(1).all(1) & down.isfinite().flatten(1).all(1))
    tall, left = torch.linalg.qr(torch.where(finite[:, None, None], up, 0))
    flat, right = torch.linalg.qr(torch.where(finite[:, None, None], down, 0).mT)
    u, values, v = torch.linalg.svd(left @ right.mT, full_matrices=False)
    return tall @ u, torch.where(finite[:, None], values, torch.nan), flat @ v.mT


def overlap(bases: Tensor, there: Tensor) -> Tensor:
    """Mean over pairs of mean cos^2 of the principal angles, of the spaces ``[C, O, R]`` whose directions ``there [C, R]`` count.

    |U_i^T U_j|^2 / min(r_i, r_j), for orthonormal U; NaN if no pair has directions.
    """
    bases = torch.where(there[:, None], bases, 0.0)
    gram = torch.einsum("cor,doq->cdrq", bases, bases).pow(2).sum((2, 3))
    ranks = there.sum(1)
    pairs = torch.ones_like(gram).triu(1).bool() & (torch.minimum(ranks[:, None], ranks) > 0)
    return (gram / torch.minimum(ranks[:, None], ranks))[pairs].mean()


def adapted(params: dict[str, Tensor]) -> list[str]:
    """The modules that have an adapter."""
    return [name.removesuffix(".A") for name in params if name.endswith(".A") and name[:-1] + "B" in params]


def means(metric: str, found: dict[str, Tensor]) -> dict[str | tuple[str, str], Tensor]:
    """A metric's mean over all modules, and over those of each layer; modules that say nothing (NaN) do not count."""
    layers: dict[str, list[Tensor]] = {}
    reading: dict[str | tuple[str, str], Tensor] = {metric: torch.stack(list(found.values())).nanmean(0)} if found else {}
    for module, value in found.items():
        if layer_of(module):
            layers.setdefault(layer_of(module), []).append(value)
    return reading | {(metric, name): torch.stack(values).nanmean(0) for name, values in layers.items()}


def looks(bench: Bench) -> list[Look | After]:
    """Adapters, whenever deep looks are taken; nothing where none are trained."""
    return [Look("subspaces", adapter_subspaces, "deep")] if adapted(bench.start) else []
