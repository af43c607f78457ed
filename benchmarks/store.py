"""Measure how long SQL queries over many synthetic runs take: ``python benchmarks/store.py [runs] [rounds] [clients]``.

A first query is not timed, because it also creates missing Parquet files. Nothing is trained.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedrift.storage import query_frame

METRICS = ("loss", "loss.before", "loss.after", "update.norm", "update.cosine", "train.loss", "weight", "failed")
DOMAINS = ("", "business", "entertainment", "politics", "sport", "tech")
QUERIES = {
    "final loss by algorithm and severity": 'SELECT algorithm, "partition.severity", avg(final_loss) FROM runs GROUP BY ALL',
    "loss curves, mean over seeds": """SELECT algorithm, "partition.severity", round, avg(value)
        FROM records JOIN runs USING (run) WHERE metric = 'loss' AND domain = '' AND client = -1 GROUP BY ALL""",
    "worst client of the last round": """SELECT algorithm, max(value) FROM records JOIN runs USING (run)
        WHERE metric = 'loss' AND client >= 0 AND round = 100 GROUP BY ALL""",
    "every number once": "SELECT metric, count(*), avg(value) FROM records GROUP BY ALL",
}


def make_runs(root: Path, num_runs: int, num_rounds: int, num_clients: int) -> int:
    """Write runs with metrics of every client in every round, and return the total number of rows."""
    draw = np.random.default_rng(0)
    keys = [(round, metric, "", client) for round in range(1, num_rounds + 1) for metric in METRICS for client in range(num_clients)]
    keys += [(round, "loss", domain, -1) for round in range(num_rounds + 1) for domain in DOMAINS]
    keys.sort(key=lambda key: key[0])
    strings = pa.dictionary(pa.int32(), pa.string())
    columns = {
        "round": pa.array([key[0] for key in keys], pa.int32()),
        "metric": pa.array([key[1] for key in keys]).cast(strings),
        "domain": pa.array([key[2] for key in keys]).cast(strings),
        "client": pa.array([key[3] for key in keys], pa.int32()),
    }
    for number in range(num_runs):
        folder = root / f"{number:012x}"
        folder.mkdir(parents=True)
        config = {
            "dataset": {"name": "bbc"},
            "model": "pocket",
            "algorithm": {"type": ("FedAvg", "FedProx", "Scaffold")[number % 3]},
            "partition": {"type": "TopicMix", "num_clients": num_clients, "severity": (0.0, 0.5, 1.0)[number // 3 % 3]},
            "training": {"num_rounds": num_rounds, "client_optimizer": {"type": "Sgd", "lr": 1.0}},
            "seed": number // 9,
            "id": folder.name,
        }
        (folder / "experiment.json").write_text(json.dumps(config))
        (folder / "finished.json").write_text(
            json.dumps(
                {"rounds": num_rounds, "loss": 4.0, "final_loss": float(draw.normal(4)), "train_tokens": 1e6, "seconds": {"train": 9.0}}
            )
        )
        table = pa.table({"run": pa.array([folder.name] * len(keys)).cast(strings), **columns, "value": draw.normal(4, 1, len(keys))})
        pq.write_table(table, folder / "records.parquet", compression="zstd")
    return num_runs * len(keys)


def main(num_runs: int = 500, num_rounds: int = 100, num_clients: int = 20) -> None:
    """Create a store of runs and time the queries."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = make_runs(root, num_runs, num_rounds, num_clients)
        size = sum(path.stat().st_size for path in root.rglob("*.parquet"))
        print(f"{num_runs} runs, {rows:,} rows, {size / 1e6:.0f} MB of Parquet")
        query_frame(root, "SELECT 1")
        for name, sql in QUERIES.items():
            start = perf_counter()
            result = query_frame(root, sql)
            print(f"{perf_counter() - start:6.2f} s  {name} ({len(result)} rows)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
