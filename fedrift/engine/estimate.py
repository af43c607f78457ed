"""Estimate the memory and disk space of a run before it starts, from its model and its configuration, without reading the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..config.schema import ExperimentConfig
from ..core.tree import Tree
from ..simulation.batches import activation_bytes_per_token, choose_clients_per_pass
from .cache import ResourceCache
from .loop import init_state


@dataclass(frozen=True)
class RunEstimate:
    """What a run needs. Sizes are in bytes.

    Attributes:
        trained_params: Trained numbers of one model.
        weights: The base weights, which all clients share.
        server_state: Models, broadcast values and moments of the server.
        client_states: The persistent states of all clients, once each client has participated; 0 for algorithms without any.
        cohort: Parameters, gradients and moments of the clients of one forward pass, and the updates of the whole cohort.
        activations: What the blocks of one forward pass store for the backward pass.
        clients_per_pass: Clients that train in one forward pass.
        checkpoint: The stored state on disk: server state, client states, and the previous states of one cohort, whose space is
            used again in the next round.
        updates_per_round: One round of the update log on disk, which `--save-updates` writes.
        tokens: Trained tokens of all clients over the whole run, padding included.
    """

    trained_params: int
    weights: int
    server_state: int
    client_states: int
    cohort: int
    activations: int
    clients_per_pass: int
    checkpoint: int
    updates_per_round: int
    tokens: int

    @property
    def memory(self) -> int:
        """Return the sum of everything that is in memory at the same time, without data, evaluation and the libraries."""
        return self.weights + self.server_state + self.client_states + self.cohort + self.activations


def estimate_run(config: ExperimentConfig, resources: ResourceCache) -> RunEstimate:
    """Estimate the memory and disk space of a run.

    The model is loaded, because its trained parameters depend on its layers; the dataset is not. The states are those that the run
    creates, so that their sizes are exact. Activations are the estimate by which a run chooses its clients per pass.

    Args:
        config: The experiment.
        resources: Loaded models, and the runtime options.

    Raises:
        UserError: The model cannot be loaded, or the algorithm does not fit the experiment.
    """
    training, runtime = config.training, resources.runtime
    model = resources.get_stacked_model(config.model, config.trainable)
    params = model.init_params(config.seed)
    num_clients = config.partition.num_clients
    rows, cohort_size, local_steps = config.algorithm.configure_clients(
        [np.zeros(0, dtype=np.int64)] * num_clients, training.cohort_size(num_clients), training.local_steps
    )
    state = init_state(config.algorithm, params, len(rows))
    param_bytes = tree_bytes(params)
    client_state = tree_bytes(state.client_states.states[0]) if state.client_states else 0
    server_state = sum(tree_bytes(tree) for tree in (state.server.params, state.server.broadcast, state.server.opt_state))
    num_passes = 2 if config.algorithm.local_regularizer() else 1
    clients_per_pass = runtime.clients_per_pass or choose_clients_per_pass(
        model.network, cohort_size, training.batch_size, training.max_seq_length, runtime.resolve_device(), num_passes
    )
    tokens_per_client = training.batch_size * training.max_seq_length
    moments = tree_bytes(training.client_optimizer.init(params))
    updates = cohort_size * (param_bytes + client_state)
    return RunEstimate(
        trained_params=sum(leaf.numel() for leaf in params.values()),
        weights=sum(weight.numel() * weight.element_size() for weight in {id(w): w for w in model.network.parameters()}.values()),
        server_state=server_state,
        client_states=client_state * len(rows),
        cohort=clients_per_pass * (2 * param_bytes + moments) + updates,
        activations=num_passes * clients_per_pass * tokens_per_client * activation_bytes_per_token(model.network),
        clients_per_pass=clients_per_pass,
        checkpoint=server_state + client_state * (len(rows) + cohort_size),
        updates_per_round=updates,
        tokens=training.num_rounds * cohort_size * local_steps * tokens_per_client,
    )


def tree_bytes(tree: Tree) -> int:
    """Return the size of all leaves of a tree in bytes."""
    leaves: list[torch.Tensor] = list(tree.values())
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)
