"""A piece of federated work by fedrift's simulated fleet."""

from __future__ import annotations

from peer_work import Turn, Work
from sides import CPU, LR, reader
from torch import Tensor

from fedrift.algorithms import FedAvg
from fedrift.fleet import SimulatedFleet
from fedrift.fleet.micro import micro_cohort
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Lora
from fedrift.optimizers import Sgd
from fedrift.rounds import begin, rounds
from fedrift.runtime import keep_pages
from fedrift.tree import Tree
from fedrift.values import Objective


def numbers(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    return params["x"].sum(1) * batch["tokens"].flatten()


def run(work: Work, turn: Turn) -> None:
    keep_pages()
    objective: Objective = StackedModel(work.network, Lora()) if work.model else numbers
    micro = micro_cohort(work.network, work.clients, work.sequences, work.tokens, CPU) if work.model else None
    fleet = SimulatedFleet(work.clients, objective, reader(work.batches), Sgd(LR), weighting="uniform", micro=micro)
    state = begin(FedAvg(), work.start, work.clients)
    until = work.warm + work.rounds
    turn.take()
    for done in rounds(state, fleet, FedAvg(), until=until, cohort=work.clients, seed=0):
        if done.after.round < until:
            turn.take()
        else:
            turn.over({name: leaf[0] for name, leaf in done.after.server.params.items()})
