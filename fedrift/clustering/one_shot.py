"""Clustering strategies that decide before training: by text, at random, by the true domains, and by mixtures.

``TextClustering`` is the one-shot clustering of Ghosh, Hong, Yin & Ramchandran, "Robust Federated Learning in a Heterogeneous
Environment", 2019, arXiv:1906.06629, applied to the clients' texts instead of to their trained models. Embeddings as in Marfoq,
Neglia, Bellet, Kameni & Vidal for mixtures, NeurIPS 2021, arXiv:2108.10252. ``selection.py`` describes what clients send
and how the number of clusters is selected.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt

from ..algorithms import FedAvg
from ..algorithms.aggregators import FFALoRA, Mean
from ..core.errors import UserError
from ..core.lazy_imports import torch
from ..core.random import numpy_stream
from ..core.tree import Tree, to_float64
from ..core.types import CohortUpdate, FederatedState, ServerState
from .base import Assignment, ClientInfo, NoClustering
from .selection import ClientEmbeddings, ClusteringResult, cluster_clients, document_identification_rate, embed_clients, privacy_statement

if TYPE_CHECKING:
    from torch import Tensor

    from ..simulation.simulator import ClientAlgorithm, ClientPool

Encoder = Literal["wordllama", "minilm", "states", "hashing", "lsa"]


@dataclass(frozen=True)
class TextClustering(NoClustering):
    """Clustering of clients by k-means on the mean embeddings of their training documents.

    Attributes:
        encoder: Name of the frozen encoder of documents.
        num_clusters: Number of clusters; None estimates it.
        max_documents: Largest number of documents per client that are embedded.
        epsilon: Privacy budget of the clients' mean embeddings; None adds no noise.
        delta: Failure probability of the privacy guarantee.

    Example:
        >>> fedrift.load_config(config, ["clustering={type: TextClustering, num_clusters: 2}"]).clustering.num_clusters
        2
    """

    needs_client_data: ClassVar[bool] = True
    encoder: Encoder = "wordllama"
    num_clusters: Annotated[int, Ge(1)] | None = None
    max_documents: Annotated[int, Ge(1)] = 200
    epsilon: Annotated[float, Gt(0)] | None = None
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5

    def init_assignment(self, client_info: ClientInfo) -> Assignment:
        """Return the clusters of the clients' mean embeddings."""
        embeddings, clustering = self.cluster_documents(client_info)
        reason = {"signal": "TextClustering", **self.build_reason(embeddings, clustering, client_info.seed)}
        return Assignment(clustering.cluster_ids, clustering.k, reason, centroids=clustering.centroids)

    def check_num_clients(self, num_clients: int) -> None:
        """Raise UserError if ``num_clusters`` exceeds the number of clients."""
        if self.num_clusters is not None and self.num_clusters > num_clients:
            raise UserError(
                f"clustering.num_clusters is {self.num_clusters}, but there are only {num_clients} clients. Set it to at most "
                f"{num_clients}, or remove it to estimate the number of clusters."
            )

    def cluster_documents(self, client_info: ClientInfo) -> tuple[ClientEmbeddings, ClusteringResult]:
        """Return the clients' embeddings and their clusters.

        Raises:
            UserError: ``num_clusters`` exceeds the number of clients.
        """
        self.check_num_clients(client_info.num_clients)
        embeddings = embed_clients(client_info, self.encoder, self.max_documents, self.epsilon, self.delta)
        return embeddings, cluster_clients(embeddings, client_info.seed, self.num_clusters)

    def build_reason(self, embeddings: ClientEmbeddings, clustering: ClusteringResult, seed: int) -> dict[str, Any]:
        """Return the evidence for the clusters as plain JSON.

        Args:
            embeddings: The clients' embeddings.
            clustering: The clusters.
            seed: Seed of the identification rate.
        """
        return {
            "k": clustering.k,
            "requested_k": self.num_clusters,
            "estimated_k": clustering.estimated_k,
            "p_value": clustering.p_value,
            "silhouette": clustering.silhouettes.get(clustering.k, float("nan")),
            "silhouettes": {str(k): value for k, value in clustering.silhouettes.items()},
            "stability": clustering.stability,
            "verdict": clustering.verdict,
            "encoder": self.encoder,
            "documents": [len(vectors) for vectors in embeddings.document_embeddings],
            "bytes": embeddings.num_bytes,
            "identification_rate": document_identification_rate(embeddings.document_embeddings, seed),
            "chance": 1 / len(embeddings.document_embeddings),
            "privacy": privacy_statement(embeddings, self.epsilon, self.delta),
        }

    def warnings(self) -> list[str]:
        """Return a warning if the encoder is fitted on the documents of all clients."""
        if self.encoder == "lsa":
            return [
                "The encoder 'lsa' is fitted on the documents of all clients together. This is not private and not possible in a real "
                "federation."
            ]
        return []


