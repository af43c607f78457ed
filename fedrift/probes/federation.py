"""Measure how clients differ within the federation.

Metrics: fairness of the clients' losses, agreement of clusters with domains, and communication cost.
"""

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
    """Compute the fairness of the clients' losses in every round in which they are evaluated.

    Let x_k be the loss of client k. All clients with data count equally.

    - ``fair.variance`` and ``fair.sd``: population variance and standard deviation (divided by N).
    - ``fair.worst10``: mean loss of the worst 10 % of clients, at least one client.
    - ``fair.gap``: worst loss minus best loss.
    - ``fair.jain``: Jain's index (sum u)^2 / (N sum u^2) of the utilities u_k = exp(-x_k), the geometric mean of the token
      probabilities. It is 1 if all utilities are equal and 1/N if only one client has any. Jain, Chiu & Hawe, DEC-TR-301, 1984.
      The index is not meaningful for perplexities, where a higher value is worse.

    Variance and worst 10 % follow Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv:1905.10497.
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
    """Compute Jain's index of utilities ``[N]``, which does not depend on their unit."""
    return utility.sum() ** 2 / (len(utility) * (utility**2).sum())


def fairness_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure the differences between the clients' losses, and the agreement of clusters with domains."""
    return [DerivedMetric("fairness", fairness_metrics)]


# Agreement of the clusters with the clients' main domains.


@dataclass(frozen=True, eq=False)
class ClusterAgreement:
    """Compare the clusters with the clients' main domains, if these are known.

    - ``cluster.id``: cluster id of every client, ``[N]``. With soft clustering it is the cluster with the client's largest share.
    - ``cluster.ari``: adjusted Rand index, 0 by chance and 1 for identical partitions (Hubert & Arabie, J. Classification 2, 1985).
    - ``cluster.nmi``: normalized mutual information.
    """

    main_domains: np.ndarray | None = None  # [N], domain index; -1 for a client without a main domain

    def __call__(self, result: RoundResult) -> MetricValues:
        """Compare the clusters after the round with the main domains."""
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Compare the clusters of a state with the main domains."""
        cluster_ids = state.clustering_state["membership"].argmax(1) if "membership" in state.clustering_state else state.cluster_ids
        metrics: MetricValues = {"cluster.id": cluster_ids.double()}
        if self.main_domains is not None and (self.main_domains >= 0).all():
            from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

            metrics["cluster.ari"] = float(adjusted_rand_score(self.main_domains, cluster_ids.numpy()))
            metrics["cluster.nmi"] = float(normalized_mutual_info_score(self.main_domains, cluster_ids.numpy()))
        return metrics


# Communication cost of a round per client.

COST_GROUP = "cost"


class CommunicatingAlgorithm(Protocol):
    """The attributes of an algorithm that determine its communication cost."""

    uploads: ClassVar[frozenset[str]]

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        """Return the parameters that no client trains in a round."""
        ...

    def is_personal(self, name: str) -> bool:
        """Return whether a parameter stays on its client."""
        ...


@dataclass(frozen=True, eq=False)
class CommunicationCost:
    """Count the bytes that one client downloads (``cost.down``) and uploads (``cost.up``) in a round.

    Tensors are counted uncompressed, in their own data type. Downloads are the model, the algorithm's broadcast (SCAFFOLD's control
    variate c doubles the cost) and, if the aggregator merged weights under the adapters, the merged matrix of each module. Uploads are
    the model update and the client's further ``uploads`` (the change of its client state, the mean gradient). Parameters that no client
    trains in the round and personal parameters are not transferred, and neither are the corresponding leaves of the other trees. The
    frozen base model is not counted, nor are the initial transfers to a client that joins. If messages really traveled over a network,
    their own sizes are reported instead, as the mean over the cohort.
    """

    algorithm: CommunicatingAlgorithm

    def __call__(self, result: RoundResult) -> MetricValues:
        """Count the bytes of one client in the round."""
        server, update = result.before.server, result.update
        if update.bytes_on_wire is not None:
            down, up = update.bytes_on_wire.double().nanmean(0).tolist()
            return {"cost.down": down, "cost.up": up}
        frozen = self.algorithm.frozen_params(server.params.keys(), result.before.round)
        frozen |= {name for name in server.params if self.algorithm.is_personal(name)}
        upload_trees = {"client_state": update.state_delta, "mean_grad": update.mean_grad}
        return {
            "cost.down": float(sum(row_bytes(tree, frozen) for tree in (server.params, server.broadcast, server.merged_base))),
            "cost.up": float(
                row_bytes(update.delta, frozen) + sum(row_bytes(upload_trees[name], frozen) for name in self.algorithm.uploads)
            ),
        }


def row_bytes(tree: Tree, frozen: frozenset[str]) -> int:
    """Return the bytes of one row of a tree without its frozen leaves."""
    return sum(leaf[0].numel() * leaf.element_size() for name, leaf in tree.items() if not is_frozen(name, frozen))


def is_frozen(name: str, frozen: frozenset[str]) -> bool:
    """Return whether a leaf is frozen, under its own name or under a name with a prefix that an algorithm added."""
    return any(name == leaf or name.endswith("." + leaf) for leaf in frozen)


def cost_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure the bytes that each client receives and sends per round."""
    return [ScheduledProbe("cost", CommunicationCost(context.algorithm))]
