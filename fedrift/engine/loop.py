"""The round loop: a generator that yields the result of one round after another.

The loop neither reads nor writes files, and it prints nothing. The caller decides what to store and when to stop. A state is immutable
and complete, so continuing from a stored state gives the same results as a run without interruption.

Rounds are counted from 1. ``state.round`` is the number of completed rounds: round 1 begins with ``state.round`` 0 and ends with 1. The
evaluation before training is recorded as round 0, outside this loop.

Axis letters: N clients in total, C clients of the cohort, M models of the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..algorithms.aggregators.mean import cluster_mean, cluster_sum
from ..algorithms.fedavg import FedAvg
from ..core.random import derive_seed, numpy_stream
from ..core.tree import Tree
from ..core.types import ClientSampler, ClientStateStore, CohortUpdate, FederatedState, ReclusterFn, RoundResult
from ..simulation.simulator import ClientPool


def init_state(algorithm: FedAvg, params: Tree, num_clients: int) -> FederatedState:
    """Create the federated state before the first round.

    Args:
        algorithm: The algorithm, which initializes the states of the server and of the clients. All algorithms are derived from FedAvg.
        params: The initial parameters of one model, ``[1, ...]``. Every model of the server starts with a copy.
        num_clients: Number of clients N.

    Returns:
        The state, with ``round`` 0.

    Example:
        >>> init_state(fedrift.FedAvg(), params, num_clients=2).round
        0
    """
    cluster_ids = algorithm.initial_clusters(num_clients)
    models = params.take(torch.zeros(int(cluster_ids.max()) + 1, dtype=torch.long))
    client_states = ClientStateStore.replicate(algorithm.init_client_state(params.to(torch.device("cpu"))), num_clients)
    return FederatedState(0, algorithm.init_server(models), client_states, cluster_ids)


def sample_uniform(state: FederatedState, cohort_size: int, seed: int) -> Tensor:
    """Sample the cohort of the next round uniformly from all clients, regardless of their clusters, ``[C]``."""
    return sample_cohort(len(state.cluster_ids), cohort_size, seed, state.round)


def keep_clusters(result: RoundResult) -> FederatedState:
    """Return the state after a round without changing the assignment of clients to models."""
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
    """Run federated training from a state until ``num_rounds`` rounds are completed.

    Each round samples a cohort, trains its clients, computes the next state of the server, and lets the clustering change the
    assignment of clients to models.

    Args:
        state: The state to start from; ``init_state`` creates the state before the first round.
        client_pool: The clients, simulated or remote.
        algorithm: The federated algorithm.
        num_rounds: Total number of rounds of the run, including those that ``state`` has completed.
        cohort_size: Number of clients per round C.
        seed: The seed of the run, from which the random streams of sampling and of the server are derived.
        recluster: Changes the assignment of clients to models after each round. Default: no change.
        sample_clients: Samples the cohort. Default: uniform over all clients.

    Yields:
        The result of each round, directly after the round.

    Example:
        >>> state = init_state(fedrift.FedAvg(), params, simulator.size)
        >>> for result in run_rounds(state, simulator, fedrift.FedAvg(), num_rounds=2, cohort_size=2, seed=0):
        ...     print(result.after.round, result.update.failed.tolist())
        1 [False, False]
        2 [False, False]
    """
    state = ensure_client_means(state, algorithm)
    while state.round < num_rounds:
        cohort = sample_clients(state, cohort_size, seed)
        update = replace(client_pool.train(state, algorithm, cohort), server_seed=derive_seed(seed, "server", state.round))
        server = algorithm.server_update(state.server, update)
        after = replace(
            state,
            round=state.round + 1,
            server=server,
            client_states=state.client_states.update(cohort, update.client_state),
            server_delta=server.params - state.server.params,
            last_participation=update_participation(state, cohort, update),
            client_means=update_client_means(state, algorithm, cohort, update),
        )
        result = RoundResult(state, after, cohort, update)
        result = replace(result, after=ensure_client_means(recluster(result), algorithm))
        yield result
        state = result.after


def update_participation(state: FederatedState, cohort: Tensor, update: CohortUpdate) -> Tensor:
    """Compute the last round in which the server used the update of each client, including this round.

    Args:
        state: The state before the round.
        cohort: The clients of the round, ``[C]``.
        update: The updates of the cohort. Failed clients and clients without weight, such as dropped stragglers, do not count.

    Returns:
        The round of each client, counted from 1, ``[N]``; 0 for clients without a used update.
    """
    last_round = state.last_participation if len(state.last_participation) else torch.zeros_like(state.cluster_ids, device="cpu")
    return last_round.index_fill(0, cohort[~update.failed & (update.weight.cpu() > 0)], state.round + 1)


def ensure_client_means(state: FederatedState, algorithm: FedAvg) -> FederatedState:
    """Return the state with ``client_means``, the mean client states of each model, if ``round_metrics`` of the algorithm needs them."""
    if state.client_means or not algorithm.state_to_average(state.client_states.gather(slice(0, 1))):
        return state
    client_state = algorithm.state_to_average(state.client_states.gather_all())
    like = client_state.map(lambda leaf: leaf.new_zeros((state.server.num_models, *leaf.shape[1:]), dtype=torch.float64))
    return replace(state, client_means=cluster_mean(client_state, state.cluster_ids.cpu(), like))


def update_client_means(state: FederatedState, algorithm: FedAvg, cohort: Tensor, update: CohortUpdate) -> Tree:
    """Update ``client_means`` from the changes of the client states of a cohort, without reading the states of other clients.

    Args:
        state: The state before the round.
        algorithm: The federated algorithm.
        cohort: The clients of the round, ``[C]``.
        update: The updates of the cohort.

    Returns:
        The means after the round, ``[M, ...]`` in float64; empty if ``round_metrics`` of the algorithm needs no means.
    """
    if not state.client_means:
        return state.client_means
    new, old = algorithm.state_to_average(update.client_state), algorithm.state_to_average(state.client_states.gather(cohort))
    membership = None if update.membership is None else update.membership.cpu()
    cpu_update = replace(
        update,
        cluster_ids=update.cluster_ids.cpu(),
        cluster_sizes=update.cluster_sizes.cpu(),
        weight=update.weight.cpu(),
        membership=membership,
    )
    change = cluster_sum(new.to(torch.float64) - old.to(torch.float64), cpu_update)
    return state.client_means + change / cpu_update.cluster_sizes.clamp_min(1)


def sample_cohort(num_clients: int, cohort_size: int, seed: int, round: int) -> Tensor:
    """Sample clients uniformly without replacement.

    The cohort depends only on the arguments, so all algorithms train the same cohorts.

    Args:
        num_clients: Number of clients N.
        cohort_size: Number of clients to sample C.
        seed: The seed of the run.
        round: Number of completed rounds; 0 in the first round.

    Returns:
        The ids of the clients, ascending, ``[C]``.

    Raises:
        ValueError: The cohort is empty or larger than the number of clients.
    """
    if not 1 <= cohort_size <= num_clients:
        raise ValueError(f"cohort_size must be from 1 to {num_clients}, the number of clients, but it is {cohort_size}")
    sampled = numpy_stream(seed, "cohort", round).permutation(num_clients)[:cohort_size]
    return torch.from_numpy(sampled).sort().values