@dataclass(frozen=True)
class RandomClustering(NoClustering):
    """The control for other strategies: random clusters of the same sizes.

    It shows the effect of smaller clusters alone, without any similarity of the clients.

    Attributes:
        sizes_from: Strategy whose cluster sizes are used.
        cluster_sizes: Cluster sizes, in any order; if given, ``sizes_from`` is ignored.
        repeat: Index of the random permutation, for repeated controls.

    Example:
        >>> fedrift.load_config(config, ["clustering={type: RandomClustering, cluster_sizes: [2, 1]}"]).clustering.cluster_sizes
        (2, 1)
    """

    sizes_from: NoClustering = TextClustering()
    cluster_sizes: tuple[Annotated[int, Ge(1)], ...] = ()
    repeat: Annotated[int, Ge(0)] = 0

    def init_assignment(self, client_info: ClientInfo) -> Assignment:
        """Return random clusters.

        Raises:
            UserError: ``sizes_from`` does not cluster before the first round, or the sizes do not sum to the number of clients.
        """
        self.check_num_clients(client_info.num_clients)
        sizes = self.cluster_sizes
        if not sizes:
            assignment = self.sizes_from.init_assignment(client_info)
            if assignment is None:
                raise UserError(
                    f"clustering.sizes_from is {type(self.sizes_from).__name__}, which does not cluster the clients before the first "
                    "round. Set clustering.cluster_sizes instead, for example [3, 3, 4]."
                )
            sizes = tuple(np.bincount(assignment.cluster_ids, minlength=assignment.num_models).tolist())
        cluster_ids = numpy_stream(client_info.seed, "random groups", self.repeat).permutation(np.repeat(np.arange(len(sizes)), sizes))
        reason = {"signal": "RandomClustering", "k": len(sizes), "sizes": list(sizes), "repeat": self.repeat, "bytes": 0}
        return Assignment(cluster_ids, len(sizes), reason)

    def check_num_clients(self, num_clients: int) -> None:
        """Raise UserError if the cluster sizes do not sum to the number of clients."""
        sizes = self.cluster_sizes
        if not sizes:
            self.sizes_from.check_num_clients(num_clients)
        elif sum(sizes) != num_clients:
            raise UserError(f"clustering.cluster_sizes {list(sizes)} sum to {sum(sizes)}, but there are {num_clients} clients.")


@dataclass(frozen=True)
class OracleClustering(NoClustering):
    """The oracle: clients with the same true main domain share a model.

    It is an upper reference for the benefit of clustering by domain.

    Example:
        >>> fedrift.load_config(config, ["clustering=OracleClustering"]).name
        'FedAvg OracleClustering bbc TopicMix 1 seed 0'
    """

    needs_client_data: ClassVar[bool] = True

    def init_assignment(self, client_info: ClientInfo) -> Assignment:
        """Return one cluster per true main domain.

        Raises:
            UserError: The main domain of a client is unknown.
        """
        if client_info.main_domains is None or (client_info.main_domains < 0).any():
            raise UserError(
                "OracleClustering needs the true domains of the clients, but this dataset has no domains. Use TextClustering, or find "
                "topics by clustering (dataset.num_clusters=8)."
            )
        names, cluster_ids = np.unique(client_info.main_domains, return_inverse=True)
        return Assignment(cluster_ids.astype(np.int64), len(names), {"signal": "OracleClustering", "k": len(names), "bytes": 0})

    def warnings(self) -> list[str]:
        """Return a warning that the strategy uses ground truth."""
        return ["OracleClustering uses the true domain of every client, so it is a reference for comparison and not a method."]


# SoftClustering follows FedSoft (Ruan & Joe-Wong, AAAI 2022, arXiv:2112.06053), with mixture weights from text.


