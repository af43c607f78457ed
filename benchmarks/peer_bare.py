"""Run a workload without a framework: the same client is trained in a loop and the results are averaged. This times the training alone."""

from __future__ import annotations

import torch
from peer_work import Learner, Turn, Workload


def run(work: Workload, turn: Turn) -> None:
    """Run all rounds of a workload, each in its turn."""
    learner, server = Learner(work), {name: leaf[0].clone() for name, leaf in work.initial_params.items()}

    def evaluate() -> float:
        return learner.evaluate(server)

    for _ in range(work.warmup_rounds + work.num_rounds):
        turn.next_round(evaluate)
        total = {name: torch.zeros_like(leaf) for name, leaf in server.items()}
        for client in range(work.num_clients):
            learner.load_params(server)
            learner.train_on(work.rows_of(client))
            for name, leaf in learner.get_params().items():
                total[name] += leaf
        server = {name: leaf / work.num_clients for name, leaf in total.items()}
    turn.finish(server, evaluate)
