"""Stratified participation: of m clients a round, every group gives its share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..rounds import sample
from ..seeds import numpy_stream


def shares(sizes: np.ndarray, count: int, offset: int) -> np.ndarray:
    """How many of each group take part, ``sizes [M] -> [M]``: ``count`` in all, each its proportion rounded up or down.

    Systematic sampling (Madow & Madow, Annals of Mathematical Statistics 15, 1944): over the offsets 0..N-1 the mean is the
    exact proportion, so that every client takes part equally often whatever the size of its group.
    """
    ends = (count * np.cumsum(sizes) + offset) // sizes.sum()
    return np.diff(ends, prepend=0)


def stratified(group: Tensor, count: int, seed: int, round: int) -> Tensor:
    """The cohort of a round, ascending ``[C]``; with one group it is the one drawn without mitigation."""
    size, held = len(group), group.numpy()
    if not held.any():
        return sample(size, count, seed, round)
    order = numpy_stream(seed, "cohort", round).permutation(size)  # as ``sample`` draws: cohorts stay as alike as can be
    models = np.unique(held)
    sizes = np.array([(held == model).sum() for model in models])
    wanted = shares(sizes, count, int(numpy_stream(seed, "strata", round).integers(size)))
    picks = [order[held[order] == model][:number] for model, number in zip(models, wanted, strict=True)]
    return torch.from_numpy(np.sort(np.concatenate(picks)))


__all__ = ["shares", "stratified"]
