"""What a backend costs beside the training: seconds and bytes of a client-round, in process, over Flower's simulation, on loopback.

Run on a machine that does nothing else: ``python benchmarks/backends.py [--rounds 10] [--clients 2]``. Of each way: the seconds of
its rounds from the third on (by then an actor of the simulation has started and loaded its model), a client, and what of them
is not training: the local steps of one client, as they take in process. Clients in processes of their own train beside each
other, so that this can be less than the backend costs a client, and is what it costs the run. Writes
benchmarks/results/backends.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

from fedrift.config.runtime import Runtime
from fedrift.config.schema import ExperimentConfig, parse_config
from fedrift.engine.cache import ResourceCache
from fedrift.engine.run import run_experiment
from fedrift.flower.config import FlowerConfig
from fedrift.flower.launch import deploy, simulate
from fedrift.simulation import ClientSimulator
from fedrift.storage import Run

RESULT = Path(__file__).parent / "results" / "backends.json"


def make_config(num_rounds: int, num_clients: int) -> ExperimentConfig:
    return parse_config(
        {
            "dataset": "bbc",
            "model": "pocket",
            "partition": {"type": "TopicMix", "num_clients": num_clients},
            "algorithm": "Scaffold",
            "training": {
                "num_rounds": num_rounds,
                "local_steps": 2,
                "batch_size": 2,
                "max_seq_length": 64,
                "client_weighting": "uniform",
                "client_optimizer": {"type": "Sgd", "lr": 1.0},
            },
            "evaluation": {
                "interval": num_rounds,
                "blocks_per_domain": 1,
                "blocks_per_client": 0,
                "final_blocks_per_domain": 0,
                "probes": [],
            },
        }
    )


@contextmanager
def time_local_steps() -> Iterator[list[float]]:
    """The seconds of every client's local steps in this process, for the time of a block."""
    found: list[float] = []
    real = ClientSimulator._local_steps

    def timed(*what: Any) -> Any:
        begun = perf_counter()
        came = real(*what)
        found.append(perf_counter() - begun)
        return came

    with patch.object(ClientSimulator, "_local_steps", timed):
        yield found


def measure(backend: str, run: Run, num_clients: int, training_s: float) -> dict[str, Any]:
    """Seconds of a client-round and what of them is not ``training``, in seconds, and the bytes."""
    seconds = median(row["train"] for row in run.timings() if row["round"] > 2 and "train" in row) / num_clients
    trajectory = run.trajectory()
    bytes = {
        name: float(trajectory.client_table(f"wire.{name}")[-1].mean()) if trajectory.has_client_table(f"wire.{name}") else 0.0
        for name in ("down", "up")
    }
    return {"backend": backend, "seconds": seconds, "beside training": seconds - training_s, **bytes}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--clients", type=int, default=2)
    options.add_argument("--busy", action="store_true", help="say in the file that the machine had other work")
    asked = options.parse_args()
    experiment, rows = make_config(asked.rounds, asked.clients), []
    with tempfile.TemporaryDirectory() as folder:

        def stock(name: str) -> ResourceCache:
            return ResourceCache(Runtime(runs_dir=Path(folder) / name, device="cpu", threads=1, clients_per_pass=1))

        ways = {
            "in process": lambda: run_experiment(experiment, stock("here")),
            "Flower simulation": lambda: simulate(experiment, stock("simulation"), FlowerConfig()),
            "Flower on loopback": lambda: deploy(experiment, stock("loopback"), FlowerConfig(), Path(folder) / "deployment"),
        }
        print("| backend | seconds a client-round | of them beside training | bytes down | bytes up |\n|---|---|---|---|---|")
        training = float("nan")
        for way, go in ways.items():
            with time_local_steps() as found:
                run = go()
            if found:
                training = median(found[2 * asked.clients :])
            row = measure(way, run, asked.clients, training)
            print(f"| {way} | {row['seconds']:.3f} | {row['beside training']:.4f} | {row['down']:,.0f} | {row['up']:,.0f} |", flush=True)
            rows.append(row)
    RESULT.parent.mkdir(exist_ok=True)
    said = {"rounds": asked.rounds, "clients": asked.clients, "busy": asked.busy, "training": training, "rows": rows}
    RESULT.write_text(json.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    main()
