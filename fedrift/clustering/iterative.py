"""Clustering strategies that use the clients' updates or losses during training: ``UpdateClustering``, ``CFL`` and ``IFCA``.

Updates are compared by the angles between them. For adapters the relevant change is that of the product B A, because the same product
has many factorizations. With D = (B + dB)(A + dA) - B A = [B + dB, -B] [A + dA; A], the inner product <D_i, D_j> is
computed from small matrices, and D itself is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from ..core.lazy_imports import torch
from ..core.random import numpy_stream, torch_stream
from ..core.tree import Tree, to_float64
from ..core.types import FederatedState, RoundResult
from .base import Assignment, ClientInfo, NoClustering, apply_hysteresis, assign_to_one_cluster, match_clusters
from .selection import best_silhouette_k, candidate_ks

if TYPE_CHECKING:
    from torch import Tensor


def inner_products(start: Tree, delta: Tree) -> Tensor:
    """Return the inner products of the updates of C clients; for adapters, the inner products of the changes of B A.

    The constant that scales the product B A is left out, because it is the same for all clients.

    Args:
        start: Models that the clients received, [C, ...].
        delta: Updates of the clients, [C, ...].

    Returns:
        Inner products, [C, C] float64.
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
            products = (torch.einsum("cor,dos->cdrs", left, left) * torch.einsum("cri,dsi->cdrs", right, right)).sum((2, 3))
        else:
            flat = to_float64(leaf).flatten(1)
            products = flat @ flat.mT
        total = products if total is None else total + products
    if total is None:
        raise ValueError("an update without parameters has no inner products")
    return total.cpu()


def cosine_similarity(gram: Tensor) -> Tensor:
    """Return the cosines of inner products, [C, C]; the cosine with a zero update is 0."""
    norm = gram.diagonal().clamp_min(0).sqrt()
    return (gram / (norm[:, None] * norm[None, :]).clamp_min(1e-300)).clamp(-1, 1)


# UpdateClustering: Briggs, Fan & Andras, "Federated learning with hierarchical clustering of local updates", IJCNN 2020,
# arXiv:2004.11791.


@dataclass(frozen=True)
class UpdateClustering(NoClustering):
    """Clustering of clients by the cosine distances of their first updates (Briggs, Fan & Andras, IJCNN 2020, arXiv:2004.11791).

    After one round with all clients, the updates are clustered hierarchically with complete linkage. Each cluster then trains its own
    model from the shared model of that round. Updates of adapters are compared as changes of B A.

    If ``interval`` is set, all clients take part again every ``interval`` rounds and are clustered again. A client changes its cluster
    only if the distance to the nearest cluster is below ``hysteresis`` times the distance to its own.

    Attributes:
        num_clusters: Number of clusters; None selects it by the silhouette (``selection.py``).
        interval: Number of rounds between two clusterings; None clusters only once.
        hysteresis: Largest ratio of distances at which a client changes its cluster, in (0, 1].

    Example:
        >>> fedrift.load_config(config, ["clustering={type: UpdateClustering, interval: 5}"]).clustering.interval
        5
    """

    has_full_participation_rounds: ClassVar[bool] = True
    num_clusters: Annotated[int, Ge(1)] | None = None
    interval: Annotated[int, Ge(1)] | None = None
    hysteresis: Annotated[float, Gt(0), Le(1)] = 0.9

    def needs_full_participation(self, round: int) -> bool:
        """Return whether the next round trains all clients: the first one and every ``interval``-th."""
        return round == 0 or (self.interval is not None and round % self.interval == 0)

    def recluster(self, result: RoundResult, client_info: ClientInfo) -> Assignment | None:
        """Return new clusters after a round with all clients, else None."""
        round = result.before.round
        if not self.needs_full_participation(round):
            return None
        start = result.before.server.params.take(result.before.cluster_ids[result.cohort].to(result.update.cluster_ids.device))
        cosine = cosine_similarity(inner_products(start, result.update.delta))
        distances = (1 - cosine).numpy()
        np.fill_diagonal(distances, 0.0)
        cluster_ids, silhouettes = self.cluster_updates(distances)
        num_models, num_held = int(cluster_ids.max()) + 1, 0
        old_ids = result.before.cluster_ids.numpy()
        if round and num_models > 1:
            cluster_ids, _ = match_clusters(old_ids, cluster_ids, int(old_ids.max()) + 1, num_models)
            stable_ids = apply_hysteresis(
                distance_to_clusters(cosine, cluster_ids, num_models), np.where(old_ids < num_models, old_ids, cluster_ids), self.hysteresis
            )
            num_held, cluster_ids = int((stable_ids != cluster_ids).sum()), stable_ids
        reason = {
            "signal": "UpdateClustering",
            "k": num_models,
            "requested_k": self.num_clusters,
            "silhouettes": {str(k): value for k, value in silhouettes.items()},
            "silhouette": silhouettes.get(num_models, float("nan")),
            "switched": int((cluster_ids != old_ids).sum()) if round else 0,
            "num_held": num_held,
            "num_participants": len(result.cohort),
            "bytes": 0,
        }
        return Assignment(cluster_ids, num_models, reason)

    def cluster_updates(self, distances: np.ndarray) -> tuple[np.ndarray, dict[int, float]]:
        """Cluster clients by complete linkage.

        Args:
            distances: Cosine distances of the clients' updates, [N, N].

        Returns:
            Cluster of each client, [N], where cluster 0 is the largest, and the silhouette of each candidate number of clusters.
        """
        if self.num_clusters is not None:
            return agglomerate(distances, min(self.num_clusters, len(distances)), "complete"), {}
        solutions = {k: agglomerate(distances, k, "complete") for k in candidate_ks(len(distances))}
        k, silhouettes = best_silhouette_k(solutions, distances)
        return solutions.get(k, np.zeros(len(distances), dtype=np.int64)), silhouettes

    def warnings(self) -> list[str]:
        """Return a warning about the rounds that train all clients."""
        return [
            "UpdateClustering trains all clients in the rounds whose updates it clusters. With a participation rate below 1 "
            "these rounds train more clients than without clustering."
        ]


