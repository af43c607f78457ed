"""Run a workload with Flower's simulation: a ServerApp with Flower's FedAvg, a ClientApp and Ray actors.

An actor keeps its network between tasks, so messages contain only adapters. The server polls for results every 5 ms instead of
Flower's default of 100 ms. ``run_simulation`` keeps everything in one process tree; `flwr run` uses the same code behind a SuperLink.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peer_work import Learner, Turn, TurnClient, Workload

client = ClientApp()


@lru_cache(maxsize=1)
def load_learner(work_json: str) -> Learner:
    """Load the learner once per process."""
    torch.set_num_threads(1)
    return Learner(Workload.from_json(work_json))


@client.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Train one client for one round."""
    learner = load_learner(str(message.content["config"]["work"]))
    learner.load_params(message.content["arrays"].to_torch_state_dict())
    learner.train_on(learner.work.rows_of(int(context.node_config["partition-id"])))
    return Message(
        RecordDict({"arrays": ArrayRecord(learner.get_params()), "metrics": MetricRecord({"num-examples": 1})}), reply_to=message
    )


def run(work: Workload, turn: Turn) -> None:
    """Run all rounds of a workload, each in its turn; a whole run uses two actors, one per core."""
    num_actors = 1 if isinstance(turn, TurnClient) else 2
    server, total_rounds = ServerApp(), work.warmup_rounds + work.num_rounds

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        vars(grid)["pull_interval"] = 0.005

        def take_turn(round: int, arrays: ArrayRecord) -> Any:
            """Take a turn; Flower calls this before the first round and after each round."""
            params = dict(arrays.to_torch_state_dict())

            def evaluate() -> float:
                return load_learner(str(work)).evaluate(params)

            if round < total_rounds:
                turn.next_round(evaluate)
            else:
                turn.finish(params, evaluate)

        start = ArrayRecord({name: leaf[0] for name, leaf in work.initial_params.items()})
        FedAvg(fraction_evaluate=0.0, min_train_nodes=work.num_clients, min_available_nodes=work.num_clients).start(
            grid, start, total_rounds, train_config=ConfigRecord({"work": str(work)}), evaluate_fn=take_turn
        )

    run_simulation(
        server,
        client,
        work.num_clients,
        backend_config={
            "init_args": {"num_cpus": num_actors, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0},
        },
    )
