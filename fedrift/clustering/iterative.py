"""Angles between clients' changes. Of adapters, what counts is the change of the product B A: the same product has many factors.

<D_i, D_j> with D = (B + dB)(A + dA) - B A = [B + dB, -B] [A + dA; A] is summed from small matrices: D itself is never made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from ..core.random import numpy_stream, torch_stream
from ..core.tree import Tree, to_float64
from ..core.types import FederatedState, RoundResult
from .base import Assignment, ClientInfo, NoClustering, apply_hysteresis, assign_to_one_cluster, match_clusters
from .selection import best_silhouette_k, candidate_ks


def inner_products(start: Tree, delta: Tree) -> Tensor:
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
            left = torch.cat([to_float64(up + leaf), -to_float64(up)], 2)  # [C, O, 2R]
            right = torch.cat([to_float64(down + delta[f"{module}.A"]), to_float64(down)], 1)  # [C, 2R, I]
            part = (torch.einsum("cor,dos->cdrs", left, left) * torch.einsum("cri,dsi->cdrs", right, right)).sum((2, 3))
        else:
            flat = to_float64(leaf).flatten(1)
            part = flat @ flat.mT
        total = part if total is None else total + part
    if total is None:
        raise ValueError("an empty change has no angles")
    return total.cpu()


def cosine_similarity(gram: Tensor) -> Tensor:
    """``[C, C]`` cosines of inner products; 0 with a change that is none."""
    length = gram.diagonal().clamp_min(0).sqrt()
    return (gram / (length[:, None] * length[None, :]).clamp_min(1e-300)).clamp(-1, 1)


# Clients whose first updates point alike share a model.
#
# Briggs, Fan & Andras, "Federated learning with hierarchical clustering of local updates", IJCNN 2020, arXiv:2004.11791: after
# one round in which everybody takes part, the updates are clustered by cosine distance with complete linkage, and each group
# goes on by itself from the shared model of that round. The updates of adapters are compared as products.
#
# How many groups: the most convincing silhouette (``selection.py``) unless said. With ``interval``, the whole fleet is called again
# after so many rounds and grouped anew; a client changes its group only if the other is at less than ``hysteresis`` of its
# distance.


@dataclass(frozen=True)
class UpdateClustering(NoClustering):
    has_full_participation_rounds: ClassVar[bool] = True
    num_clusters: Annotated[int, Ge(1)] | None = None
    interval: Annotated[int, Ge(1)] | None = None
    hysteresis: Annotated[float, Gt(0), Le(1)] = 0.9

    def needs_full_participation(self, round: int) -> bool:
        return round == 0 or (self.interval is not None and round % self.interval == 0)

    def recluster(self, result: RoundResult, client_info: ClientInfo) -> Assignment | None:
        round = result.before.round
        if not self.needs_full_participation(round):
            return None
        start = result.before.server.params.take(result.before.cluster_ids[result.cohort].to(result.report.cluster_ids.device))
        alike = cosine_similarity(inner_products(start, result.report.delta))
        apart = (1 - alike).numpy()
        np.fill_diagonal(apart, 0.0)
        group, silhouettes = self.cluster_updates(apart)
        models, held = int(group.max()) + 1, 0
        old = result.before.cluster_ids.numpy()
        if round and models > 1:
            group, _ = match_clusters(old, group, int(old.max()) + 1, models)
            kept = apply_hysteresis(distance_to_clusters(alike, group, models), np.where(old < models, old, group), self.hysteresis)
            held, group = int((kept != group).sum()), kept
        why = {
            "signal": "UpdateClustering",
            "k": models,
            "asked": self.num_clusters,
            "silhouettes": {str(k): value for k, value in silhouettes.items()},
            "silhouette": silhouettes.get(models, float("nan")),
            "switched": int((group != old).sum()) if round else 0,
            "held": held,
            "called": len(result.cohort),
            "bytes": 0,
        }
        return Assignment(group, models, why)

    def cluster_updates(self, distances: np.ndarray) -> tuple[np.ndarray, dict[int, float]]:
        """Groups by complete linkage of distances ``[N, N]``, group 0 the largest; the silhouettes that were looked at."""
        if self.num_clusters is not None:
            return agglomerate(distances, min(self.num_clusters, len(distances)), "complete"), {}
        solutions = {k: agglomerate(distances, k, "complete") for k in candidate_ks(len(distances))}
        k, silhouettes = best_silhouette_k(solutions, distances)
        return solutions.get(k, np.zeros(len(distances), dtype=np.int64)), silhouettes

    def warnings(self) -> list[str]:
        return [
            "UpdateClustering calls the whole fleet in the rounds whose updates it groups by: with participation below 1 more "
            "clients train in them than without clustering"
        ]


def agglomerate(distances: np.ndarray, k: int, linkage: str) -> np.ndarray:
    """Agglomerative clustering of distances ``[N, N]`` into k groups, the largest first."""
    if k == 1:
        return np.zeros(len(distances), dtype=np.int64)
    from sklearn.cluster import AgglomerativeClustering

    labels = AgglomerativeClustering(k, metric="precomputed", linkage=linkage).fit_predict(distances)
    by_size = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    return np.asarray(np.argsort(by_size)[labels], dtype=np.int64)


def distance_to_clusters(cosine: Tensor, cluster_ids: np.ndarray, num_models: int) -> np.ndarray:
    """Cosine distance of each client's change to the mean direction of each group, ``[N, M]``."""
    member = torch.nn.functional.one_hot(torch.as_tensor(cluster_ids), num_models).double()  # [N, M]
    length = torch.einsum("nm,nk,km->m", member, cosine, member).clamp_min(1e-300).sqrt()
    return (1 - cosine @ member / length).numpy()


