"""A piece of federated work by nobody: the same client, one after another, and a mean. What it takes is the training alone."""

from __future__ import annotations

import torch
from peer_work import Learner, Turn, Work


def run(work: Work, turn: Turn) -> None:
    learner, server = Learner(work), {name: leaf[0].clone() for name, leaf in work.start.items()}
    for _ in range(work.warm + work.rounds):
        turn.take()
        total = {name: torch.zeros_like(leaf) for name, leaf in server.items()}
        for client in range(work.clients):
            learner.load(server)
            learner.train_on(work.rows_of(client))
            for name, leaf in learner.ends().items():
                total[name] += leaf
        server = {name: leaf / work.clients for name, leaf in total.items()}
    turn.over(server)
