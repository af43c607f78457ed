#!/usr/bin/env bash
# Libraries: flwr-datasets 0.6.1, datasets 4.8.5, numpy 2.4.6.
#
# Expected: with a large alpha DirichletPartitioner gives all clients nearly the same number of samples, as the
# distribution approaches equal shares.
# What happens: it cuts each class at cumulative shares that are rounded down. So in each class the first client gets
# its share rounded down, and the last client gets what the rounding leaves. These errors have the same sign in every
# class and add up. With 1,000 classes of 9 samples and 10 clients the first client has nothing and all others 1,000;
# with 99 samples per class the first has a tenth less than each of the others. At alpha 0.5 the last client has nearly
# three times as many as the first, although the clients are exchangeable in the distribution.
# Why it matters: corpora of many small classes (topics, authors, intents, entities) are what federated text is made of.
# The skew in size looks like a draw, but it depends on the number of a client, is the same for every seed, and does not
# vanish with alpha. A first client without samples raises an error, since min_partition_size is 10 by default; with
# min_partition_size=0 it stays empty.
#
# Seen on 2026-12-01 (sizes of the first, the second and the last client, each over the seeds 0 to 4):
#     9 samples per class, alpha 1e6:   [0, 0, 0, 0, 0] [1000, 1000, 1000, 1000, 1000] [1000, 1000, 1000, 1000, 1000]
#     99 samples per class, alpha 1e6:  [9000, 9000, 9000, 9000, 9000] [10000, 10000, 10000, 10000, 10000]
#                                       [10000, 10000, 10000, 10000, 10000]
#     9 samples per class, alpha 0.5:   the last client has 2.6 to 2.9 times as many as the first
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q flwr-datasets==0.6.1 datasets==4.8.5 numpy==2.4.6
cd "$work"
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import sys

from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner

def count_samples(samples, alpha):
    sizes = []
    for seed in range(5):
        partitioner = DirichletPartitioner(10, partition_by="label", alpha=alpha, min_partition_size=0, seed=seed)
        partitioner.dataset = Dataset.from_dict({"label": [row // samples for row in range(1000 * samples)]})
        sizes.append([len(partitioner.load_partition(number)) for number in range(10)])
    return [[size[number] for size in sizes] for number in (0, 1, 9)]

few, many, skewed = count_samples(9, 1e6), count_samples(99, 1e6), count_samples(9, 0.5)
ratios = sorted(last / first for first, last in zip(skewed[0], skewed[2]))
print("9 samples per class, alpha 1e6:  ", *few)
print("99 samples per class, alpha 1e6: ", *many)
print(f"9 samples per class, alpha 0.5:   the last client has {ratios[0]:.1f} to {ratios[-1]:.1f} times as many as the first")
if few != [[0] * 5, [1000] * 5, [1000] * 5] or many != [[9000] * 5, [10000] * 5, [10000] * 5] or ratios[0] < 2:
    sys.exit("This is no longer so.")
PYTHON
