"""Whom a model serves: how unequal the clients' losses are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .bench import Bench
from .panel import After, Look, Past
from .probe import Reading

GROUP = "fairness"


def fairness(reading: Reading, past: Past) -> Reading:
    """Over the losses x_k of all clients with data, each counting the same, whenever they are evaluated.

    ``fair.variance`` and ``fair.sd`` of the population (divided by N); ``fair.worst10``: mean loss of the worst tenth, at
    least one client; ``fair.gap``: worst less best; ``fair.jain``: Jain's index (sum u)^2 / (N sum u^2) of the utilities
    u_k = exp(-x_k), the probability of a token in the geometric mean: 1 if all are served alike, 1/N if one
    alone is. (On perplexities, where more is worse, the index says nothing.) Jain, Chiu & Hawe, DEC-TR-301, 1984;
    variance and worst tenth as in Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv:1905.10497.
    """
    loss = reading.get("loss")
    if not isinstance(loss, Tensor) or not loss.ndim:
        return {}
    loss = loss[~loss.isnan()].double()
    if not len(loss):
        return {}
    worst = loss.sort(descending=True).values[:math.ceil(len(loss) / 10)]
    variance = loss.var(correction=0)
    return {"fair.variance": variance, "fair.sd": variance.sqrt(), "fair.worst10": worst.mean(),
            "fair.gap": loss.max() - loss.min(), "fair.jain": jain(torch.exp(loss.min() - loss))}


def jain(utility: Tensor) -> Tensor:
    """Jain's index of utilities ``[N]``; whatever unit they are in."""
    return utility.sum() ** 2 / (len(utility) * (utility**2).sum())


def looks(bench: Bench) -> list[Look | After]:
    return [After("fairness", fairness)]
