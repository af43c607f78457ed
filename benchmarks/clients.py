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
from machine import options
from turns import written

from fedrift.experiment import Experiment, parse
from fedrift.run import Progress, carry_out
from fedrift.runtime import Runtime
from fedrift.stock import Stock

ALGORITHMS = ("FedAvg", "Scaffold", "ScaffoldWeighted", "FedDyn", "Ditto", "FedPer", "PFedMe", "MOON")
MOST = 1.2  # times a round at the smaller number of clients


@dataclass(eq=False)
class Side:
    """One run in a thread of its own that waits for its turn before each round."""

    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    begun: float = 0.0
    spent: list[float] = field(default_factory=list)
    error: BaseException | None = None

    def start(self, run: Callable[[Callable[[Progress], None]], Any]) -> None:
        def work() -> None:
            self.turn.acquire()
            try:
                run(self.wait)
            except BaseException as error:  # the thread that waits raises it
                self.error = error
            self.back.release()
        threading.Thread(target=work, daemon=True).start()

    def wait(self, progress: Progress) -> None:
        if progress.round:
            self.spent.append(process_time() - self.begun)
        self.back.release()
        self.turn.acquire()
        self.begun = process_time()

    def take(self) -> None:
        """Let the run make one round."""
        self.turn.release()
        self.back.acquire()
        if self.error:
            raise self.error


def corpus_file(path: Path, documents: int) -> Path:
    """Documents of four topics, each in words of its own."""
    draw = np.random.default_rng(0)
    words = np.array([["".join(draw.choice(list("aeioulnrst"), size=5)) for _ in range(200)] for _ in range(4)])
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(documents):
            rows.writerow([" ".join(draw.choice(words[number % 4], size=60)), f"topic {number % 4}"])
    return path


def asked(algorithm: str, clients: int, corpus: Path, rounds: int, small: bool) -> Experiment:
    """A run of few tokens a round, so that what is done beside the training weighs the more."""
    return parse({
        "corpus": str(corpus), "model": "pocket", "partition": {"is": "TopicMix", "clients": clients, "severity": 1.0},
        "algorithm": algorithm, "evaluate": {"blocks": 1, "own": 1, "final": 0, "panel": ["updates", "fairness", "cost"]},
        "plan": {"rounds": rounds, "participation": (2 if small else 10) / clients, "steps": 1, "batch": 1, "seq_len": 16,
                 "weighting": "uniform", "optimizer": {"is": "Sgd", "lr": 0.1}}})


def measure(algorithm: str, sizes: tuple[int, int], corpus: Path, folder: Path, rounds: int, small: bool) -> dict[str, Any]:
    """A row of the table."""
    sides = {size: Side() for size in sizes}
    for size, side in sides.items():
        stock = Stock(Runtime(root=folder / f"{algorithm}-{size}", cache=folder / "cache", device="cpu", threads=1))
        experiment = asked(algorithm, size, corpus, rounds, small)
        side.start(lambda watch, experiment=experiment, stock=stock: carry_out(experiment, stock, watch))
    for number in range(rounds + 1):
        for size in sizes if number % 2 else sizes[::-1]:
            sides[size].take()
    few, many = (side.spent[1:] for side in sides.values())  # the first round warms up
    ratios = sorted(b / a for a, b in zip(few, many, strict=True))
    low, _, high = quantiles(ratios, n=4)
    return {"algorithm": algorithm, "clients": list(sizes), "cohort": 2 if small else 10, "rounds": len(few),
            "ratio": round(median(ratios), 3), "ratio_quartiles": [round(low, 3), round(high, 3)],
            "ratio_of_sums": round(sum(many) / sum(few), 3), "cpu_ms": [round(1e3 * median(each), 1) for each in (few, many)]}


def main(words: list[str] | None = None) -> int:
    ask = options(__doc__ or "")
    ask.add_argument("--rounds", type=int, default=40, help="that are measured, after a first one")
    ask.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    said = ask.parse_args(words)
    sizes, documents = ((4, 12), 120) if said.small else ((20, 1000), 10_000)
    rows = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
        folder = Path(name)
        corpus = corpus_file(folder / "corpus.csv", documents)
        for algorithm in said.algorithms:
            rows.append(measure(algorithm, sizes, corpus, folder, said.rounds + 1, said.small))
            print("{algorithm:17} a round at {clients[1]:,} clients takes {ratio:.2f} times one at {clients[0]} (quartiles "
                  "{ratio_quartiles[0]:.2f} to {ratio_quartiles[1]:.2f}); {cpu_ms} ms".format(**rows[-1]), flush=True)
    told = {"measure": "user and system time of the process, interleaved rounds; the machine may be busy with other work",
            "most": MOST, "met": all(row["ratio"] <= MOST for row in rows)}
    print(f"at most {MOST} everywhere: {'yes' if told['met'] else 'no'}")
    written(said.out, "clients", rows, **told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