def agglomerate(distances: np.ndarray, k: int, linkage: str) -> np.ndarray:
    """Return agglomerative clusters, of which cluster 0 is the largest.

    Args:
        distances: Pairwise distances, [N, N].
        k: Number of clusters.
        linkage: Linkage rule of scikit-learn, such as ``complete`` or ``single``.

    Returns:
        Cluster of each client, [N].
    """
    if k == 1:
        return np.zeros(len(distances), dtype=np.int64)
    from sklearn.cluster import AgglomerativeClustering

    labels = AgglomerativeClustering(k, metric="precomputed", linkage=linkage).fit_predict(distances)
    by_size = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    return np.asarray(np.argsort(by_size)[labels], dtype=np.int64)


def distance_to_clusters(cosine: Tensor, cluster_ids: np.ndarray, num_models: int) -> np.ndarray:
    """Return the cosine distance of each client's update to the mean direction of each cluster.

    Args:
        cosine: Cosines of the updates, [N, N].
        cluster_ids: Cluster of each client, [N].
        num_models: M, the number of clusters.

    Returns:
        Distances, [N, M].
    """
    member = torch.nn.functional.one_hot(torch.as_tensor(cluster_ids), num_models).double()  # [N, M]
    norm = torch.einsum("nm,nk,km->m", member, cosine, member).clamp_min(1e-300).sqrt()
    return (1 - cosine @ member / norm).numpy()


# CFL: Sattler, Müller & Samek, "Clustered Federated Learning", IEEE TNNLS 2020, arXiv:1910.01991 (Algorithm 2).


