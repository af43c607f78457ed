"""Measure how long a report on many synthetic runs takes: ``python benchmarks/report.py [runs] [rounds] [clients]``.

Nothing is trained: the records of the runs are noise, and their folder is temporary. The study has three algorithms, three kinds of
skew, two severities and IID baselines over paired seeds. The targets are a page in less than 60 seconds and 5 MB, and queries in less
than one second.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedrift.report.study_data import load_study_data
from fedrift.report.study_report import write_study_report
from fedrift.studies import ManifestEntry, StudyManifest, parse_study

OUT = Path(__file__).with_name("results") / "report.json"
METRICS = ("loss", "loss.before", "loss.after", "update.norm", "update.cosine", "train.loss", "weight", "failed")
OVERALL = ("update.consensus", "update.pairwise", "adapters.error.update", "cost.up", "cost.down")
DOMAINS = ("business", "entertainment", "politics", "sport", "tech")
ALGORITHMS, PARTITIONS = ("FedAvg", "FedProx", "Scaffold"), ("TopicMix", "Style", "TokenTilt")
SEVERITIES = (0.5, 1.0)
RUNS_PER_SEED = len(ALGORITHMS) * len(PARTITIONS) * (len(SEVERITIES) + 1)  # runs per seed, including IID baselines


def make_study(root: Path, num_runs: int, num_rounds: int, num_clients: int) -> StudyManifest:
    """Write a finished study with at least ``num_runs`` runs, and return its manifest."""
    keys = [(round, metric, "", client) for round in range(1, num_rounds + 1) for metric in METRICS for client in range(num_clients)]
    keys += [(round, "loss", domain, -1) for round in range(num_rounds + 1) for domain in ("", *DOMAINS)]
    keys += [(round, metric, "", -1) for round in range(1, num_rounds + 1) for metric in OVERALL]
    keys.sort(key=lambda key: key[0])
    strings = pa.dictionary(pa.int32(), pa.string())
    columns = {
        "round": pa.array([key[0] for key in keys], pa.int32()),
        "metric": pa.array([key[1] for key in keys]).cast(strings),
        "domain": pa.array([key[2] for key in keys]).cast(strings),
        "client": pa.array([key[3] for key in keys], pa.int32()),
    }
    draw, entries, baselines = np.random.default_rng(0), [], []
    seeds = -(-num_runs // RUNS_PER_SEED)

    def write_run(algorithm: str, partition: str, severity: float, seed: int) -> str:
        run_id = f"{len(entries) + len(baselines) + 1:012x}"
        folder = root / run_id
        folder.mkdir(parents=True)
        tokens = (np.eye(num_clients, len(DOMAINS)) * severity + 0.1) * 1e4
        (folder / "experiment.json").write_text(
            json.dumps(
                {
                    "dataset": {"name": "bbc"},
                    "model": "pocket",
                    "trainable": {"type": "Lora", "r": 8},
                    "algorithm": {"type": algorithm},
                    "partition": {"type": partition, "num_clients": num_clients, "severity": severity},
                    "seed": seed,
                    "clustering": {"type": "NoClustering"},
                    "training": {
                        "num_rounds": num_rounds,
                        "participation_rate": 0.5,
                        "local_steps": 10,
                        "batch_size": 4,
                        "max_seq_length": 64,
                        "max_grad_norm": 1.0,
                        "client_weighting": "uniform",
                        "client_optimizer": {"type": "Sgd", "lr": 1.0},
                    },
                    "evaluation": {"split": "test", "interval": 1, "blocks_per_domain": 4, "final_blocks_per_domain": 20},
                    "id": run_id,
                    "partition_table": {"domains": DOMAINS, "tokens": tokens.round().tolist()},
                }
            )
        )
        (folder / "finished.json").write_text(
            json.dumps(
                {"rounds": num_rounds, "loss": 4.0, "final_loss": 4.0, "train_tokens": 1e6, "seconds": {"train": 9.0, "evaluate": 2.0}}
            )
        )
        table = pa.table({"run": pa.array([run_id] * len(keys)).cast(strings), **columns, "value": draw.normal(4, 0.1, len(keys))})
        pq.write_table(table, folder / "records.parquet", compression="zstd")
        return run_id

    for seed in range(seeds):
        for algorithm in ALGORITHMS:
            for partition in PARTITIONS:
                iid = write_run(algorithm, partition, 0.0, seed)
                levels = {"algorithm": algorithm, "partition": partition}
                baselines.append(
                    ManifestEntry(
                        iid,
                        "iid_baseline",
                        "main",
                        f"{algorithm}, {partition}",
                        seed,
                        True,
                        "",
                        {**levels, "partition.severity": 0.0},
                        None,
                        "",
                    )
                )
                for severity in SEVERITIES:
                    run_levels = {**levels, "partition.severity": severity}
                    condition = ", ".join(f"{key}={value}" for key, value in run_levels.items())
                    entries.append(
                        ManifestEntry(
                            write_run(algorithm, partition, severity, seed),
                            "run",
                            "main",
                            condition,
                            seed,
                            False,
                            iid,
                            run_levels,
                            None,
                            condition,
                        )
                    )
    study_config = {
        "name": "bench",
        "question": "How long does a report take?",
        "base": {},
        "seeds": seeds,
        "factors": {"algorithm": list(ALGORITHMS), "partition.type": list(PARTITIONS), "partition.severity": list(SEVERITIES)},
        "hypotheses": [
            {"type": "Greater", "name": "H1", "metric": "loss", "contrast": "iid_baseline", "group": {"partition.severity": 1.0}}
        ],
    }
    manifest = StudyManifest(root, "bench")
    manifest.write(
        {
            "study": parse_study(study_config).to_dict(),
            "factors": ["algorithm", "partition", "partition.severity"],
            "complete": True,
            "designs": {"main": {"cells": len(ALGORITHMS) * len(PARTITIONS) * len(SEVERITIES), "aliases": []}},
            "tuning_results": [],
            "runs": [*entries, *baselines],
        }
    )
    return manifest


def main(num_runs: int = 500, num_rounds: int = 100, num_clients: int = 20) -> None:
    """Time a report and its queries, print the results and write them."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_study(Path(folder) / "runs", num_runs, num_rounds, num_clients)
        total_runs = len(manifest.read()["runs"])
        print(f"{total_runs} runs x {num_rounds} rounds x {num_clients} clients")
        results: dict[str, object] = {
            "runs": total_runs,
            "rounds": num_rounds,
            "clients": num_clients,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
        start, cpu_start = perf_counter(), process_time()
        page, *_ = write_study_report(manifest, Path(folder) / "out")
        results["page_seconds"], results["page_bytes"] = perf_counter() - start, page.stat().st_size
        results["page_processor_seconds"] = process_time() - cpu_start
        start = perf_counter()
        write_study_report(manifest, Path(folder) / "out", html=False, pdf=True, latex=True)
        results["paper_and_tables_seconds"] = perf_counter() - start
        data = load_study_data(manifest)
        start = perf_counter()
        data.connection  # noqa: B018
        results["thinning_seconds"] = perf_counter() - start
        start = perf_counter()
        data.mean_curves("loss")
        results["curve_query_seconds"] = perf_counter() - start
        start = perf_counter()
        data.gap_curves("loss")
        results["gap_query_seconds"] = perf_counter() - start
        for name, value in results.items():
            print(f"{name:26} {value:,.2f}" if isinstance(value, float) else f"{name:26} {value}")
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