# Groups split in two when their clients, near a point that suits all of them, still pull apart.
#
# CFL: Sattler, Müller & Samek, "Clustered Federated Learning", IEEE TNNLS 2020, arXiv:1910.01991 (Algorithm 2). A group whose
# mean update is short, |sum_k p_k D_k| < eps1, while some client's is long, max_k |D_k| > eps2, is cut in two so that the
# largest cosine across the cut, alpha, is smallest (single linkage finds this cut), and the cut is kept if sqrt((1 - alpha) /
# 2) > gamma. And so on in both halves.
#
# The thresholds depend on the scale of the updates: they are shares of the longest update of the first round. Groups are looked
# at in rounds that call the whole fleet, the first and every ``interval``-th.


@dataclass(frozen=True)
class CFL(NoClustering):
    has_full_participation_rounds: ClassVar[bool] = True
    eps1: Annotated[float, Gt(0)] = 0.4  # eps1
    eps2: Annotated[float, Gt(0)] = 0.6  # eps2
    gamma: Annotated[float, Ge(0), Lt(1)] = 0.5
    interval: Annotated[int, Ge(1)] = 5
    min_cluster_size: Annotated[int, Ge(1)] = 2  # clients of a half

    def needs_full_participation(self, round: int) -> bool:
        return round == 0 or (round + 1) % self.interval == 0

    def recluster(self, result: RoundResult, client_info: ClientInfo) -> Assignment | None:
        if not self.needs_full_participation(result.before.round):
            return None
        report, state = result.report, result.after
        start = result.before.server.params.take(result.before.cluster_ids.to(report.cluster_ids.device))
        products = inner_products(start, report.delta)
        length = products.diagonal().clamp_min(0).sqrt()
        scale = state.clustering_state["scale"] if "scale" in state.clustering_state else length.max().view(1)
        group, parents, looked = state.cluster_ids.numpy().copy(), list(range(state.server.num_models)), []
        sound = ~report.failed.numpy()
        for model in range(state.server.num_models):
            members = np.flatnonzero(group == model)
            if len(members) < 2 * self.min_cluster_size or not sound[members].all():
                continue
            cut, said = self.find_split(products, report.weight.double().cpu(), members, float(scale))
            looked.append({"group": model, **said})
            if cut is not None:
                group[members[cut]] = len(parents)
                parents.append(model)
        why = {
            "signal": "CFL",
            "k": len(parents),
            "scale": float(scale),
            "looked": looked,
            "called": len(result.cohort),
            "switched": int((group != state.cluster_ids.numpy()).sum()),
            "bytes": 0,
        }
        return Assignment(group, len(parents), why, np.array(parents), state=Tree(scale=scale))

    def find_split(
        self, inner_product_matrix: Tensor, weight: Tensor, members: np.ndarray, scale: float
    ) -> tuple[np.ndarray | None, dict[str, Any]]:
        """The half to leave, as bool over the members, or None; and the numbers that decided."""
        rows = torch.as_tensor(members)
        own = inner_product_matrix[rows][:, rows]
        share = weight[rows] / weight[rows].sum().clamp_min(1e-12)
        mean, longest = float((share @ own @ share).clamp_min(0).sqrt()), float(own.diagonal().clamp_min(0).max().sqrt())
        said = {"mean": mean, "longest": longest}
        if mean >= self.eps1 * scale or longest <= self.eps2 * scale:
            return None, said
        alike = cosine_similarity(own).numpy()
        apart = 1 - alike
        np.fill_diagonal(apart, 0.0)
        half = agglomerate(apart, 2, "single") == 1
        across = float(alike[half][:, ~half].max())
        said |= {"across": across, "gap": float(np.sqrt((1 - across) / 2))}
        wanted = min(half.sum(), (~half).sum()) >= self.min_cluster_size and said["gap"] > self.gamma
        return (half if wanted else None), said

    def warnings(self) -> list[str]:
        return [
            "CFL calls the whole fleet in the first and every few rounds: with participation below 1 more clients "
            "train in them than without clustering"
        ]