@dataclass(frozen=True)
class CFL(NoClustering):
    """Clustered federated learning by recursive bipartition (Sattler, Müller & Samek, IEEE TNNLS 2020, arXiv:1910.01991, Algorithm 2).

    A cluster is a candidate for a split if its mean update is small, |sum_k p_k D_k| < eps1, while the update of some client is large,
    max_k |D_k| > eps2. Then the model is near a stationary point of the mean objective, but the clients disagree. The split minimizes
    alpha, the largest cosine between the two halves, which single linkage achieves. It is accepted if sqrt((1 - alpha) / 2) > gamma.
    Both halves can be split again in later rounds.

    The thresholds depend on the scale of the updates, so eps1 and eps2 are relative to the largest update norm of the first round.
    Clusters are checked in rounds with all clients: the first one and every ``interval``-th.

    Attributes:
        eps1: Upper threshold of the norm of the mean update, relative to the largest update norm of the first round.
        eps2: Lower threshold of the largest update norm, relative to the largest update norm of the first round.
        gamma: Lower threshold of sqrt((1 - alpha) / 2).
        interval: Number of rounds between two checks.
        min_cluster_size: Smallest number of clients of each half.

    Example:
        >>> fedrift.load_config(config, ["clustering={type: CFL, gamma: 0.3}"]).clustering.gamma
        0.3
    """

    has_full_participation_rounds: ClassVar[bool] = True
    eps1: Annotated[float, Gt(0)] = 0.4
    eps2: Annotated[float, Gt(0)] = 0.6
    gamma: Annotated[float, Ge(0), Lt(1)] = 0.5
    interval: Annotated[int, Ge(1)] = 5
    min_cluster_size: Annotated[int, Ge(1)] = 2

    def needs_full_participation(self, round: int) -> bool:
        """Return whether the next round trains all clients: the first one and every ``interval``-th."""
        return round == 0 or (round + 1) % self.interval == 0

    def recluster(self, result: RoundResult, client_info: ClientInfo) -> Assignment | None:
        """Return the clusters with all accepted splits after a round with all clients, else None."""
        if not self.needs_full_participation(result.before.round):
            return None
        update, state = result.update, result.after
        start = result.before.server.params.take(result.before.cluster_ids.to(update.cluster_ids.device))
        products = inner_products(start, update.delta)
        norm = products.diagonal().clamp_min(0).sqrt()
        scale = state.clustering_state["scale"] if "scale" in state.clustering_state else norm.max().view(1)
        cluster_ids, parents, checks = state.cluster_ids.numpy().copy(), list(range(state.server.num_models)), []
        is_valid = ~update.failed.numpy()
        for model in range(state.server.num_models):
            members = np.flatnonzero(cluster_ids == model)
            if len(members) < 2 * self.min_cluster_size or not is_valid[members].all():
                continue
            half, evidence = self.find_split(products, update.weight.double().cpu(), members, float(scale))
            checks.append({"cluster_id": model, **evidence})
            if half is not None:
                cluster_ids[members[half]] = len(parents)
                parents.append(model)
        reason = {
            "signal": "CFL",
            "k": len(parents),
            "scale": float(scale),
            "split_checks": checks,
            "num_participants": len(result.cohort),
            "switched": int((cluster_ids != state.cluster_ids.numpy()).sum()),
            "bytes": 0,
        }
        return Assignment(cluster_ids, len(parents), reason, np.array(parents), state=Tree(scale=scale))

    def find_split(
        self, inner_product_matrix: Tensor, weight: Tensor, members: np.ndarray, scale: float
    ) -> tuple[np.ndarray | None, dict[str, Any]]:
        """Return the half of a cluster that receives a new model, or None if the cluster stays whole, together with the evidence.

        Args:
            inner_product_matrix: Inner products of all clients' updates, [N, N].
            weight: Aggregation weight of each client, [N].
            members: Indices of the cluster's clients, [K].
            scale: Largest update norm of the first round.

        Returns:
            Bool mask over the members, [K], or None; and the numbers that the decision is based on.
        """
        rows = torch.as_tensor(members)
        products = inner_product_matrix[rows][:, rows]
        share = weight[rows] / weight[rows].sum().clamp_min(1e-12)
        mean, longest = float((share @ products @ share).clamp_min(0).sqrt()), float(products.diagonal().clamp_min(0).max().sqrt())
        evidence = {"mean": mean, "longest": longest}
        if mean >= self.eps1 * scale or longest <= self.eps2 * scale:
            return None, evidence
        cosine = cosine_similarity(products).numpy()
        distances = 1 - cosine
        np.fill_diagonal(distances, 0.0)
        half = agglomerate(distances, 2, "single") == 1
        across = float(cosine[half][:, ~half].max())
        evidence |= {"across": across, "gap": float(np.sqrt((1 - across) / 2))}
        is_accepted = min(half.sum(), (~half).sum()) >= self.min_cluster_size and evidence["gap"] > self.gamma
        return (half if is_accepted else None), evidence

    def warnings(self) -> list[str]:
        """Return a warning about the rounds that train all clients."""
        return [
            "CFL trains all clients in the first round and periodically thereafter. With a participation rate below 1 "
            "these rounds train more clients than without clustering."
        ]


# IFCA: Ghosh, Chung, Yin & Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, arXiv:2006.04088
# (Algorithm 1, model averaging).

LOSS_TOLERANCE = 1e-9  # relative; smaller differences are rounding errors of the order of summation


