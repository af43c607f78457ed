"""Whom a model serves: how unequal the clients' losses are."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult
from .base import DerivedMetric, MetricHistory, MetricValues, ScheduledProbe
from .context import ProbeContext

FAIRNESS_GROUP = "fairness"


def fairness_metrics(metrics: MetricValues, history: MetricHistory) -> MetricValues:
    """Over the losses x_k of all clients with data, each counting the same, whenever they are evaluated.

    ``fair.variance`` and ``fair.sd`` of the population (divided by N); ``fair.worst10``: mean loss of the worst tenth, at
    least one client; ``fair.gap``: worst less best; ``fair.jain``: Jain's index (sum u)^2 / (N sum u^2) of the utilities
    u_k = exp(-x_k), the probability of a token in the geometric mean: 1 if all are served alike, 1/N if one
    alone is. (On perplexities, where more is worse, the index says nothing.) Jain, Chiu & Hawe, DEC-TR-301, 1984;
    variance and worst tenth as in Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv:1905.10497.
    """
    loss = metrics.get("loss")
    if not isinstance(loss, Tensor) or not loss.ndim:
        return {}
    loss = loss[~loss.isnan()].double()
    if not len(loss):
        return {}
    worst = loss.sort(descending=True).values[: math.ceil(len(loss) / 10)]
    variance = loss.var(correction=0)
    return {
        "fair.variance": variance,
        "fair.sd": variance.sqrt(),
        "fair.worst10": worst.mean(),
        "fair.gap": loss.max() - loss.min(),
        "fair.jain": jain_index(torch.exp(loss.min() - loss)),
    }


def jain_index(utility: Tensor) -> Tensor:
    """Jain's index of utilities ``[N]``; whatever unit they are in."""
    return utility.sum() ** 2 / (len(utility) * (utility**2).sum())


def fairness_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    return [DerivedMetric("fairness", fairness_metrics)]


# Who shares a model with whom, and how far that agrees with the true domains.


@dataclass(frozen=True, eq=False)
class ClusterAgreement:
    """``group`` of every client, ``[N]``, and, where the clients' main domains are known, the agreement of both.

    ``cluster.ari``: adjusted Rand index, 0 by chance and 1 if they are the same (Hubert & Arabie, J. Classification 2, 1985);
    ``cluster.nmi``: normalised mutual information. Soft groups are judged by where most of a client is.
    """

    main_domains: np.ndarray | None = None  # [N], -1 where a client has none

    def __call__(self, result: RoundResult) -> MetricValues:
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        group = state.clustering_state["share"].argmax(1) if "share" in state.clustering_state else state.cluster_ids
        reading: MetricValues = {"group": group.double()}
        if self.main_domains is not None and (self.main_domains >= 0).all():
            from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

            reading["cluster.ari"] = float(adjusted_rand_score(self.main_domains, group.numpy()))
            reading["cluster.nmi"] = float(normalized_mutual_info_score(self.main_domains, group.numpy()))
        return reading


# What a round costs each client to send and to receive.

COST_GROUP = "cost"


class CommunicatingAlgorithm(Protocol):
    """What is asked of an algorithm here."""

    uploads: ClassVar[frozenset[str]]

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]: ...


@dataclass(frozen=True, eq=False)
class CommunicationCost:
    """``cost.down`` and ``cost.up``: bytes that a client receives and sends in the round, uncompressed, in the type they are in.

    Down: the model, what the algorithm sends beside it (SCAFFOLD's c doubles it) and, where an aggregate has merged something
    under the adapters, that matrix of every module. Up: the change of the model and what the server reads beside
    it (``uploads``: the change of the client state, the mean gradient). Leaves that nobody trains in the round do not travel,
    in the model or beside it: the client has them. The frozen base model is not in here, nor what a client needs that joins.
    Where messages did travel, their own size is said: the mean over the cohort.
    """

    algorithm: CommunicatingAlgorithm

    def __call__(self, result: RoundResult) -> MetricValues:
        server, report = result.before.server, result.report
        if report.bytes_on_wire is not None:
            down, up = report.bytes_on_wire.double().nanmean(0).tolist()
            return {"cost.down": down, "cost.up": up}
        still = self.algorithm.frozen_params(server.params.keys(), result.before.round)
        beside = {"client_state": report.state_delta, "mean_grad": report.mean_grad}
        return {
            "cost.down": float(sum(row_bytes(tree, still) for tree in (server.params, server.broadcast, server.merged_base))),
            "cost.up": float(row_bytes(report.delta, still) + sum(row_bytes(beside[name], still) for name in self.algorithm.uploads)),
        }


def row_bytes(tree: Tree, frozen: frozenset[str]) -> int:
    """Bytes of one row of a tree, without the leaves that stay."""
    return sum(leaf[0].numel() * leaf.element_size() for name, leaf in tree.items() if not is_frozen(name, frozen))


def is_frozen(name: str, frozen: frozenset[str]) -> bool:
    """Whether a leaf is one of those that nobody trains, under its own name or under one that an algorithm put before it."""
    return any(name == leaf or name.endswith("." + leaf) for leaf in frozen)


def cost_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    return [ScheduledProbe("cost", CommunicationCost(context.algorithm))]
