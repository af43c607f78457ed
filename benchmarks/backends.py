"""Measure the overhead of each backend: seconds and bytes per client-round in process, over Flower's simulation, and on loopback.

Use an idle machine: ``python benchmarks/backends.py [--rounds 10] [--clients 2]``. The script reports the seconds per client from the
third round on, when the actors of the simulation have started and loaded the model. The overhead is this time minus the time of the
local steps of one client in process. Clients in separate processes train in parallel, so the overhead is that of the run and
can be smaller than that of a client. The script writes benchmarks/results/backends.json.
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
    """Return a SCAFFOLD experiment with short local training."""
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
    """Record the seconds of the local steps of all clients in this process, for the duration of a ``with`` block."""
    seconds: list[float] = []
    original = ClientSimulator._local_steps

    def timed(*args: Any) -> Any:
        start = perf_counter()
        result = original(*args)
        seconds.append(perf_counter() - start)
        return result

    with patch.object(ClientSimulator, "_local_steps", timed):
        yield seconds


def measure(backend: str, run: Run, num_clients: int, training_s: float) -> dict[str, Any]:
    """Return a row of the table: the seconds per client-round, the overhead beyond ``training_s``, and the bytes."""
    seconds = median(row["train"] for row in run.timings() if row["round"] > 2 and "train" in row) / num_clients
    trajectory = run.trajectory()
    num_bytes = {
        name: float(trajectory.client_table(f"wire.{name}")[-1].mean()) if trajectory.has_client_table(f"wire.{name}") else 0.0
        for name in ("down", "up")
    }
    return {"backend": backend, "seconds": seconds, "overhead": seconds - training_s, **num_bytes}


def main() -> None:
    """Measure all backends, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="the number of rounds")
    parser.add_argument("--clients", type=int, default=2, help="the number of clients")
    parser.add_argument("--busy", action="store_true", help="record in the results that the machine ran other programs")
    args = parser.parse_args()
    experiment, rows = make_config(args.rounds, args.clients), []
    with tempfile.TemporaryDirectory() as folder:

        def make_cache(name: str) -> ResourceCache:
            return ResourceCache(Runtime(runs_dir=Path(folder) / name, device="cpu", threads=1, clients_per_pass=1))

        backends = {
            "in process": lambda: run_experiment(experiment, make_cache("here")),
            "Flower simulation": lambda: simulate(experiment, make_cache("simulation"), FlowerConfig()),
            "Flower on loopback": lambda: deploy(experiment, make_cache("loopback"), FlowerConfig(), Path(folder) / "deployment"),
        }
        print("| backend | seconds per client-round | overhead without training, s | bytes down | bytes up |\n|---|---|---|---|---|")
        training_s = float("nan")
        for backend, run_backend in backends.items():
            with time_local_steps() as step_seconds:
                run = run_backend()
            if step_seconds:
                training_s = median(step_seconds[2 * args.clients :])
            row = measure(backend, run, args.clients, training_s)
            print(f"| {backend} | {row['seconds']:.3f} | {row['overhead']:.4f} | {row['down']:,.0f} | {row['up']:,.0f} |", flush=True)
            rows.append(row)
    RESULT.parent.mkdir(exist_ok=True)
    results = {"rounds": args.rounds, "clients": args.clients, "busy": args.busy, "training": training_s, "rows": rows}
    RESULT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
