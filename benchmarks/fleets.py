"""What a fleet costs beside the training: seconds and bytes of a client-round, in process, over Flower's simulation, on loopback.

Run on a machine that does nothing else: ``python benchmarks/fleets.py [--rounds 10] [--clients 2]``. Of each way: the seconds of
its rounds from the third on (by then an actor of the simulation has started and loaded its model), a client, and what of them
is not training: the local steps of one client, as they take in process. Clients in processes of their own train beside each
other, so that this can be less than the fleet costs a client, and is what it costs the run. Writes
benchmarks/results/fleets.json.
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

from fedrift.experiment import Experiment, parse
from fedrift.fleet import SimulatedFleet
from fedrift.flower.launch import deploy, simulate
from fedrift.flower.terms import Terms
from fedrift.run import carry_out
from fedrift.runtime import Runtime
from fedrift.stock import Stock
from fedrift.store import Run

RESULT = Path(__file__).parent / "results" / "fleets.json"


def wanted(rounds: int, clients: int) -> Experiment:
    return parse({
        "corpus": "bbc", "model": "pocket", "partition": {"is": "TopicMix", "clients": clients}, "algorithm": "Scaffold",
        "plan": {"rounds": rounds, "steps": 2, "batch": 2, "seq_len": 64, "weighting": "uniform",
                 "optimizer": {"is": "Sgd", "lr": 1.0}},
        "evaluate": {"every": rounds, "blocks": 1, "own": 0, "final": 0, "panel": []}})


@contextmanager
def walks() -> Iterator[list[float]]:
    """The seconds of every client's local steps in this process, for the time of a block."""
    found: list[float] = []
    real = SimulatedFleet._walk

    def timed(*what: Any) -> Any:
        begun = perf_counter()
        came = real(*what)
        found.append(perf_counter() - begun)
        return came

    with patch.object(SimulatedFleet, "_walk", timed):
        yield found


def measured(way: str, run: Run, clients: int, training: float) -> dict[str, Any]:
    """Seconds of a client-round and what of them is not ``training``, in seconds, and the bytes."""
    seconds = median(row["train"] for row in run.timings() if row["round"] > 2 and "train" in row) / clients
    trajectory = run.trajectory()
    bytes = {name: float(trajectory.table(f"wire.{name}")[-1].mean()) if trajectory.has_table(f"wire.{name}") else 0.0
             for name in ("down", "up")}
    return {"fleet": way, "seconds": seconds, "beside training": seconds - training, **bytes}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--clients", type=int, default=2)
    options.add_argument("--busy", action="store_true", help="say in the file that the machine had other work")
    asked = options.parse_args()
    experiment, rows = wanted(asked.rounds, asked.clients), []
    with tempfile.TemporaryDirectory() as folder:
        def stock(name: str) -> Stock:
            return Stock(Runtime(root=Path(folder) / name, device="cpu", threads=1, micro=1))

        ways = {"in process": lambda: carry_out(experiment, stock("here")),
                "Flower simulation": lambda: simulate(experiment, stock("simulation"), Terms()),
                "Flower on loopback": lambda: deploy(experiment, stock("loopback"), Terms(), Path(folder) / "deployment")}
        print("| fleet | seconds a client-round | of them beside training | bytes down | bytes up |\n|---|---|---|---|---|")
        training = float("nan")
        for way, go in ways.items():
            with walks() as found:
                run = go()
            if found:
                training = median(found[2 * asked.clients:])
            row = measured(way, run, asked.clients, training)
            print(f"| {way} | {row['seconds']:.3f} | {row['beside training']:.4f} | {row['down']:,.0f} | {row['up']:,.0f} |",
                  flush=True)
            rows.append(row)
    RESULT.parent.mkdir(exist_ok=True)
    said = {"rounds": asked.rounds, "clients": asked.clients, "busy": asked.busy, "training": training, "rows": rows}
    RESULT.write_text(json.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    main()
