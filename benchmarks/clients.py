"""Measure how the time of a round depends on the number of clients that do not participate in it.

    python benchmarks/clients.py [--rounds 40]

Each algorithm runs with 20 and with 1,000 clients and a cohort of ten. Both runs use the same dataset, model and local steps, and do
everything that a run does in a round: training, aggregation, probes, records and checkpoints. The runs take turns, one round each.
A round is measured in CPU time (user and system time of the process), so that other programs do not affect the result. ``ratio`` is
the time of a round with 1,000 clients divided by that with 20, as the median over the turns.
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
MAX_RATIO = 1.2  # target: the maximum ratio to a round with the smaller number of clients


@dataclass(eq=False)
class InterleavedRun:
    """A run in its own thread, which waits for its turn before each round."""

    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    returned: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    started_at: float = 0.0
    round_s: list[float] = field(default_factory=list)
    error: BaseException | None = None

    def start(self, run: Callable[[Callable[[Progress], None]], Any]) -> None:
        """Start the thread; ``run`` receives the progress callback that waits for turns."""

        def run_in_turns() -> None:
            self.turn.acquire()
            try:
                run(self.wait_for_turn)
            except BaseException as error:  # run_one_round raises it in the main thread
                self.error = error
            self.returned.release()

        threading.Thread(target=run_in_turns, daemon=True).start()

    def wait_for_turn(self, progress: Progress) -> None:
        """Record the CPU time of the previous round and wait for the next turn."""
        if progress.round:
            self.round_s.append(process_time() - self.started_at)
        self.returned.release()
        self.turn.acquire()
        self.started_at = process_time()

    def run_one_round(self) -> None:
        """Let the run compute one round, and wait until it has finished."""
        self.turn.release()
        self.returned.acquire()
        if self.error:
            raise self.error


def write_corpus(path: Path, num_documents: int) -> Path:
    """Write documents of four topics with disjoint vocabularies to a CSV file, and return its path."""
    draw = np.random.default_rng(0)
    words = np.array([["".join(draw.choice(list("aeioulnrst"), size=5)) for _ in range(200)] for _ in range(4)])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(num_documents):
            writer.writerow([" ".join(draw.choice(words[number % 4], size=60)), f"topic {number % 4}"])
    return path


def make_config(algorithm: str, num_clients: int, corpus: Path, num_rounds: int, small: bool) -> ExperimentConfig:
    """Return an experiment with few tokens per round, so that the costs other than training dominate."""
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
    """Measure an algorithm with both numbers of clients, and return a row of the table."""
    sides = {size: InterleavedRun() for size in sizes}
    for size, side in sides.items():
        cache = ResourceCache(Runtime(runs_dir=folder / f"{algorithm}-{size}", cache_dir=folder / "cache", device="cpu", threads=1))
        experiment = make_config(algorithm, size, corpus, num_rounds, small)
        side.start(lambda on_progress, experiment=experiment, cache=cache: run_experiment(experiment, cache, on_progress))
    for number in range(num_rounds + 1):
        for size in sizes if number % 2 else sizes[::-1]:
            sides[size].run_one_round()
    few_s, many_s = (side.round_s[1:] for side in sides.values())  # the first round warms up
    ratios = sorted(b / a for a, b in zip(few_s, many_s, strict=True))
    low, _, high = quantiles(ratios, n=4)
    return {
        "algorithm": algorithm,
        "clients": list(sizes),
        "cohort": 2 if small else 10,
        "rounds": len(few_s),
        "ratio": round(median(ratios), 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "ratio_of_sums": round(sum(many_s) / sum(few_s), 3),
        "cpu_ms": [round(1e3 * median(seconds), 1) for seconds in (few_s, many_s)],
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure all algorithms, print a line for each and write the results."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=40, help="the number of measured rounds, after a warm-up round")
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS, help="the algorithms to measure")
    args = parser.parse_args(arguments)
    sizes, documents = ((4, 12), 120) if args.small else ((20, 1000), 10_000)
    rows = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
        folder = Path(name)
        corpus = write_corpus(folder / "corpus.csv", documents)
        for algorithm in args.algorithms:
            rows.append(measure(algorithm, sizes, corpus, folder, args.rounds + 1, args.small))
            print(
                "{algorithm:17} a round with {clients[1]:,} clients takes {ratio:.2f} times as long as with {clients[0]} (quartiles "
                "{ratio_quartiles[0]:.2f} to {ratio_quartiles[1]:.2f}); {cpu_ms} ms".format(**rows[-1]),
                flush=True,
            )
    summary = {
        "measure": "user and system time of the process in interleaved rounds; the machine may run other programs",
        "most": MAX_RATIO,
        "met": all(row["ratio"] <= MAX_RATIO for row in rows),
    }
    print(f"all ratios are at most {MAX_RATIO}: {'yes' if summary['met'] else 'no'}")
    write_rows(args.out, "clients", rows, **summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
