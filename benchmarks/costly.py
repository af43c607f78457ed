"""Take three costly looks: 10,000 clients, 1,000 rounds, a million documents.

    python benchmarks/costly.py [--cases clients language rounds documents] [--small]

- ``clients``: 10,000 clients with quadratic losses, all of which train in each of 100 rounds of SCAFFOLD, so that each has a state.
- ``language``: a run with 10,000 clients of a tiny language model, 10 of which train in each of 100 rounds of SCAFFOLD, with its stored
  run.
- ``rounds``: a run of 1,000 rounds of the tiny model, its verdict and its report.
- ``documents``: a Parquet file with a million short texts, its partition into 100 clients and the heterogeneity report.

Each case runs in its own process with one thread. Times are CPU seconds. A finished case is kept in benchmarks/results/costly.json, and
``--again`` measures it again. The texts are made up from words with Zipf's frequencies, so nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from machine import describe_machine, make_parser, write_results
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import fedrift
from fedrift.algorithms import Scaffold
from fedrift.config.runtime import Runtime, configure_malloc
from fedrift.config.schema import ExperimentConfig, parse_config
from fedrift.core.optimizers import Sgd
from fedrift.core.random import numpy_stream
from fedrift.core.tree import Tree
from fedrift.data.dataset import DatasetConfig, load_corpus
from fedrift.engine.cache import ResourceCache
from fedrift.engine.callbacks import Callback, RoundEnd
from fedrift.engine.loop import init_state, run_rounds
from fedrift.engine.run import run_experiment
from fedrift.partition import TopicMix
from fedrift.partition.base import partition_corpus
from fedrift.partition.heterogeneity import measure_heterogeneity
from fedrift.report import RunView, write_report
from fedrift.simulation import ClientSimulator
from fedrift.storage import Run

NUM_TOPICS, NUM_WORDS = 10, 2000
MB = 1e6


def resident_mb() -> float:
    """Return the resident memory of this process in megabytes."""
    return round(psutil.Process().memory_info().rss / MB, 1)


def peak_mb() -> float:
    """Return the peak resident memory of this process in megabytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MB, 1)


@contextmanager
def measured(row: dict[str, Any], name: str) -> Iterator[None]:
    """Add the CPU seconds of a block and the resident memory after it to a row."""
    start = process_time()
    yield
    row[name] = {"cpu_s": round(process_time() - start, 2), "resident_mb": resident_mb()}


def write_texts(path: Path, num_documents: int, mean_words: int) -> None:
    """Write made-up documents with a topic each to a Parquet file; half of the words of a document are specific to its topic."""
    rng = numpy_stream(0, "costly", num_documents)
    topics = rng.integers(NUM_TOPICS, size=num_documents)
    lengths = np.maximum(6, rng.poisson(mean_words, num_documents))
    ranks = np.minimum(rng.zipf(1.3, lengths.sum()), NUM_WORDS) - 1
    words = ranks + NUM_WORDS * np.where(rng.random(len(ranks)) < 0.5, 1 + np.repeat(topics, lengths), 0)
    vocabulary = np.array([f"w{number}" for number in range(NUM_WORDS * (NUM_TOPICS + 1))], dtype=object)
    spelled, ends = vocabulary[words].tolist(), np.cumsum(lengths).tolist()
    texts = [
        " ".join(spelled[end - count : end]) + f" w{number % NUM_WORDS}."
        for number, (end, count) in enumerate(zip(ends, lengths.tolist(), strict=True))
    ]
    pq.write_table(pa.table({"text": texts, "label": [f"topic{topic}" for topic in topics]}), path)


