"""Clients whose texts are alike share a model: k-means on the mean embeddings of their documents.

The one-shot clustering of Ghosh, Hong, Yin & Ramchandran, "Robust Federated Learning in a Heterogeneous Environment", 2019,
arXiv:1906.06629, by what clients read instead of by what they learnt; embeddings as in Marfoq, Neglia, Bellet, Kameni & Vidal for
mixtures, NeurIPS 2021, arXiv:2108.10252. ``selection.py`` says what clients send and how groups are counted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ..algorithms import FedAvg
from ..algorithms.aggregators import FFALoRA, Mean
from ..core.errors import UserError
from ..core.random import numpy_stream
from ..core.tree import Tree, to_float64
from ..core.types import CohortUpdate, FederatedState, ServerState
from ..simulation.simulator import ClientAlgorithm, ClientPool
from .base import Assignment, ClientInfo, NoClustering
from .selection import ClientEmbeddings, ClusteringResult, cluster_clients, document_identification_rate, embed_clients, privacy_statement

Encoder = Literal["wordllama", "minilm", "states", "hashing", "lsa"]


@dataclass(frozen=True)
class TextClustering(NoClustering):
    """``num_clusters``: how many; None counts them. ``epsilon``: a privacy budget for the descriptors; None adds no noise."""

    needs_client_data: ClassVar[bool] = True
    encoder: Encoder = "wordllama"
    num_clusters: Annotated[int, Ge(1)] | None = None
    max_documents: Annotated[int, Ge(1)] = 200
    epsilon: Annotated[float, Gt(0)] | None = None
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5

    def init_assignment(self, client_info: ClientInfo) -> Assignment:
        found, chosen = self.cluster_documents(client_info)
        why = {"signal": "TextClustering", **self.build_reason(found, chosen, client_info.seed)}
        return Assignment(chosen.cluster_ids, chosen.k, why, centroids=chosen.centroids)

    def cluster_documents(self, client_info: ClientInfo) -> tuple[ClientEmbeddings, ClusteringResult]:
        """The clients' descriptors, and their groups."""
        if self.num_clusters is not None and self.num_clusters > client_info.num_clients:
            raise UserError(
                f"clustering.num_clusters: {self.num_clusters} groups of {client_info.num_clients} clients; ask for "
                f"{client_info.num_clients} at most, or leave it out to have them counted"
            )
        described = embed_clients(client_info, self.encoder, self.max_documents, self.epsilon, self.delta)
        return described, cluster_clients(described, client_info.seed, self.num_clusters)

    def build_reason(self, embeddings: ClientEmbeddings, clustering: ClusteringResult, seed: int) -> dict[str, Any]:
        """The evidence, as plain JSON."""
        return {
            "k": clustering.k,
            "asked": self.num_clusters,
            "counted": clustering.estimated_k,
            "p_value": clustering.p_value,
            "silhouette": clustering.silhouettes.get(clustering.k, float("nan")),
            "silhouettes": {str(k): value for k, value in clustering.silhouettes.items()},
            "stability": clustering.stability,
            "verdict": clustering.verdict,
            "encoder": self.encoder,
            "documents": [len(own) for own in embeddings.document_embeddings],
            "bytes": embeddings.num_bytes,
            "identified": document_identification_rate(embeddings.document_embeddings, seed),
            "chance": 1 / len(embeddings.document_embeddings),
            "privacy": privacy_statement(embeddings, self.epsilon, self.delta),
        }

    def warnings(self) -> list[str]:
        if self.encoder == "lsa":
            return ["The encoder 'lsa' is fitted on all clients' documents together: it is not private, and no federation has it"]
        return []


# The control: random groups of the same sizes as another clustering's, for what grouping does without any likeness.


@dataclass(frozen=True)
class RandomClustering(NoClustering):
    """``like``: whose sizes; or ``cluster_sizes`` themselves, largest first or not. ``repeat``: the number of the shuffle, for several."""

    like: NoClustering = TextClustering()
    cluster_sizes: tuple[Annotated[int, Ge(1)], ...] = ()
    repeat: Annotated[int, Ge(0)] = 0

    def init_assignment(self, client_info: ClientInfo) -> Assignment:
        sizes = self.cluster_sizes
        if not sizes:
            model = self.like.init_assignment(client_info)
            if model is None:
                raise UserError(
                    f"clustering.like: {type(self.like).__name__} does not say its groups before the first round; "
                    "say clustering.cluster_sizes, e.g. [3, 3, 4]"
                )
            sizes = tuple(np.bincount(model.cluster_ids, minlength=model.num_models).tolist())
        if sum(sizes) != client_info.num_clients:
            raise UserError(f"clustering.cluster_sizes: {list(sizes)} are {sum(sizes)} clients, and there are {client_info.num_clients}")
        group = numpy_stream(client_info.seed, "random groups", self.repeat).permutation(np.repeat(np.arange(len(sizes)), sizes))
        why = {"signal": "RandomClustering", "k": len(sizes), "sizes": list(sizes), "draw": self.repeat, "bytes": 0}
        return Assignment(group, len(sizes), why)


