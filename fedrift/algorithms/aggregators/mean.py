"""Sums and means over the clients of each model, and who they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
from annotated_types import Gt
from torch import Tensor

from ...core.optimizers import Optimizer
from ...core.tree import Tree, to_float64
from ...core.types import CohortUpdate, ServerState


def weighted_mean(tree: Tree, report: CohortUpdate) -> Tree:
    """Mean over the clients of each model by weight, ``[C, ...] -> [M, ...]``; zeros where none took part."""
    mass = cluster_sum(Tree(_=report.weight), report)["_"]
    return cluster_sum(tree * report.weight, report) / mass.clamp_min(1e-12)


def cluster_sum(tree: Tree, report: CohortUpdate) -> Tree:
    """Sum over the clients of each model, ``[C, ...] -> [M, ...]``, in client order and in float64.

    Where clients belong to several models in part, each counts with its share of every one.
    """
    models = len(report.cluster_sizes)
    if report.membership is not None:
        share = report.membership.to(report.weight)  # [C, M]
        return tree.map(lambda leaf: torch.einsum("cm,c...->m...", to_float64(share), to_float64(leaf)).to(leaf.dtype))

    def add(leaf: Tensor) -> Tensor:
        every = to_float64(leaf)
        return every.new_zeros(models, *leaf.shape[1:]).index_add_(0, report.cluster_ids, every).to(leaf.dtype)

    return tree.map(add)


def cluster_mean(client_state: Tree, cluster_ids: Tensor, like: Tree) -> Tree:
    """The mean memory of those who share each model, ``[N, ...] -> [M, ...]``; zeros where nobody does. ``like``: [M, ...]."""
    models = len(next(iter(like.values())))
    count = cluster_ids.bincount(minlength=models).clamp_min(1)

    def mean(leaf: Tensor, there: Tensor) -> Tensor:
        every = to_float64(leaf)
        total = every.new_zeros(models, *leaf.shape[1:]).index_add_(0, cluster_ids.to(leaf.device), every)
        return (total / count.to(leaf.device).view(-1, *[1] * (leaf.ndim - 1))).to(there)

    return client_state.map(mean, like)


def has_update(report: CohortUpdate) -> Tensor:
    """Which models were trained by anybody, ``[M]`` bool."""
    if report.membership is not None:
        return ((report.weight > 0).unsqueeze(1) & (report.membership.to(report.weight) > 0)).any(0)
    return (
        torch.zeros(len(report.cluster_sizes), device=report.cluster_ids.device).index_add(
            0, report.cluster_ids, (report.weight > 0).float()
        )
        > 0
    )


def rows_by_model(report: CohortUpdate) -> list[tuple[int, Tensor]]:
    """Each model that was trained, with the rows ``[.]`` of the clients whose work counts."""
    rows = [
        (model, ((report.cluster_ids == model) & (report.weight > 0)).nonzero().flatten()) for model in range(len(report.cluster_sizes))
    ]
    return [(model, mine) for model, mine in rows if len(mine)]


# The weighted mean of what the clients send, and the frame of every other way to make one change of many.
#
# An aggregate turns the changes of a cohort, ``[C, ...]``, into the change of each model, ``[M, ...]``. It
# is a value of an algorithm, ``FedProx(mu=0.1, aggregator=Median())``, so that each rule is written once.


class AlgorithmInfo(Protocol):
    """What an aggregate may ask of the algorithm it serves."""

    @property
    def server_optimizer(self) -> Optimizer: ...
    @property
    def rescales_updates(self) -> bool: ...
    @property
    def reweights_clients(self) -> bool: ...
    @property
    def uploads(self) -> frozenset[str]: ...
    @property
    def is_personalized(self) -> bool: ...
    @property
    def one_client_per_model(self) -> bool: ...
    def init_client_state(self, params: Tree) -> Tree: ...


@dataclass(frozen=True)
class Mean:
    """sum_k p_k delta_k with p_k = weight_k / sum of the weights (McMahan et al. 2017, arXiv:1602.05629)."""

    modifies_base: ClassVar[bool] = False  # whether it moves what lies under the adapters
    couples_lora_factors: ClassVar[bool] = False  # whether it treats B and A of an adapter differently

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        """The leaves that nobody trains in this round."""
        return frozenset()

    def init_merged_base(self, params: Tree) -> Tree:
        """What lies under the adapters at first, ``[M, ...]``."""
        return Tree()

    def aggregate(self, server: ServerState, report: CohortUpdate) -> Tree:
        """The change of each model, ``[M, ...]``; zeros where none took part."""
        return weighted_mean(report.delta, report)

    def after_server_step(self, before: ServerState, after: ServerState, report: CohortUpdate) -> ServerState:
        """Once the params have moved: what else the server changes."""
        return after

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        """Why this makes no sense with what the algorithm does or these trained leaves."""
        return []

    def warnings(self, algorithm: AlgorithmInfo, weighting: str) -> list[str]:
        """What a reader of the results must know about this combination."""
        return []

    def cohort_warnings(self, cohort_size: int) -> list[str]:
        """What a reader must know because so few clients take part in a round."""
        return []


# The weighted mean of changes of bounded length: who shouts is heard no louder than ``max_norm``.
#
# Sun, Kairouz, Suresh & McMahan, "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963 (norm thresholding):
# sum_k p_k delta_k / max(1, ||delta_k|| / M), M ``max_norm``; the norm is over all trained leaves of a client.


@dataclass(frozen=True)
class NormClippedMean(Mean):
    max_norm: Annotated[float, Gt(0)] = 1.0

    def aggregate(self, server: ServerState, report: CohortUpdate) -> Tree:
        return weighted_mean(report.delta * (self.max_norm / report.delta.norm().clamp_min(self.max_norm)), report)


# Rules that count clients alike, whatever their weight: what they share is what cannot be combined with them.


@dataclass(frozen=True)
class Unweighted(Mean):
    """The frame of the rules that compare clients, or that must not tell who was there."""

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        said, ours, theirs = super().incompatibilities(algorithm, param_names), type(self).__name__, type(algorithm).__name__
        if algorithm.reweights_clients:
            said.append(
                f"{theirs} weighs clients by what all of them report, and {ours} counts them alike and bounds what each can do: use Mean"
            )
        if algorithm.one_client_per_model:
            said.append(f"{theirs} has one client a model, and {ours} is about many: use Mean")
        return said

    def warnings(self, algorithm: AlgorithmInfo, weighting: str) -> list[str]:
        said = super().warnings(algorithm, weighting)
        if weighting != "uniform":
            said.append(f"{type(self).__name__} counts clients alike; client_weighting={weighting!r} is not used for the changes")
        return said


@dataclass(frozen=True)
class Robust(Unweighted):
    """The frame of the rules that bear some clients who lie."""

    def warnings(self, algorithm: AlgorithmInfo, weighting: str) -> list[str]:
        said = super().warnings(algorithm, weighting)
        if "client_state" in algorithm.uploads:
            said.append(
                f"{type(self).__name__} bears liars in the changes only: the memories that {type(algorithm).__name__}'s "
                "clients send beside them go into plain means"
            )
        return said


__all__ = ["AlgorithmInfo", "Mean", "Robust", "Unweighted", "cluster_mean", "cluster_sum", "has_update", "rows_by_model", "weighted_mean"]