@dataclass(frozen=True)
class IFCA(NoClustering):
    """Iterative federated clustering: in every round each client chooses the model that fits its training text best.

    Ghosh, Chung, Yin & Ramchandran, NeurIPS 2020, arXiv:2006.04088 (Algorithm 1, model averaging). Client k chooses argmin_j F_k(w_j)
    among J models, on the first ``num_batches`` batches that it trains on next. A model without clients does not change. All
    clients choose, and not only the next cohort, so that each client is evaluated with a model of its choice.

    Equal models would never diverge from each other, so ``symmetry_breaking`` makes them differ: ``warm-up`` trains J random clusters
    separately for one round, and ``noise`` adds Gaussian noise to each initial model. Both can end in a poor local optimum, and
    the frequency of this is a property of the method. Therefore runs are repeated with different values of ``restart``
    (``with_restarts``). The run with the smallest training loss is selected, and the cost of all runs is counted.

    Attributes:
        num_clusters: J, the number of models.
        num_batches: Number of batches on which clients compare the models.
        symmetry_breaking: How the initial models are made different, ``warm-up`` or ``noise``.
        noise_scale: Standard deviation of the noise.
        restart: Index of the random initialization.

    Example:
        >>> fedrift.load_config(config, ["clustering={type: IFCA, num_clusters: 2}"]).clustering.num_clusters
        2
    """

    needs_client_data: ClassVar[bool] = True
    num_clusters: Annotated[int, Ge(1)] = 4
    num_batches: Annotated[int, Ge(1)] = 4
    symmetry_breaking: Literal["warm-up", "noise"] = "warm-up"
    noise_scale: Annotated[float, Gt(0)] = 0.01
    restart: Annotated[int, Ge(0)] = 0

    def with_restarts(self, count: int) -> tuple[IFCA, ...]:
        """Return ``count`` copies with consecutive values of ``restart``."""
        return tuple(replace(self, restart=self.restart + offset) for offset in range(count))

    def init_assignment(self, client_info: ClientInfo) -> Assignment:
        """Return random clusters of nearly equal size for ``warm-up``, and a single cluster for ``noise`` until the models exist."""
        cluster_ids = numpy_stream(client_info.seed, "first groups", self.restart).permutation(
            np.arange(client_info.num_clients) % self.num_clusters
        )
        cluster_ids = cluster_ids if self.symmetry_breaking == "warm-up" else assign_to_one_cluster(client_info.num_clients)
        return Assignment(cluster_ids, self.num_clusters, {**self.build_reason(), "switched": 0}, np.arange(self.num_clusters))

    def init_models(self, params: Tree, client_info: ClientInfo) -> Tree:
        """Return the initial models, [J, ...], with noise added if ``symmetry_breaking`` is ``noise``."""
        if self.symmetry_breaking == "warm-up":
            return params
        generator = torch_stream(client_info.seed, "unlike models", self.restart)
        return params.map(lambda leaf: leaf + self.noise_scale * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf))

    def refine(self, state: FederatedState, client_info: ClientInfo) -> Assignment | None:
        """Return the clients' first choice of models if ``symmetry_breaking`` is ``noise``, else None."""
        return self.choose_models(state, client_info) if self.symmetry_breaking == "noise" else None

    def recluster(self, result: RoundResult, client_info: ClientInfo) -> Assignment | None:
        """Return the clients' choice of models after a round, or None if no client changes its model."""
        return self.choose_models(result.after, client_info)

    def choose_models(self, state: FederatedState, client_info: ClientInfo) -> Assignment | None:
        """Return the clients' choice of models, or None if no client changes its model."""
        losses, current = client_info.losses(state, self.num_batches).numpy(), state.cluster_ids.numpy()
        rows = np.arange(len(current))
        best = np.where(np.isnan(losses), np.inf, losses).argmin(axis=1)
        is_better = losses[rows, best] < losses[rows, current] * (1 - LOSS_TOLERANCE)  # equal or missing losses do not change the model
        cluster_ids = np.where(is_better, best, current)
        if (cluster_ids == current).all():
            return None
        reason = {**self.build_reason(), "switched": int((cluster_ids != current).sum())}
        return Assignment(cluster_ids, self.num_clusters, reason, np.arange(self.num_clusters), state=state.clustering_state)

    def build_reason(self) -> dict[str, object]:
        """Return the entries of the decision's reason that do not depend on the round."""
        return {"signal": "IFCA", "k": self.num_clusters, "restart": self.restart, "downloads": self.num_clusters, "bytes": 0}

    def warnings(self) -> list[str]:
        """Return a warning about costs that the count of trained tokens does not include."""
        return [
            f"IFCA sends {self.num_clusters} models to each client instead of one, and the client evaluates all of them on "
            f"{self.num_batches} batches before it trains. The count of trained tokens includes neither cost."
        ]
