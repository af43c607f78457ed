"""How long it takes to deal and to measure: documents into clients, and the full heterogeneity report.

    make bench-partition

Prints a table and writes benchmarks/results/partition.json with the machine, the versions and the date. The pool is made
up (Zipf words, ten topics, documents of about sixty words), so that nothing has to be downloaded. Measure on a machine
that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np

import fedrift.partition as regimes
from fedrift.core.random import numpy_stream
from fedrift.data import Corpus
from fedrift.data.encoders import embed_texts
from fedrift.partition.base import rewritten_texts
from fedrift.partition.heterogeneity import measure_heterogeneity

NUM_EMBEDDED = 5000  # documents, as `fedrift partition show`
TARGETS = {"deal": 2.0, "report": 60.0}  # seconds
OUT = Path(__file__).parent / "results" / "partition.json"


def make_corpus(num_documents: int, num_topics: int = 10, mean_words: int = 60) -> Corpus:
    """Made-up documents: half of the words are their topic's, half everybody's, all with Zipf's frequencies."""
    rng = numpy_stream(0, "benchmark", num_documents)
    label = rng.integers(num_topics, size=num_documents)
    length = np.maximum(5, mean_words * np.exp(rng.normal(0, 0.5, num_documents))).astype(int)
    rank = np.minimum(rng.zipf(1.3, length.sum()), 20_000)
    own = rng.random(len(rank)) < 0.5
    spelled = [f"topic{t}word{r}" if o else f"word{r}" for t, r, o in zip(np.repeat(label, length), rank, own, strict=True)]
    ends = np.cumsum(length)
    texts = [" ".join(spelled[end - count : end]) for end, count in zip(ends, length, strict=True)]
    order = np.argsort([sha256(text.encode()).hexdigest() for text in texts])
    return Corpus(
        "made up",
        np.array(texts, dtype=object)[order],
        label[order].astype(np.int64),
        tuple(f"topic{t}" for t in range(num_topics)),
        np.array([f"source{n % 50}" for n in range(num_documents)], dtype=object),
        np.zeros(num_documents, dtype=np.int8),
        length[order].astype(np.int64),
    )


def time_partition(corpus: Corpus, name: str, num_clients: int, has_report: bool) -> dict[str, object]:
    """Seconds of one regime at severity 1; NaN for a report that was not made."""
    partitioner = getattr(regimes, name)(num_clients, 0.5 if name == "Calibrated" else 1.0)  # at 1 it has nothing to search
    start = perf_counter()
    partition = partitioner(corpus, numpy_stream(0, "partition"))
    dealt = perf_counter()
    if has_report:
        rows = np.sort(numpy_stream(0, "embedded").permutation(len(corpus))[:NUM_EMBEDDED])
        found = embed_texts(rewritten_texts(corpus.take(rows), partition, partition.document_owners(len(corpus))[rows]))
        vectors = np.full((len(corpus), found.shape[1]), np.nan)
        vectors[rows] = found
        measure_heterogeneity(corpus, partition, numpy_stream(0, "measure"), vectors=vectors)
    return {
        "regime": name,
        "documents": len(corpus),
        "clients": num_clients,
        "deal": round(dealt - start, 3),
        "report": round(perf_counter() - dealt, 2) if has_report else None,
    }


def describe_machine() -> dict[str, object]:
    """What the figures hang on."""
    packages = ("numpy", "scipy", "scikit-learn", "fedrift")
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "load": os.getloadavg()[0],
    }


def processor_name() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    """Time every regime, and the report of those asked for."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--documents", type=int, default=100_000)
    asked.add_argument("--clients", type=int, default=100)
    asked.add_argument("--reports", nargs="*", default=["TopicMix"], help="regimes whose report is timed too")
    asked.add_argument("--out", type=Path, default=OUT)
    said = asked.parse_args()
    before, corpus = describe_machine(), make_corpus(said.documents)
    print(
        f"{said.documents:,} documents of {corpus.size.sum():,} words into {said.clients} clients; "
        f"targets: deal {TARGETS['deal']:g} s, report {TARGETS['report']:g} s\n"
    )
    print(f"{'regime':<14}{'deal, s':>10}{'report, s':>12}")
    rows = []
    for name in regimes.__all__:
        row = time_partition(corpus, name, said.clients, name in said.reports)
        rows.append(row)
        print(f"{name:<14}{row['deal']:>10.2f}{'' if row['report'] is None else row['report']:>12}", flush=True)
    said.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": before, "targets": TARGETS, "rows": rows}
    said.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {said.out}")


if __name__ == "__main__":
    main()
