"""Stratified participation: of m clients a round, every group gives its share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..algorithms import FedAvg
from ..core.errors import UserError
from ..core.random import numpy_stream
from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult
from ..engine.loop import init_state, sample_cohort
from ..simulation.simulator import ClientPool
from .base import Assignment, ClientInfo, NoClustering, transfer_state
from .one_shot import MixingClientPool, SoftClustering, mix_models


def stratum_sizes(sizes: np.ndarray, count: int, offset: int) -> np.ndarray:
    """How many of each group take part, ``sizes [M] -> [M]``: ``count`` in all, each its proportion rounded up or down.

    Systematic sampling (Madow & Madow, Annals of Mathematical Statistics 15, 1944): over the offsets 0..N-1 the mean is the
    exact proportion, so that every client takes part equally often whatever the size of its group.
    """
    ends = (count * np.cumsum(sizes) + offset) // sizes.sum()
    return np.diff(ends, prepend=0)


def sample_stratified(cluster_ids: Tensor, cohort_size: int, seed: int, round: int) -> Tensor:
    """The cohort of a round, ascending ``[C]``; with one group it is the one drawn without clustering."""
    size, held = len(cluster_ids), cluster_ids.numpy()
    if not held.any():
        return sample_cohort(size, cohort_size, seed, round)
    order = numpy_stream(seed, "cohort", round).permutation(size)  # as ``sample`` draws: cohorts stay as alike as can be
    models = np.unique(held)
    sizes = np.array([(held == model).sum() for model in models])
    wanted = stratum_sizes(sizes, cohort_size, int(numpy_stream(seed, "strata", round).integers(size)))
    picks = [order[held[order] == model][:number] for model, number in zip(models, wanted, strict=True)]
    return torch.from_numpy(np.sort(np.concatenate(picks)))


# A clustering at work in one run: the first state, who takes part, what happens between rounds, what probes see.


@dataclass(frozen=True, eq=False)
class ClusteringRuntime:
    """One clustering on its ground, around one algorithm. ``pending_assignments``: those that nobody has read yet, with their rounds."""

    strategy: NoClustering
    client_info: ClientInfo
    algorithm: FedAvg
    pending_assignments: list[tuple[int, Assignment]] = field(default_factory=list, repr=False)

    def init_state(self, params: Tree) -> FederatedState:
        """Round 0, from params ``[1, ...]``: one model a group, all the same unless the clustering must tell them apart."""
        decision = self.strategy.init_assignment(self.client_info)
        state = init_state(self.algorithm, params, self.client_info.num_clients)
        if decision is None:
            return state
        if state.server.num_models > 1:
            raise UserError(
                f"{type(self.algorithm).__name__} gives every client a model of its own: there is nobody to group by "
                f"{type(self.strategy).__name__}; leave the clustering out"
            )
        models = params.take(torch.zeros(decision.num_models, dtype=torch.long))
        state = replace(
            state,
            server=self.algorithm.init_server(self.strategy.init_models(models, self.client_info)),
            cluster_ids=torch.as_tensor(decision.cluster_ids).long(),
            clustering_state=decision.state,
        )
        settled = self.strategy.refine(state, self.client_info)
        self.pending_assignments.append((0, settled or decision))
        return transfer_state(state, settled, self.algorithm) if settled else state

    def sample_cohort(self, state: FederatedState, cohort_size: int, seed: int) -> Tensor:
        """The coming round's cohort: every group in proportion, or the whole fleet where the clustering calls it."""
        if self.strategy.needs_full_participation(state.round):
            return torch.arange(self.client_info.num_clients)
        if type(self.strategy) is NoClustering:  # an algorithm may group clients for itself
            return sample_stratified(torch.zeros_like(state.cluster_ids), cohort_size, seed, state.round)
        return sample_stratified(state.cluster_ids, cohort_size, seed, state.round)

    def recluster(self, result: RoundResult) -> FederatedState:
        """The state after a round, under whatever the clustering decides now."""
        decision = self.strategy.recluster(result, self.client_info)
        if decision is None:
            return result.after
        self.pending_assignments.append((result.after.round, decision))
        return transfer_state(result.after, decision, self.algorithm)

    def wrap_client_pool(self, fleet: ClientPool) -> ClientPool:
        """Who trains: the fleet, or the fleet with mixtures."""
        return MixingClientPool(fleet) if isinstance(self.strategy, SoftClustering) else fleet

    def with_client_models(self, state: FederatedState) -> FederatedState:
        """The state in the models that clients use: where they mix them, N mixtures."""
        return mix_models(state) if "share" in state.clustering_state else state

    def probe_view(self, result: RoundResult) -> RoundResult:
        """A round as probes see it."""
        return replace(result, before=self.with_client_models(result.before), after=self.with_client_models(result.after))


__all__ = ["ClusteringRuntime", "sample_stratified", "stratum_sizes"]