# The oracle: clients whose texts are mostly of the same true domain share a model. What grouping could bring at best.


@dataclass(frozen=True)
class OracleClustering(NoClustering):
    needs_client_data: ClassVar[bool] = True

    def init_assignment(self, client_info: ClientInfo) -> Assignment:
        if client_info.main_domains is None or (client_info.main_domains < 0).any():
            raise UserError(
                "OracleClustering groups clients by their true domains, and this dataset has none: use TextClustering, or find "
                "topics by clustering (dataset.num_clusters=8)"
            )
        names, group = np.unique(client_info.main_domains, return_inverse=True)
        return Assignment(group.astype(np.int64), len(names), {"signal": "OracleClustering", "k": len(names), "bytes": 0})

    def warnings(self) -> list[str]:
        return ["OracleClustering knows the true domain of every client: it is a bound for comparison, not a method"]


# Clients in between: each trains from a mixture of the groups' models, and gives to each in proportion.
#
# pi_kc = softmax_c(-|mu_k - nu_c|^2 / T) with the descriptors mu and centroids nu of ``TextClustering``. A client receives w = sum_c
# pi_kc w_c; the server takes w_c += sum_k pi_kc p_k D_k / sum_k pi_kc p_k. For T -> 0 these are its groups, for T ->
# infinity all models are the same and it is no clustering. As in FedSoft (Ruan & Joe-Wong, AAAI 2022, arXiv:2112.06053), with
# weights by text.
#
# Adapters cannot be mixed factor by factor: the mean of products is not the product of means. With FFA-LoRA all share A, and mixing
# B is exact.


@dataclass(frozen=True)
class SoftClustering(NoClustering):
    needs_client_data: ClassVar[bool] = True
    text: TextClustering = TextClustering()
    temperature: Annotated[float, Gt(0)] = 0.05

    def init_assignment(self, client_info: ClientInfo) -> Assignment:
        found, chosen = self.text.cluster_documents(client_info)
        share = mixture_weights(found.means, chosen.centroids, self.temperature)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)
        why = {
            "signal": "SoftClustering",
            **self.text.build_reason(found, chosen, client_info.seed),
            "temperature": self.temperature,
            "effective": float(np.exp(entropy).mean()),
        }  # how many models a client is made of
        return Assignment(
            chosen.cluster_ids, chosen.k, why, membership=share, centroids=chosen.centroids, state=Tree(share=torch.from_numpy(share))
        )

    def warnings(self) -> list[str]:
        return self.text.warnings()

    def incompatibilities(self, algorithm: FedAvg, param_names: Collection[str]) -> list[str]:
        said = []
        plain = algorithm.aggregator
        factors = any(leaf.endswith(".A") for leaf in param_names) and any(leaf.endswith(".B") for leaf in param_names)
        if factors and not isinstance(plain, FFALoRA):
            said.append(
                "SoftClustering mixes models, and a mixture of adapters' factors is not the mixture of the adapters: use "
                "aggregator: FFALoRA with it, which trains B alone, or trainable: {type: LastBlocks}"
            )
        inner = plain.inner_aggregator if isinstance(plain, FFALoRA) else plain
        if type(inner) is not Mean or algorithm.rescales_updates or algorithm.reweights_clients:
            said.append(
                f"SoftClustering needs a server that takes weighted means; {type(algorithm).__name__} with "
                f"{type(inner).__name__} does something else: use FedAvg, FedProx or Scaffold with Mean, or TextClustering"
            )
        return said


def mixture_weights(points: np.ndarray, centroids: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(-|mu_k - nu_c|^2 / T), ``[N, E], [M, E] -> [N, M]``."""
    near = -((points[:, None] - centroids[None]) ** 2).sum(axis=-1) / temperature
    weight = np.exp(near - near.max(axis=1, keepdims=True))
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class MixingClientPool:
    """A fleet whose clients receive mixtures of the server's models; what they send is shared out in the same way."""

    inner: ClientPool

    @property
    def size(self) -> int:
        return self.inner.size

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        share = state.clustering_state["share"]
        report = self.inner.train(mix_models(state), algorithm, cohort)
        device = report.weight.device
        return replace(
            report,
            cluster_ids=state.cluster_ids[cohort].to(device),
            cluster_sizes=share.sum(0).to(device),
            membership=share[cohort].to(device),
        )


def mix_models(state: FederatedState) -> FederatedState:
    """The state as the clients see it: N models, each client's own mixture of the M there are."""
    share = state.clustering_state["share"]

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


__all__ = ["MixingClientPool", "OracleClustering", "RandomClustering", "SoftClustering", "TextClustering", "mix_models", "mixture_weights"]
