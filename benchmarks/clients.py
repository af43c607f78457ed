"""How a round of a whole run grows with the clients that do not take part in it.

    python benchmarks/clients.py [--rounds 40]

Each algorithm runs twice, with 20 clients and with 1,000, a cohort of ten in both: the same corpus, model and local steps, and
all that a run does in a round (training, aggregation, probes, records, the stored state). The runs take turns, a round each, and
each round is measured in seconds of the processor (user and system time of the process), so that other work on the machine
disturbs neither. ``ratio`` is a round at 1,000 clients over one at 20, the median over the turns.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from time import process_time
from typing import Any

import numpy as np
import torch
from comparison import write_rows
from machine import make_parser

from fedrift.config.runtime import Runtime
from fedrift.config.schema import ExperimentConfig, parse_config
from fedrift.engine.cache import ResourceCache
from fedrift.engine.callbacks import Progress
from fedrift.engine.run import run_experiment

ALGORITHMS = ("FedAvg", "Scaffold", "ScaffoldWeighted", "FedDyn", "Ditto", "FedPer", "PFedMe", "MOON")
MAX_RATIO = 1.2  # times a round at the smaller number of clients


@dataclass(eq=False)
class InterleavedRun:
    """One run in a thread of its own that waits for its turn before each round."""

    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    returned: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    started_at: float = 0.0
    round_s: list[float] = field(default_factory=list)
    error: BaseException | None = None

    def start(self, run: Callable[[Callable[[Progress], None]], Any]) -> None:
        def work() -> None:
            self.turn.acquire()
            try:
                run(self.wait_for_turn)
            except BaseException as error:  # the thread that waits raises it
                self.error = error
            self.returned.release()

        threading.Thread(target=work, daemon=True).start()

    def wait_for_turn(self, progress: Progress) -> None:
        if progress.round:
            self.round_s.append(process_time() - self.started_at)
        self.returned.release()
        self.turn.acquire()
        self.started_at = process_time()

    def run_one_round(self) -> None:
        """Let the run make one round."""
        self.turn.release()
        self.returned.acquire()
        if self.error:
            raise self.error


def write_corpus(path: Path, num_documents: int) -> Path:
    """Documents of four topics, each in words of its own."""
    draw = np.random.default_rng(0)
    words = np.array([["".join(draw.choice(list("aeioulnrst"), size=5)) for _ in range(200)] for _ in range(4)])
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(num_documents):
            rows.writerow([" ".join(draw.choice(words[number % 4], size=60)), f"topic {number % 4}"])
    return path


def make_config(algorithm: str, num_clients: int, corpus: Path, num_rounds: int, small: bool) -> ExperimentConfig:
    """A run of few tokens a round, so that what is done beside the training weighs the more."""
    return parse_config(
        {
            "dataset": str(corpus),
            "model": "pocket",
            "partition": {"type": "TopicMix", "num_clients": num_clients, "severity": 1.0},
            "algorithm": algorithm,
            "evaluation": {
                "blocks_per_domain": 1,
                "blocks_per_client": 1,
                "final_blocks_per_domain": 0,
                "probes": ["updates", "fairness", "cost"],
            },
            "training": {
                "num_rounds": num_rounds,
                "participation_rate": (2 if small else 10) / num_clients,
                "local_steps": 1,
                "batch_size": 1,
                "max_seq_length": 16,
                "client_weighting": "uniform",
                "client_optimizer": {"type": "Sgd", "lr": 0.1},
            },
        }
    )


def measure(algorithm: str, sizes: tuple[int, int], corpus: Path, folder: Path, num_rounds: int, small: bool) -> dict[str, Any]:
    """A row of the table."""
    sides = {size: InterleavedRun() for size in sizes}
    for size, side in sides.items():
        stock = ResourceCache(Runtime(runs_dir=folder / f"{algorithm}-{size}", cache_dir=folder / "cache", device="cpu", threads=1))
        experiment = make_config(algorithm, size, corpus, num_rounds, small)
        side.start(lambda watch, experiment=experiment, stock=stock: run_experiment(experiment, stock, watch))
    for number in range(num_rounds + 1):
        for size in sizes if number % 2 else sizes[::-1]:
            sides[size].run_one_round()
    few, many = (side.round_s[1:] for side in sides.values())  # the first round warms up
    ratios = sorted(b / a for a, b in zip(few, many, strict=True))
    low, _, high = quantiles(ratios, n=4)
    return {
        "algorithm": algorithm,
        "clients": list(sizes),
        "cohort": 2 if small else 10,
        "rounds": len(few),
        "ratio": round(median(ratios), 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "ratio_of_sums": round(sum(many) / sum(few), 3),
        "cpu_ms": [round(1e3 * median(each), 1) for each in (few, many)],
    }


def main(words: list[str] | None = None) -> int:
    ask = make_parser(__doc__ or "")
    ask.add_argument("--rounds", type=int, default=40, help="that are measured, after a first one")
    ask.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    said = ask.parse_args(words)
    sizes, documents = ((4, 12), 120) if said.small else ((20, 1000), 10_000)
    rows = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
        folder = Path(name)
        corpus = write_corpus(folder / "corpus.csv", documents)
        for algorithm in said.algorithms:
            rows.append(measure(algorithm, sizes, corpus, folder, said.rounds + 1, said.small))
            print(
                "{algorithm:17} a round at {clients[1]:,} clients takes {ratio:.2f} times one at {clients[0]} (quartiles "
                "{ratio_quartiles[0]:.2f} to {ratio_quartiles[1]:.2f}); {cpu_ms} ms".format(**rows[-1]),
                flush=True,
            )
    told = {
        "measure": "user and system time of the process, interleaved rounds; the machine may be busy with other work",
        "most": MAX_RATIO,
        "met": all(row["ratio"] <= MAX_RATIO for row in rows),
    }
    print(f"at most {MAX_RATIO} everywhere: {'yes' if told['met'] else 'no'}")
    write_rows(said.out, "clients", rows, **told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
