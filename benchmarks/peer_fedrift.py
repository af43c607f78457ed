"""Run a workload with fedrift's client simulator."""

from __future__ import annotations

import torch
from comparison import CPU, LR, repeat_batches
from peer_work import Turn, Workload
from torch import Tensor

from fedrift.algorithms import FedAvg
from fedrift.config.runtime import configure_malloc
from fedrift.core.optimizers import Sgd
from fedrift.core.tree import Tree
from fedrift.core.types import LossFn
from fedrift.engine.loop import init_state, run_rounds
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora
from fedrift.simulation import ClientSimulator
from fedrift.simulation.batches import choose_clients_per_pass


def linear_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of the workload without a model, [C]; its gradient is one number per client."""
    return params["x"].sum(1) * batch["tokens"].flatten()


def run(work: Workload, turn: Turn) -> None:
    """Run all rounds of a workload, each in its turn."""
    configure_malloc()
    objective: LossFn = StackedModel(work.network, Lora()) if work.model else linear_loss
    clients_per_pass = choose_clients_per_pass(work.network, work.num_clients, work.sequences, work.tokens, CPU) if work.model else None
    simulator = ClientSimulator(
        work.num_clients, objective, repeat_batches(work.batches), Sgd(LR), client_weighting="uniform", clients_per_pass=clients_per_pass
    )
    state = init_state(FedAvg(), work.initial_params, work.num_clients)
    total_rounds = work.warmup_rounds + work.num_rounds

    @torch.no_grad()
    def evaluate() -> float:
        losses = [float(objective(state.server.params, batch)) for batch in work.held_out]
        return sum(losses) / len(losses)

    turn.next_round(evaluate)
    for result in run_rounds(state, simulator, FedAvg(), num_rounds=total_rounds, cohort_size=work.num_clients, seed=0):
        state = result.after
        if state.round < total_rounds:
            turn.next_round(evaluate)
        else:
            turn.finish({name: leaf[0] for name, leaf in state.server.params.items()}, evaluate)
