"""A piece of federated work by Flower's simulation: a ServerApp with its FedAvg, a ClientApp, one Ray actor.

The actor keeps its network from task to task; adapters travel, and nothing else. The server looks for answers every 5 ms, not
every 100 as by default. ``run_simulation`` keeps all in one process tree; `flwr run` takes the same path behind a SuperLink.
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
from peer_work import Learner, TurnClient, Workload

client = ClientApp()


@lru_cache(maxsize=1)
def load_learner(work_json: str) -> Learner:
    """One for a process."""
    torch.set_num_threads(1)
    return Learner(Workload.from_json(work_json))


@client.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    mine = load_learner(str(message.content["config"]["work"]))
    mine.load_params(message.content["arrays"].to_torch_state_dict())
    mine.train_on(mine.work.rows_of(int(context.node_config["partition-id"])))
    return Message(RecordDict({"arrays": ArrayRecord(mine.get_params()), "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


def run(work: Workload, turn: TurnClient) -> None:
    server, until = ServerApp(), work.warmup_rounds + work.num_rounds

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        vars(grid)["pull_interval"] = 0.005

        def between(round: int, arrays: ArrayRecord) -> Any:
            """Flower calls this before the first round and after each."""
            if round < until:
                turn.next_round()
            else:
                turn.finish(dict(arrays.to_torch_state_dict()))

        start = ArrayRecord({name: leaf[0] for name, leaf in work.initial_params.items()})
        FedAvg(fraction_evaluate=0.0, min_train_nodes=work.num_clients, min_available_nodes=work.num_clients).start(
            grid, start, until, train_config=ConfigRecord({"work": str(work)}), evaluate_fn=between
        )

    run_simulation(
        server,
        client,
        work.num_clients,
        backend_config={"init_args": {"num_cpus": 1, "include_dashboard": False}, "client_resources": {"num_cpus": 1, "num_gpus": 0}},
    )
