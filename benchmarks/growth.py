"""Measure what grows with the number of clients that wait, and with the number of documents.

    python benchmarks/growth.py [--rounds 13]

- **Rounds**: FedAvg and SCAFFOLD run with 20, 200, 2,000 and 10,000 clients and a cohort of ten, as in ``benchmarks/clients.py``: the
  runs take turns, one round each, and a round is measured in CPU time. The held-out loss, which has one value per client, is evaluated in
  every fourth round; ``evaluation_ms`` is what such a round takes in addition, and ``ratio`` compares the other rounds.
- **Disk**: the bytes of the checkpoint and of the client states after the last round, and the bytes that a round adds to the records.
- **Memory**: the bytes of the state of a waiting client, and the resident memory that each further client takes.
- **Partition**: documents with synthetic labels are assigned to 100 clients, without any model.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import psutil
import torch
from clients import MAX_RATIO, InterleavedRun, make_config, write_corpus
from comparison import write_rows
from machine import make_parser

import fedrift.partition as partitions
from fedrift.algorithms import FedAvg, Scaffold
from fedrift.config.runtime import Runtime
from fedrift.core.random import numpy_stream
from fedrift.core.tree import Tree
from fedrift.data import Corpus
from fedrift.engine.cache import ResourceCache, resolve_fingerprints
from fedrift.engine.loop import init_state
from fedrift.engine.run import run_experiment
from fedrift.storage import Run

ALGORITHMS = ("FedAvg", "Scaffold")
EVALUATION_INTERVAL = 4  # rounds
SIZES, SMALL_SIZES = (20, 200, 2000, 10_000), (4, 8, 16)
DOCUMENTS, SMALL_DOCUMENTS = (10_000, 100_000, 1_000_000), (200, 2000)
PARTITIONS = {"IID": ("TopicMix", 0.0), "TopicMix": ("TopicMix", 1.0), "Dirichlet": ("Dirichlet", 1.0), "Quantity": ("Quantity", 1.0)}
Row = dict[str, Any]
MAX_GROWTH_PER_DOCUMENT = 1.5  # target: time per document with ten times as many documents, relative to the smaller number


def measure_rounds(algorithm: str, sizes: tuple[int, ...], corpus: Path, folder: Path, num_rounds: int, small: bool) -> list[Row]:
    """Measure an algorithm with all numbers of clients, and return one row for each."""
    sides: dict[int, InterleavedRun] = {size: InterleavedRun() for size in sizes}
    record_bytes: dict[int, list[int]] = {size: [] for size in sizes}
    cache = ResourceCache(Runtime(runs_dir=folder / "runs", cache_dir=folder / "cache", device="cpu", threads=1))
    runs: dict[int, Run] = {}
    for size, side in sides.items():
        config = make_config(algorithm, size, corpus, num_rounds, small)
        config = resolve_fingerprints(replace(config, evaluation=replace(config.evaluation, interval=EVALUATION_INTERVAL)), cache)
        runs[size] = Run(cache.runtime.runs_dir, config.id)
        side.start(lambda on_progress, config=config: run_experiment(config, cache, on_progress))
    for number in range(num_rounds + 1):
        for size in sizes if number % 2 else sizes[::-1]:
            sides[size].run_one_round()
            record_bytes[size].append((runs[size].folder / "records.jsonl").stat().st_size)
    rows = []
    is_evaluated = [number % EVALUATION_INTERVAL == 0 or number == num_rounds for number in range(1, num_rounds + 1)]
    plain = [index for index in range(1, num_rounds) if not is_evaluated[index]]  # the first round warms up
    few_s = sides[sizes[0]].round_s
    for size, side in sides.items():
        ratios = [side.round_s[index] / few_s[index] for index in plain]
        round_s = median(side.round_s[index] for index in plain)
        evaluated_s = median(seconds for seconds, evaluated in zip(side.round_s, is_evaluated, strict=True) if evaluated)
        rows.append(
            {
                "part": "rounds",
                "algorithm": algorithm,
                "clients": size,
                "cohort": 2 if small else 10,
                "rounds": len(ratios),
                "round_ms": round(1e3 * round_s, 1),
                "ratio": round(median(ratios), 3),
                "evaluation_ms": round(1e3 * (evaluated_s - round_s), 1),
                "state_bytes": runs[size].state_path.stat().st_size,
                "client_state_bytes": runs[size].client_state_path.stat().st_size if runs[size].client_state_path.exists() else 0,
                "record_bytes_per_round": round(median(np.diff(record_bytes[size]).tolist())),
                "record_bytes_per_evaluation": int(np.diff(record_bytes[size]).max()),
            }
        )
    return rows


def measure_memory(algorithm: FedAvg, num_clients: int, num_numbers: int) -> Row:
    """Measure the memory of clients that wait, each with a state of its own, for models with ``num_numbers`` float32 numbers."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    state = init_state(algorithm, Tree(a=torch.zeros(1, num_numbers)), num_clients)
    row = state.client_states.gather(slice(0, 1))
    if row:  # clients share one initial state until they have participated
        own_states = replace(state.client_states, states=tuple(row.map(torch.clone) for _ in range(num_clients)))
        state = replace(state, client_states=own_states)
    resident_bytes = psutil.Process().memory_info().rss - before
    return {
        "part": "memory",
        "algorithm": type(algorithm).__name__,
        "clients": num_clients,
        "own_bytes": state.client_states.num_bytes() // num_clients if row else 0,
        "resident_bytes_per_client": round(resident_bytes / num_clients),
    }