# Every client takes the one of J models that fits its training text best, every round.
#
# IFCA: Ghosh, Chung, Yin & Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, arXiv:2006.04088
# (Algorithm 1, model averaging). argmin_j F_k(w_j), on the first ``num_batches`` batches that the client is about to train on. A
# model that nobody takes stays as it is. All clients choose, not the next cohort alone, so that each is judged by a model that
# it chose.
#
# J models that are alike never part. ``symmetry_breaking`` makes them differ: ``warm-up`` lets J random groups train apart for one round,
# ``noise`` adds Gaussian noise of ``noise_scale`` to every model at first. Either can end in a bad place: how often it does is part
# of the method, so runs are begun anew with other ``restart`` numbers (``with_restarts``), the one of the least training loss is
# kept, and all are paid for.

LOSS_TOLERANCE = 1e-9  # losses that differ by less are the same number, summed in another order


@dataclass(frozen=True)
class IFCA(NoClustering):
    needs_client_data: ClassVar[bool] = True
    num_clusters: Annotated[int, Ge(1)] = 4  # J
    num_batches: Annotated[int, Ge(1)] = 4
    symmetry_breaking: Literal["warm-up", "noise"] = "warm-up"
    noise_scale: Annotated[float, Gt(0)] = 0.01
    restart: Annotated[int, Ge(0)] = 0

    def with_restarts(self, count: int) -> tuple[IFCA, ...]:
        """The same, begun ``count`` times."""
        return tuple(replace(self, restart=self.restart + number) for number in range(count))

    def init_assignment(self, client_info: ClientInfo) -> Assignment:
        """For the warm-up random groups of about equal size; else everybody in the first, until the models are there."""
        group = numpy_stream(client_info.seed, "first groups", self.restart).permutation(
            np.arange(client_info.num_clients) % self.num_clusters
        )
        group = group if self.symmetry_breaking == "warm-up" else assign_to_one_cluster(client_info.num_clients)
        return Assignment(group, self.num_clusters, {**self.build_reason(), "switched": 0}, np.arange(self.num_clusters))

    def init_models(self, params: Tree, client_info: ClientInfo) -> Tree:
        if self.symmetry_breaking == "warm-up":
            return params
        draw = torch_stream(client_info.seed, "unlike models", self.restart)
        return params.map(lambda leaf: leaf + self.noise_scale * torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype).to(leaf))

    def refine(self, state: FederatedState, client_info: ClientInfo) -> Assignment | None:
        return self.choose_models(state, client_info) if self.symmetry_breaking == "noise" else None

    def recluster(self, result: RoundResult, client_info: ClientInfo) -> Assignment | None:
        return self.choose_models(result.after, client_info)

    def choose_models(self, state: FederatedState, client_info: ClientInfo) -> Assignment | None:
        """The models that clients take now; None if nobody changes."""
        losses, now = client_info.losses(state, self.num_batches).numpy(), state.cluster_ids.numpy()
        rows = np.arange(len(now))
        best = np.where(np.isnan(losses), np.inf, losses).argmin(axis=1)
        better = losses[rows, best] < losses[rows, now] * (1 - LOSS_TOLERANCE)  # equal losses change nothing, nor do missing ones
        group = np.where(better, best, now)
        if (group == now).all():
            return None
        why = {**self.build_reason(), "switched": int((group != now).sum())}
        return Assignment(group, self.num_clusters, why, np.arange(self.num_clusters), state=state.clustering_state)

    def build_reason(self) -> dict[str, object]:
        return {"signal": "IFCA", "k": self.num_clusters, "restart": self.restart, "downloads": self.num_clusters, "bytes": 0}

    def warnings(self) -> list[str]:
        return [
            f"IFCA sends {self.num_clusters} models to a client instead of one, and each reads {self.num_batches} batches with "
            "all of them before it trains: neither is in the count of trained tokens"
        ]


__all__ = ["CFL", "IFCA", "UpdateClustering", "agglomerate", "cosine_similarity", "inner_products"]
