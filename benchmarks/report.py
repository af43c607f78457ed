"""A report of many synthetic runs, and how long it takes: ``python benchmarks/report.py [runs] [rounds] [clients]``.

Nothing is trained: runs are rows of noise, as ``benchmarks/store.py`` makes them, in a folder that goes again. Three
algorithms in three regimes at two severities with their IID twins over paired seeds. Wanted: a page in under 60 seconds and
under 5 MB, and queries in under a second.
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
RUNS_PER_SEED = len(ALGORITHMS) * len(PARTITIONS) * (len(SEVERITIES) + 1)  # runs a seed, twins among them


def make_study(root: Path, num_runs: int, num_rounds: int, num_clients: int) -> StudyManifest:
    """A finished study of at least so many runs."""
    keys = [(round, metric, "", client) for round in range(1, num_rounds + 1) for metric in METRICS for client in range(num_clients)]
    keys += [(round, "loss", domain, -1) for round in range(num_rounds + 1) for domain in ("", *DOMAINS)]
    keys += [(round, metric, "", -1) for round in range(1, num_rounds + 1) for metric in OVERALL]
    keys.sort(key=lambda key: key[0])
    names = pa.dictionary(pa.int32(), pa.string())
    fixed = {
        "round": pa.array([key[0] for key in keys], pa.int32()),
        "metric": pa.array([key[1] for key in keys]).cast(names),
        "domain": pa.array([key[2] for key in keys]).cast(names),
        "client": pa.array([key[3] for key in keys], pa.int32()),
    }
    draw, entries, twins = np.random.default_rng(0), [], []
    seeds = -(-num_runs // RUNS_PER_SEED)

    def run(algorithm: str, regime: str, severity: float, seed: int) -> str:
        id = f"{len(entries) + len(twins) + 1:012x}"
        folder = root / id
        folder.mkdir(parents=True)
        tokens = (np.eye(num_clients, len(DOMAINS)) * severity + 0.1) * 1e4
        (folder / "experiment.json").write_text(
            json.dumps(
                {
                    "dataset": {"name": "bbc"},
                    "model": "pocket",
                    "trainable": {"type": "Lora", "r": 8},
                    "algorithm": {"type": algorithm},
                    "partition": {"type": regime, "num_clients": num_clients, "severity": severity},
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
                    "id": id,
                    "partition_table": {"domains": DOMAINS, "tokens": tokens.round().tolist()},
                }
            )
        )
        (folder / "finished.json").write_text(
            json.dumps(
                {"rounds": num_rounds, "loss": 4.0, "final_loss": 4.0, "train_tokens": 1e6, "seconds": {"train": 9.0, "evaluate": 2.0}}
            )
        )
        table = pa.table({"run": pa.array([id] * len(keys)).cast(names), **fixed, "value": draw.normal(4, 0.1, len(keys))})
        pq.write_table(table, folder / "records.parquet", compression="zstd")
        return id

    for seed in range(seeds):
        for algorithm in ALGORITHMS:
            for regime in PARTITIONS:
                iid = run(algorithm, regime, 0.0, seed)
                levels = {"algorithm": algorithm, "partition": regime}
                twins.append(
                    ManifestEntry(
                        iid,
                        "iid_baseline",
                        "main",
                        f"{algorithm}, {regime}",
                        seed,
                        True,
                        "",
                        {**levels, "partition.severity": 0.0},
                        None,
                        "",
                    )
                )
                for severity in SEVERITIES:
                    own = {**levels, "partition.severity": severity}
                    arm = ", ".join(f"{key}={value}" for key, value in own.items())
                    entries.append(
                        ManifestEntry(run(algorithm, regime, severity, seed), "run", "main", arm, seed, False, iid, own, None, arm)
                    )
    said = {
        "name": "bench",
        "question": "How long does a report take?",
        "base": {},
        "seeds": seeds,
        "factors": {"algorithm": list(ALGORITHMS), "partition.type": list(PARTITIONS), "partition.severity": list(SEVERITIES)},
        "hypotheses": [
            {"type": "Greater", "name": "H1", "metric": "loss", "contrast": "iid_baseline", "group": {"partition.severity": 1.0}}
        ],
    }
    book = StudyManifest(root, "bench")
    book.write(
        {
            "study": parse_study(said).to_dict(),
            "factors": ["algorithm", "partition", "partition.severity"],
            "complete": True,
            "designs": {"main": {"cells": len(ALGORITHMS) * len(PARTITIONS) * len(SEVERITIES), "aliases": []}},
            "choices": [],
            "runs": [*entries, *twins],
        }
    )
    return book


def main(num_runs: int = 500, num_rounds: int = 100, num_clients: int = 20) -> None:
    with tempfile.TemporaryDirectory() as folder:
        book = make_study(Path(folder) / "runs", num_runs, num_rounds, num_clients)
        every = len(book.read()["runs"])
        print(f"{every} runs x {num_rounds} rounds x {num_clients} clients")
        found: dict[str, object] = {
            "runs": every,
            "rounds": num_rounds,
            "clients": num_clients,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
        begun, used = perf_counter(), process_time()
        page, *_ = write_study_report(book, Path(folder) / "out")
        found["page_seconds"], found["page_bytes"] = perf_counter() - begun, page.stat().st_size
        found["page_processor_seconds"] = process_time() - used
        begun = perf_counter()
        write_study_report(book, Path(folder) / "out", html=False, pdf=True, latex=True)
        found["paper_and_tables_seconds"] = perf_counter() - begun
        dossier = load_study_data(book)
        begun = perf_counter()
        dossier.connection  # noqa: B018
        found["thinning_seconds"] = perf_counter() - begun
        begun = perf_counter()
        dossier.mean_curves("loss")
        found["curve_query_seconds"] = perf_counter() - begun
        begun = perf_counter()
        dossier.gap_curves("loss")
        found["gap_query_seconds"] = perf_counter() - begun
        for name, value in found.items():
            print(f"{name:26} {value:,.2f}" if isinstance(value, float) else f"{name:26} {value}")
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
