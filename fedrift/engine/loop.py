"""The round loop: a generator of rounds that owns nothing.

No file, no print, no model, no early stop: whoever iterates decides what to store, show and when
to end. ``State`` is a value, so a run that resumes is a run that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..algorithms.fedavg import FedAvg, cluster_mean, cluster_sum
from ..core.random import derive_seed, numpy_stream
from ..core.tree import Tree
from ..core.types import ClientSampler, ClientStateStore, CohortUpdate, FederatedState, ReclusterFn, RoundResult
from ..simulation.simulator import ClientPool


def init_state(algorithm: FedAvg, params: Tree, num_clients: int) -> FederatedState:
    """Round 0, from one set of params ``[1, ...]``: each group of clients gets its copy."""
    group = algorithm.initial_clusters(num_clients)
    models = params.take(torch.zeros(int(group.max()) + 1, dtype=torch.long))
    memory = ClientStateStore.replicate(algorithm.init_client_state(params.to(torch.device("cpu"))), num_clients)
    return FederatedState(0, algorithm.init_server(models), memory, group)


def sample_uniform(state: FederatedState, cohort_size: int, seed: int) -> Tensor:
    """A cohort of the whole fleet, whoever shares which model, ``[C]``."""
    return sample_cohort(len(state.cluster_ids), cohort_size, seed, state.round)


def keep_clusters(result: RoundResult) -> FederatedState:
    """No clustering: everybody goes on sharing the model they share."""
    return result.after


def run_rounds(
    state: FederatedState,
    client_pool: ClientPool,
    algorithm: FedAvg,
    *,
    num_rounds: int,
    cohort_size: int,
    seed: int,
    recluster: ReclusterFn = keep_clusters,
    sample_clients: ClientSampler = sample_uniform,
) -> Iterator[RoundResult]:
    """Yield round after round, from ``state`` up to and including ``until``."""
    state = ensure_client_means(state, algorithm)
    while state.round < num_rounds:
        who = sample_clients(state, cohort_size, seed)
        report = replace(client_pool.train(state, algorithm, who), server_seed=derive_seed(seed, "server", state.round))
        server = algorithm.server_update(state.server, report)
        after = replace(
            state,
            round=state.round + 1,
            server=server,
            client_states=state.client_states.update(who, report.client_state),
            server_delta=server.params - state.server.params,
            last_round_seen=update_participation(state, who, report),
            client_means=update_client_means(state, algorithm, who, report),
        )
        done = RoundResult(state, after, who, report)
        done = replace(done, after=ensure_client_means(recluster(done), algorithm))
        yield done
        state = done.after


def update_participation(state: FederatedState, cohort: Tensor, report: CohortUpdate) -> Tensor:
    """The last round in which each client's report counted, this one included, ``[N]``."""
    last = state.last_round_seen if len(state.last_round_seen) else torch.zeros_like(state.cluster_ids, device="cpu")
    return last.index_fill(0, cohort[~report.failed], state.round + 1)


def ensure_client_means(state: FederatedState, algorithm: FedAvg) -> FederatedState:
    """The state with the averages that the algorithm asks for, computed from all clients where the state has none."""
    if state.client_means or not algorithm.state_to_average(state.client_states.gather(slice(0, 1))):
        return state
    every = algorithm.state_to_average(state.client_states.gather_all())
    like = every.map(lambda leaf: leaf.new_zeros((state.server.num_models, *leaf.shape[1:]), dtype=torch.float64))
    return replace(state, client_means=cluster_mean(every, state.cluster_ids.cpu(), like))


def update_client_means(state: FederatedState, algorithm: FedAvg, cohort: Tensor, report: CohortUpdate) -> Tree:
    """The averages after a round, from what the cohort ``who [C]`` kept before and after it."""
    if not state.client_means:
        return state.client_means
    new, old = algorithm.state_to_average(report.client_state), algorithm.state_to_average(state.client_states.gather(cohort))
    share = None if report.membership is None else report.membership.cpu()
    here = replace(
        report, cluster_ids=report.cluster_ids.cpu(), cluster_sizes=report.cluster_sizes.cpu(), weight=report.weight.cpu(), membership=share
    )
    return state.client_means + cluster_sum(new.to(torch.float64) - old.to(torch.float64), here) / here.cluster_sizes.clamp_min(1)


def sample_cohort(num_clients: int, cohort_size: int, seed: int, round: int) -> Tensor:
    """``count`` of the clients, without replacement, ascending ``[C]``.

    Only seed and round decide, so that all algorithms see the same cohorts.
    """
    if not 1 <= cohort_size <= num_clients:
        raise ValueError(f"a cohort takes 1 to {num_clients} clients, not {cohort_size}")
    drawn = numpy_stream(seed, "cohort", round).permutation(num_clients)[:cohort_size]
    return torch.from_numpy(drawn).sort().values
