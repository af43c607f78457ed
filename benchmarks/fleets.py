"""What a fleet costs beside the training: seconds and bytes of a client-round, in process, over Flower's simulation, on loopback.

Run on a machine that does nothing else: ``python benchmarks/fleets.py [--rounds 10] [--clients 2]``. Of each way: the seconds of
its rounds from the third on (by then an actor of the simulation has started and loaded its model), a client, and what of them
is not the training, which is what a client-round takes in process. Clients in processes of their own train beside each other, so
that this can be less than the fleet costs a client, and is what it costs the run. Writes benchmarks/results/fleets.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

from fedrift.experiment import Experiment, parse
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


def measured(way: str, run: Run, clients: int, plain: float | None) -> dict[str, object]:
    """Seconds of a client-round and what of them is not training; ``plain``: of a client-round in process."""
    seconds = median(row["train"] for row in run.timings() if row["round"] > 2 and "train" in row) / clients
    trajectory = run.trajectory()
    bytes = {name: float(trajectory.table(f"wire.{name}")[-1].mean()) if trajectory.has_table(f"wire.{name}") else 0.0
             for name in ("down", "up")}
    return {"fleet": way, "seconds": seconds, "beside training": seconds - (plain if plain is not None else seconds), **bytes}


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("--rounds", type=int, default=10)
    said.add_argument("--clients", type=int, default=2)
    asked = said.parse_args()
    experiment, rows = wanted(asked.rounds, asked.clients), []
    with tempfile.TemporaryDirectory() as folder:
        def stock(name: str) -> Stock:
            return Stock(Runtime(root=Path(folder) / name, device="cpu", threads=1, micro=1))

        ways = {"in process": lambda: carry_out(experiment, stock("here")),
                "Flower simulation": lambda: simulate(experiment, stock("simulation"), Terms()),
                "Flower on loopback": lambda: deploy(experiment, stock("loopback"), Terms(), Path(folder) / "deployment")}
        for way, go in ways.items():
            run = go()
            rows.append(measured(way, run, asked.clients, rows[0]["seconds"] if rows else None))
            print(f"{way:20} {rows[-1]['seconds']:8.3f} s a client-round, {rows[-1]['beside training']:8.3f} s beside training, "
                  f"{rows[-1]['down']:,.0f} bytes down, {rows[-1]['up']:,.0f} up", flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"rounds": asked.rounds, "clients": asked.clients, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
