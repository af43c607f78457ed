"""A tiny Flower app over Flower's simulation on Ray, with the strategy wrapped by ``Diagnosed`` and without.

``test_ray.py`` runs ``python -m tests.flower.ray_app FOLDER`` in a process of its own, because the simulation starts Ray and changes
the state of Flower's process. The last line of the output is JSON. Flower's replies come in any order, so clients send multiples of
2^-10, whose mean over four clients is exact in any order.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.simulation import run_simulation

import fedrift
from fedrift.flower import Diagnosed

NUM_CLIENTS, NUM_ROUNDS = 4, 3
EVERY_NODE = {"fraction_evaluate": 0.0, "min_train_nodes": NUM_CLIENTS, "min_available_nodes": NUM_CLIENTS}  # else round 1 may take two
SHAPES = {"layer.q_proj.lora_A.weight": (2, 6), "layer.q_proj.lora_B.weight": (6, 2)}


def make_client_app() -> ClientApp:
    """Each client moves every array toward a point of its own."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, number = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
        draw = np.random.default_rng(100 * number + client)
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        moved = {name: leaf + 0.5 * (draw.normal(client, 1, leaf.shape) - leaf) for name, leaf in arrays.items()}
        sent = {name: Array((np.round(leaf * 1024) / 1024).astype(np.float32)) for name, leaf in moved.items()}
        numbers = {"train_loss": 1.0 + client, "num-examples": 8, "partition-id": client}
        return Message(RecordDict({"arrays": ArrayRecord(sent), "metrics": MetricRecord(numbers)}), reply_to=message)

    return app


def simulate(*strategies: Strategy) -> list[list[str]]:
    """Run the strategies one after another in one simulation; return the digest of the arrays before training and after each round."""
    digests: list[list[str]] = []
    app = ServerApp()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        digests[-1].append(hashlib.sha256(b"".join(array.numpy().tobytes() for _, array in sorted(arrays.items()))).hexdigest())
        return MetricRecord({"loss": float(sum(np.square(array.numpy()).sum() for array in arrays.values()))})

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for strategy in strategies:
            digests.append([])
            initial = {name: Array(np.ones(shape, np.float32)) for name, shape in SHAPES.items()}
            strategy.start(grid, ArrayRecord(initial), num_rounds=NUM_ROUNDS, evaluate_fn=evaluate)

    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 1, "include_dashboard": False},
    }
    run_simulation(app, make_client_app(), NUM_CLIENTS, backend_config=backend)
    return digests


def main(folder: Path) -> None:
    """Run the app plain and wrapped, and print what both gave."""
    wrapped = Diagnosed(FedAvg(**EVERY_NODE), runs_dir=folder, name="on-ray", severity=1.0)
    plain, digests = simulate(FedAvg(**EVERY_NODE), wrapped)
    trajectory = wrapped.run.trajectory()
    print(
        json.dumps(
            {
                "plain": plain,
                "wrapped": digests,
                "rounds": trajectory.rounds.tolist(),
                "metrics": list(trajectory.metrics),
                "train_loss": trajectory.client_table("train.loss")[-1].tolist(),
                "failures": len(fedrift.diagnose(wrapped.run)),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
