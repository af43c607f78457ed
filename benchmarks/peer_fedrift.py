"""A piece of federated work by fedrift's simulated fleet."""

from __future__ import annotations

from comparison import CPU, LR, repeat_batches
from peer_work import TurnClient, Workload
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
    return params["x"].sum(1) * batch["tokens"].flatten()


def run(work: Workload, turn: TurnClient) -> None:
    configure_malloc()
    objective: LossFn = StackedModel(work.network, Lora()) if work.model else linear_loss
    micro = choose_clients_per_pass(work.network, work.num_clients, work.sequences, work.tokens, CPU) if work.model else None
    fleet = ClientSimulator(
        work.num_clients, objective, repeat_batches(work.batches), Sgd(LR), client_weighting="uniform", clients_per_pass=micro
    )
    state = init_state(FedAvg(), work.initial_params, work.num_clients)
    until = work.warmup_rounds + work.num_rounds
    turn.next_round()
    for done in run_rounds(state, fleet, FedAvg(), num_rounds=until, cohort_size=work.num_clients, seed=0):
        if done.after.round < until:
            turn.next_round()
        else:
            turn.finish({name: leaf[0] for name, leaf in done.after.server.params.items()})