@dataclass(frozen=True)
class SoftClustering(NoClustering):
    """Clustering with mixtures: each client trains a mixture of the clusters' models and contributes to each in proportion.

    The mixture weights are pi_kc = softmax_c(-|mu_k - nu_c|^2 / T), with the embeddings mu and centroids nu of ``TextClustering``. A client
    receives w = sum_c pi_kc w_c, and the server updates w_c += sum_k pi_kc p_k D_k / sum_k pi_kc p_k. For T -> 0 this is
    ``TextClustering``; for T -> infinity all models are equal, which means no clustering. It is similar to FedSoft (Ruan & Joe-Wong,
    AAAI 2022, arXiv:2112.06053), with weights computed from text.

    The factors of adapters cannot be mixed separately, because the mean of products is not the product of means. With FFA-LoRA all
    clients share A, so mixing B is exact.

    Attributes:
        text: Text clustering that provides embeddings and centroids.
        temperature: T, the temperature of the softmax, in units of squared distance.

    Example:
        >>> fedrift.load_config(config, ["clustering={type: SoftClustering, temperature: 0.1}"]).clustering.temperature
        0.1
    """

    needs_client_data: ClassVar[bool] = True
    text: TextClustering = TextClustering()
    temperature: Annotated[float, Gt(0)] = 0.05

    def init_assignment(self, client_info: ClientInfo) -> Assignment:
        """Return the clusters and the mixture weights of all clients."""
        embeddings, clustering = self.text.cluster_documents(client_info)
        share = mixture_weights(embeddings.means, clustering.centroids, self.temperature)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)
        reason = {
            "signal": "SoftClustering",
            **self.text.build_reason(embeddings, clustering, client_info.seed),
            "temperature": self.temperature,
            "effective_models": float(np.exp(entropy).mean()),  # effective number of models per client, from the entropy of its weights
        }
        return Assignment(
            clustering.cluster_ids,
            clustering.k,
            reason,
            membership=share,
            centroids=clustering.centroids,
            state=Tree(membership=torch.from_numpy(share)),
        )

    def warnings(self) -> list[str]:
        """Return the warnings of the text clustering."""
        return self.text.warnings()

    def check_num_clients(self, num_clients: int) -> None:
        """Raise UserError if the text clustering does not fit the number of clients."""
        self.text.check_num_clients(num_clients)

    def incompatibilities(self, algorithm: FedAvg, param_names: Collection[str]) -> list[str]:
        """Return the reasons why models cannot be mixed with this algorithm or these parameters.

        Args:
            algorithm: The federated algorithm.
            param_names: Names of the trained parameters.
        """
        reasons = []
        aggregator = algorithm.aggregator
        has_both_factors = any(name.endswith(".A") for name in param_names) and any(name.endswith(".B") for name in param_names)
        if has_both_factors and not isinstance(aggregator, FFALoRA):
            reasons.append(
                "SoftClustering mixes models, but mixing the factors of adapters does not mix the adapters. Use "
                "aggregator: FFALoRA, which trains only B, or trainable: {type: LastBlocks}."
            )
        inner_aggregator = aggregator.inner_aggregator if isinstance(aggregator, FFALoRA) else aggregator
        if type(inner_aggregator) is not Mean or algorithm.rescales_updates or algorithm.reweights_clients:
            reasons.append(
                f"SoftClustering needs a server that computes weighted means, but {type(algorithm).__name__} with "
                f"{type(inner_aggregator).__name__} does not. Use FedAvg, FedProx or Scaffold with Mean, or use TextClustering."
            )
        return reasons


def mixture_weights(points: np.ndarray, centroids: np.ndarray, temperature: float) -> np.ndarray:
    """Return the mixture weights softmax_c(-|mu_k - nu_c|^2 / T).

    Args:
        points: Mean embedding mu of each client, [N, E].
        centroids: Centroids nu, [M, E].
        temperature: T.

    Returns:
        Weights, [N, M]; the rows sum to 1.
    """
    logits = -((points[:, None] - centroids[None]) ** 2).sum(axis=-1) / temperature
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class MixingClientPool:
    """A client pool whose clients receive mixtures of the server's models.

    Their updates are distributed to the models with the same weights.
    """

    inner: ClientPool

    @property
    def size(self) -> int:
        """Return N, the number of clients."""
        return self.inner.size

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        """Train a cohort on mixtures of the models.

        Args:
            state: State with M models and the mixture weights.
            algorithm: The client side of the federated algorithm.
            cohort: Indices of the clients to train, [C].

        Returns:
            The cohort's updates, with the mixture weights of its clients, [C, M].
        """
        share = state.clustering_state["membership"]
        update = self.inner.train(mix_models(state), algorithm, cohort)
        device = update.weight.device
        return replace(
            update,
            cluster_ids=state.cluster_ids[cohort].to(device),
            cluster_sizes=share.sum(0).to(device),
            membership=share[cohort].to(device),
        )


def mix_models(state: FederatedState) -> FederatedState:
    """Return the state with N models, in which each client's model is its own mixture of the M models."""
    share = state.clustering_state["membership"]

    def mix(tree: Tree) -> Tree:
        return tree.map(
            lambda leaf: (
                torch.einsum("nm,m...->n...", to_float64(share.to(leaf)), to_float64(leaf)).to(leaf.dtype)
                if leaf.is_floating_point()
                else leaf[share.argmax(1)]
            )
        )

    server = state.server
    return replace(
        state,
        server=ServerState(mix(server.params), mix(server.broadcast), mix(server.opt_state), mix(server.merged_base)),
        server_delta=mix(state.server_delta),
        cluster_ids=torch.arange(len(state.cluster_ids)),
        client_means=mix(state.client_means),
    )