def write_model(folder: Path) -> Path:
    """Write a Llama with random weights, two blocks and a width of 32, whose tokens are the words of ``write_texts``."""
    vocabulary = {"<end>": 0, "<other>": 1, ".": 2, **{f"w{number}": 3 + number for number in range(NUM_WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<other>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=64, bos_token_id=0, eos_token_id=0, **shape)
    ).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>", unk_token="<other>").save_pretrained(folder)
    return folder


def folder_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file in a folder, by its path."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


class Snapshots(Callback):
    """Note CPU seconds, memory and bytes on disk every few rounds."""

    def __init__(self, interval: int) -> None:
        self.interval, self.rows = interval, list[dict[str, Any]]()

    def on_round_end(self, event: RoundEnd) -> None:
        """Note them after each ``interval`` rounds."""
        if event.round == 1 or event.round % self.interval == 0:
            self.rows.append(
                {
                    "round": event.round,
                    "cpu_s": round(process_time(), 2),
                    "resident_mb": resident_mb(),
                    "run_mb": round(sum(folder_bytes(event.run.folder).values()) / MB, 3),
                }
            )


def train(config: ExperimentConfig, folder: Path, interval: int) -> tuple[Run, list[dict[str, Any]]]:
    """Run an experiment; return it with its snapshots."""
    snapshots = Snapshots(interval)
    resources = ResourceCache(Runtime(runs_dir=folder / "runs", cache_dir=folder / "cache", device="cpu", threads=1))
    return run_experiment(config, resources, callbacks=[snapshots]), snapshots.rows


def tiny_config(folder: Path, num_documents: int, **training: Any) -> dict[str, Any]:
    """Write texts and model, and return the experiment that all looks share."""
    write_texts(folder / "texts.parquet", num_documents, 24)
    return {
        "dataset": str(folder / "texts.parquet"),
        "model": str(write_model(folder / "model")),
        "trainable": {"type": "Lora", "r": 2},
        "training": {"local_steps": 2, "batch_size": 2, "max_seq_length": 16, "client_optimizer": {"type": "Sgd", "lr": 0.1}, **training},
        "evaluation": {"blocks_per_domain": 2, "final_blocks_per_domain": 2, "blocks_per_client": 0},
    }


def look_at_clients(folder: Path, small: bool) -> dict[str, Any]:
    """Train 10,000 clients with quadratic losses, all in every round."""
    num_clients, num_rounds, width = (100, 10, 64) if small else (10_000, 100, 64)
    rng = numpy_stream(0, "costly", "clients")
    curvature = torch.from_numpy(rng.uniform(1, 4, (num_clients, width)).astype(np.float32))
    minimum = torch.from_numpy(rng.normal(0, 1, (num_clients, width)).astype(np.float32))

    def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
        return (batch["a"] / 2 * (params["x"] - batch["b"]) ** 2).sum(1)

    def batches(round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        return ({"a": curvature[cohort], "b": minimum[cohort]} for _ in range(5))

    simulator = ClientSimulator(num_clients, loss, batches, Sgd(0.1))
    before, rows = resident_mb(), []
    state = init_state(Scaffold(), Tree(x=torch.full((1, width), 5.0)), simulator.size)
    for result in run_rounds(state, simulator, Scaffold(), num_rounds=num_rounds, cohort_size=num_clients, seed=0):
        if result.after.round == 1 or result.after.round % (num_rounds // 10) == 0:
            rows.append({"round": result.after.round, "cpu_s": round(process_time(), 2), "resident_mb": resident_mb()})
        final = result.after.server.params["x"][0]
    optimum = (curvature * minimum).sum(0) / curvature.sum(0)
    error = (final - optimum).abs().max().item()
    return {"clients": num_clients, "rounds": num_rounds, "width": width, "resident_before_mb": before, "error": error, "snapshots": rows}


def look_at_language(folder: Path, small: bool) -> dict[str, Any]:
    """Run 10,000 clients of a tiny language model, 10 per round."""
    num_clients, num_rounds = (50, 10) if small else (10_000, 100)
    raw = tiny_config(folder, max(500, 3 * num_clients), num_rounds=num_rounds, num_clients_per_round=10, client_weighting="uniform")
    raw |= {"partition": {"type": "TopicMix", "num_clients": num_clients, "severity": 0.5}, "algorithm": "Scaffold"}
    raw["evaluation"]["interval"] = num_rounds // 10
    run, rows = train(parse_config(raw), folder, num_rounds // 10)
    return {
        "clients": num_clients,
        "rounds": num_rounds,
        "snapshots": rows,
        "files": folder_bytes(run.folder),
        **look_at_outputs(run, folder),
    }


def look_at_rounds(folder: Path, small: bool) -> dict[str, Any]:
    """Run 1,000 rounds of the tiny model."""
    num_rounds = 50 if small else 1000
    raw = tiny_config(folder, 500, num_rounds=num_rounds, num_clients_per_round=3)
    raw |= {"partition": {"type": "TopicMix", "num_clients": 5, "severity": 1.0}, "algorithm": "FedAvg"}
    run, rows = train(parse_config(raw), folder, num_rounds // 10)
    return {"clients": 5, "rounds": num_rounds, "snapshots": rows, "files": folder_bytes(run.folder), **look_at_outputs(run, folder)}


def look_at_outputs(run: Run, folder: Path) -> dict[str, Any]:
    """Diagnose a run and write its report."""
    row: dict[str, Any] = {}
    with measured(row, "trajectory"):
        trajectory = run.trajectory()
    with measured(row, "diagnose"):
        fedrift.diagnose(run)
    with measured(row, "report"):
        page = write_report([RunView(run.id, run.config, trajectory, None, run.status, run.environment)], folder / "page")
    return {**row, "report_mb": round(page.stat().st_size / MB, 2), "records": len(trajectory.records)}


def look_at_documents(folder: Path, small: bool) -> dict[str, Any]:
    """Load a million documents, partition them and measure the partition."""
    num_documents, num_clients = (2000, 10) if small else (1_000_000, 100)
    row: dict[str, Any] = {"documents": num_documents, "clients": num_clients}
    with measured(row, "write"):
        write_texts(folder / "texts.parquet", num_documents, 12)
    row["file_mb"] = round((folder / "texts.parquet").stat().st_size / MB, 1)
    with measured(row, "load"):
        corpus = load_corpus(DatasetConfig(str(folder / "texts.parquet")), cache_dir=folder / "cache")
    row["loaded"], row["dropped"], row["words"] = len(corpus), dict(corpus.drop_counts), int(corpus.size.sum())
    with measured(row, "fingerprint"):
        corpus.fingerprint  # noqa: B018
    with measured(row, "partition"):
        partition = partition_corpus(TopicMix(num_clients, severity=0.9), corpus.train, lambda: numpy_stream(0, "partition"))
    with measured(row, "heterogeneity"):
        report = measure_heterogeneity(corpus.train, partition, numpy_stream(0, "heterogeneity"))
    row["label.jsd"] = report["label.jsd"].value
    return row


CASES: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "clients": look_at_clients,
    "language": look_at_language,
    "rounds": look_at_rounds,
    "documents": look_at_documents,
}


def measure_case(name: str, small: bool) -> dict[str, Any]:
    """Measure one case in this process."""
    configure_malloc()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fedrift-costly-") as folder:
        row = CASES[name](Path(folder), small)
    return {**row, "cpu_s": round(process_time(), 1), "peak_mb": peak_mb(), "machine": describe_machine(torch.device("cpu"))}


def main() -> None:
    """Measure the requested cases, each in a process of its own, and keep each result."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="the cases to measure")
    parser.add_argument("--again", action="store_true", help="measure cases again that are in the results already")
    parser.add_argument("--one", choices=list(CASES), help="measure one case in this process and print it as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_case(args.one, args.small)))
        return
    path = args.out / "costly.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in args.cases:
        if name in results and not args.again:
            print(f"{name}: measured already")
            continue
        command = [sys.executable, __file__, "--one", name, *(["--small"] if args.small else [])]
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=variables)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        write_results(args.out, "costly", results)
        print(f"{name}: {results[name]['cpu_s']} CPU seconds, peak {results[name]['peak_mb']} MB", flush=True)


if __name__ == "__main__":
    main()
