"""Clustering at run time: stratified client sampling, and the hooks that the round loop and the probes call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..algorithms import FedAvg
from ..clustering.base import Assignment, ClientInfo, NoClustering, transfer_state
from ..clustering.one_shot import MixingClientPool, SoftClustering, mix_models
from ..core.errors import UserError
from ..core.random import numpy_stream
from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult
from ..probes import MetricValues
from ..probes.federation import ClusterAgreement
from ..simulation.simulator import ClientPool
from .loop import init_state, sample_cohort


def stratum_sizes(sizes: np.ndarray, count: int, offset: int) -> np.ndarray:
    """Return how many clients of each cluster take part: each cluster's proportional number, rounded up or down.

    The method is systematic sampling (Madow & Madow, Annals of Mathematical Statistics 15, 1944). Over the offsets 0..N-1 the mean is the
    exact proportion, so every client takes part equally often regardless of the size of its cluster.

    Args:
        sizes: Number of clients of each cluster, [M].
        count: Total number of clients to sample.
        offset: Random offset in 0..N-1.

    Returns:
        Number of sampled clients of each cluster, [M].
    """
    ends = (count * np.cumsum(sizes) + offset) // sizes.sum()
    return np.diff(ends, prepend=0)


def sample_stratified(cluster_ids: Tensor, cohort_size: int, seed: int, round: int) -> Tensor:
    """Sample the cohort of a round with proportional numbers of clients from each cluster.

    With one cluster the cohort equals the one drawn without clustering.

    Args:
        cluster_ids: Cluster of each client, [N].
        cohort_size: C, the number of clients to sample.
        seed: Seed of the run.
        round: Number of completed rounds.

    Returns:
        Client indices in ascending order, [C].
    """
    size, ids = len(cluster_ids), cluster_ids.numpy()
    if not ids.any():
        return sample_cohort(size, cohort_size, seed, round)
    # This is the stream of ``sample_cohort``, so that cohorts with and without clustering are as similar as possible.
    order = numpy_stream(seed, "cohort", round).permutation(size)
    models = np.unique(ids)
    sizes = np.array([(ids == model).sum() for model in models])
    counts = stratum_sizes(sizes, cohort_size, int(numpy_stream(seed, "strata", round).integers(size)))
    chosen = [order[ids[order] == model][:count] for model, count in zip(models, counts, strict=True)]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


# The hooks of one run.


@dataclass(frozen=True, eq=False)
class ClusteringRuntime:
    """A clustering strategy in one run, together with the clients' information and the federated algorithm.

    Attributes:
        strategy: The clustering strategy.
        client_info: Information about the clients.
        algorithm: The federated algorithm.
        pending_assignments: Decisions that have not been recorded yet, each with its number of completed rounds.
    """

    strategy: NoClustering
    client_info: ClientInfo
    algorithm: FedAvg
    pending_assignments: list[tuple[int, Assignment]] = field(default_factory=list, repr=False)

    def init_state(self, params: Tree) -> FederatedState:
        """Return the state before the first round, with one model per cluster.

        All models are equal unless the strategy initializes them differently.

        Args:
            params: Initial parameters, [1, ...].

        Raises:
            UserError: The algorithm already gives every client its own model, so there is nothing to cluster.
        """
        decision = self.strategy.init_assignment(self.client_info)
        state = init_state(self.algorithm, params, self.client_info.num_clients)
        if decision is None:
            return state
        if state.server.num_models > 1:
            raise UserError(
                f"{type(self.algorithm).__name__} gives every client its own model, so {type(self.strategy).__name__} cannot "
                "cluster the clients. Remove the clustering from the configuration."
            )
        models = params.take(torch.zeros(decision.num_models, dtype=torch.long))
        state = replace(
            state,
            server=self.algorithm.init_server(self.strategy.init_models(models, self.client_info)),
            cluster_ids=torch.as_tensor(decision.cluster_ids).long(),
            clustering_state=decision.state,
        )
        refined = self.strategy.refine(state, self.client_info)
        self.pending_assignments.append((0, refined or decision))
        return transfer_state(state, refined, self.algorithm) if refined else state

    def sample_cohort(self, state: FederatedState, cohort_size: int, seed: int) -> Tensor:
        """Sample the next round's cohort, proportionally from each cluster, or return all clients if the strategy requires it.

        Args:
            state: The current state.
            cohort_size: C, the number of clients to sample.
            seed: Seed of the run.

        Returns:
            Client indices in ascending order, [C] or [N].
        """
        if self.strategy.needs_full_participation(state.round):
            return torch.arange(self.client_info.num_clients)
        if type(self.strategy) is NoClustering:  # the algorithm itself may use several models
            return sample_stratified(torch.zeros_like(state.cluster_ids), cohort_size, seed, state.round)
        return sample_stratified(state.cluster_ids, cohort_size, seed, state.round)

    def recluster(self, result: RoundResult) -> FederatedState:
        """Return the state after a round under the strategy's current assignment."""
        decision = self.strategy.recluster(result, self.client_info)
        if decision is None:
            return result.after
        self.pending_assignments.append((result.after.round, decision))
        return transfer_state(result.after, decision, self.algorithm)

    def wrap_client_pool(self, client_pool: ClientPool) -> ClientPool:
        """Return the client pool, wrapped by ``MixingClientPool`` if the strategy mixes models."""
        return MixingClientPool(client_pool) if isinstance(self.strategy, SoftClustering) else client_pool

    def with_client_models(self, state: FederatedState) -> FederatedState:
        """Return the state with the models that clients use; if clients mix models, these are N mixtures."""
        return mix_models(state) if "membership" in state.clustering_state else state

    def measure_agreement(self, state: FederatedState) -> MetricValues:
        """Return the agreement of the clusters with the clients' main domains; nothing without clustering."""
        return {} if self.strategy == NoClustering() else ClusterAgreement(self.client_info.main_domains).evaluate_state(state)

    def probe_view(self, result: RoundResult) -> RoundResult:
        """Return the round's result with the models that clients use, for the probes."""
        return replace(result, before=self.with_client_models(result.before), after=self.with_client_models(result.after))