def make_corpus(num_documents: int, num_topics: int = 10) -> Corpus:
    """Return documents with synthetic labels and lengths; their texts are numbers."""
    rng = numpy_stream(0, "growth", num_documents)
    texts = np.empty(num_documents, dtype=object)
    texts[:] = [str(number) for number in range(num_documents)]
    return Corpus(
        "synthetic labels",
        texts,
        rng.integers(num_topics, size=num_documents),
        tuple(f"topic{topic}" for topic in range(num_topics)),
        np.full(num_documents, "", dtype=object),
        np.zeros(num_documents, dtype=np.int8),
        rng.integers(5, 200, size=num_documents),
    )


def measure_partitions(sizes: tuple[int, ...], num_clients: int) -> list[Row]:
    """Measure the CPU time of each partition for all numbers of documents; the numbers take turns three times, and the fastest counts."""
    corpora = {size: make_corpus(size) for size in sizes}
    rows = []
    for name, (kind, severity) in PARTITIONS.items():
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(3):
            for size, corpus in corpora.items():
                start = process_time()
                getattr(partitions, kind)(num_clients, severity)(corpus, numpy_stream(0, "partition"))
                seconds[size].append(process_time() - start)
        for size in sizes:
            best, first = min(seconds[size]) / size, min(seconds[sizes[-2]]) / sizes[-2]
            rows.append(
                {
                    "part": "partition",
                    "partition": name,
                    "documents": size,
                    "clients": num_clients,
                    "cpu_s": round(min(seconds[size]), 4),
                    "time_per_document": round(best / first, 2),  # relative to the second-largest number of documents
                }
            )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure all parts, print a line for each row and write the results."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=13, help="the number of rounds, the first of which warms up")
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS, help="the algorithms to measure")
    args = parser.parse_args(arguments)
    sizes, documents = (SMALL_SIZES, SMALL_DOCUMENTS) if args.small else (SIZES, DOCUMENTS)
    rows = list[Row]()

    def add(measured: list[Row]) -> None:
        for row in measured:
            print("  ".join(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in row.items()))
        sys.stdout.flush()
        rows.extend(measured)

    add(measure_partitions(documents, 4 if args.small else 100))
    for algorithm in (FedAvg(), Scaffold()):
        add([measure_memory(algorithm, sizes[-1], 10 if args.small else 10_000)])
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
        folder = Path(name)
        corpus = write_corpus(folder / "corpus.csv", 120 if args.small else 16_000)
        for algorithm_name in args.algorithms:
            add(measure_rounds(algorithm_name, sizes, corpus, folder, args.rounds, args.small))
    summary = {
        "measure": "user and system time of the process, in turns; the machine ran other programs",
        "most": MAX_RATIO,
        "met": all(row["ratio"] <= MAX_RATIO for row in rows if row["part"] == "rounds"),
        "most_time_per_document": MAX_GROWTH_PER_DOCUMENT,
        "partition_met": all(
            row["time_per_document"] <= MAX_GROWTH_PER_DOCUMENT
            for row in rows
            if row["part"] == "partition" and row["documents"] == documents[-1]
        ),
    }
    print(f"a round with more clients takes at most {MAX_RATIO} times as long: {'yes' if summary['met'] else 'no'}")
    print(f"the time of a partition is linear in the documents: {'yes' if summary['partition_met'] else 'no'}")
    write_rows(args.out, "growth", rows, **summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
