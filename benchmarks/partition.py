"""Measure how long it takes to partition documents, and to compute the full heterogeneity report.

    make bench-partition

The script prints a table and writes benchmarks/results/partition.json with the machine, the versions and the date. The documents
are synthetic (Zipf-distributed words, ten topics, about sixty words per document), so nothing is downloaded. Use an idle machine.
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

import fedrift.partition as partitions
from fedrift.core.random import numpy_stream
from fedrift.data import Corpus
from fedrift.data.encoders import embed_texts
from fedrift.partition.base import rewritten_texts
from fedrift.partition.heterogeneity import measure_heterogeneity

NUM_EMBEDDED = 5000  # documents, as in `fedrift partition show`
TARGETS = {"partition": 2.0, "report": 60.0}  # seconds
OUT = Path(__file__).parent / "results" / "partition.json"


def make_corpus(num_documents: int, num_topics: int = 10, mean_words: int = 60) -> Corpus:
    """Create synthetic documents: half of their words are specific to a topic, half are common, and all follow a Zipf distribution."""
    rng = numpy_stream(0, "benchmark", num_documents)
    labels = rng.integers(num_topics, size=num_documents)
    lengths = np.maximum(5, mean_words * np.exp(rng.normal(0, 0.5, num_documents))).astype(int)
    ranks = np.minimum(rng.zipf(1.3, lengths.sum()), 20_000)
    is_topic_word = rng.random(len(ranks)) < 0.5
    words = [
        f"topic{t}word{r}" if is_topic else f"word{r}"
        for t, r, is_topic in zip(np.repeat(labels, lengths), ranks, is_topic_word, strict=True)
    ]
    ends = np.cumsum(lengths)
    texts = [" ".join(words[end - count : end]) for end, count in zip(ends, lengths, strict=True)]
    order = np.argsort([sha256(text.encode()).hexdigest() for text in texts])
    return Corpus(
        "made up",
        np.array(texts, dtype=object)[order],
        labels[order].astype(np.int64),
        tuple(f"topic{t}" for t in range(num_topics)),
        np.array([f"source{n % 50}" for n in range(num_documents)], dtype=object),
        np.zeros(num_documents, dtype=np.int8),
        lengths[order].astype(np.int64),
    )


def time_partition(corpus: Corpus, name: str, num_clients: int, has_report: bool) -> dict[str, object]:
    """Time one partition at severity 1, and its report if requested; return a row of the table."""
    partitioner = getattr(partitions, name)(num_clients, 0.5 if name == "Calibrated" else 1.0)  # severity 1 would need no search
    start = perf_counter()
    partition = partitioner(corpus, numpy_stream(0, "partition"))
    partitioned = perf_counter()
    if has_report:
        rows = np.sort(numpy_stream(0, "embedded").permutation(len(corpus))[:NUM_EMBEDDED])
        embedded = embed_texts(rewritten_texts(corpus.take(rows), partition, partition.document_owners(len(corpus))[rows]))
        vectors = np.full((len(corpus), embedded.shape[1]), np.nan)
        vectors[rows] = embedded
        measure_heterogeneity(corpus, partition, numpy_stream(0, "measure"), vectors=vectors)
    return {
        "type": name,
        "documents": len(corpus),
        "clients": num_clients,
        "partition": round(partitioned - start, 3),
        "report": round(perf_counter() - partitioned, 2) if has_report else None,
    }


def describe_machine() -> dict[str, object]:
    """Return the properties of the machine that affect the times."""
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
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    """Time every partition, and the report of the selected ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000, help="the number of documents")
    parser.add_argument("--clients", type=int, default=100, help="the number of clients")
    parser.add_argument("--reports", nargs="*", default=["TopicMix"], help="the partitions whose report is timed too")
    parser.add_argument("--out", type=Path, default=OUT, help="the results file")
    args = parser.parse_args()
    machine, corpus = describe_machine(), make_corpus(args.documents)
    print(
        f"{args.documents:,} documents of {corpus.size.sum():,} words into {args.clients} clients; "
        f"targets: partition {TARGETS['partition']:g} s, report {TARGETS['report']:g} s\n"
    )
    print(f"{'type':<14}{'partition, s':>14}{'report, s':>12}")
    rows = []
    for name in partitions.__all__:
        row = time_partition(corpus, name, args.clients, name in args.reports)
        rows.append(row)
        print(f"{name:<14}{row['partition']:>14.2f}{'' if row['report'] is None else row['report']:>12}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "targets": TARGETS, "rows": rows}
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
