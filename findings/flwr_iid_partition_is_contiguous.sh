#!/usr/bin/env bash
# Libraries: flwr-datasets 0.6.0, datasets 4.8.5.
#
# Expected: IidPartitioner draws each partition at random from the dataset, as its documentation says.
# What happens: it cuts the rows into contiguous parts, in the order of the dataset. FederatedDataset shuffles before
# it partitions (shuffle=True), so it is IID there. A partitioner that is given a dataset directly, which is the way
# for local data, or FederatedDataset(shuffle=False), does not shuffle: if the rows are sorted by class, every
# partition has one class.
# Why it matters: the partition called IID is the control of every study of heterogeneity. Here it is the most
# heterogeneous partition that exists, and DirichletPartitioner with a small alpha is closer to IID. Corpora are often
# sorted: a folder per class, or one source after another. ds.shuffle(seed=...) before the partition avoids it.
#
# Seen on 2026-11-30:
#     IidPartitioner, sorted rows:      classes per partition [1, 1, 1, 1, 1], first rows [0, 200, 400, 600, 800]
#     the same, rows shuffled before:   classes per partition [5, 5, 5, 5, 5]
#     DirichletPartitioner, alpha 0.1:  classes per partition [3, 5, 4, 2, 5]
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q flwr-datasets==0.6.0 datasets==4.8.5 numpy==2.4.6
cd "$work"
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import sys

from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

def partitions(partitioner, dataset):
    partitioner.dataset = dataset
    return [partitioner.load_partition(number) for number in range(5)]

def count_classes(parts):
    return [len(set(part["label"])) for part in parts]

rows = Dataset.from_dict({"row": list(range(1000)), "label": [row // 200 for row in range(1000)]})
sorted_parts = partitions(IidPartitioner(num_partitions=5), rows)
firsts = [part["row"][0] for part in sorted_parts]
shuffled = count_classes(partitions(IidPartitioner(num_partitions=5), rows.shuffle(seed=7)))
dirichlet = count_classes(partitions(DirichletPartitioner(num_partitions=5, partition_by="label", alpha=0.1), rows))
print(f"IidPartitioner, sorted rows:      classes per partition {count_classes(sorted_parts)}, first rows {firsts}")
print(f"the same, rows shuffled before:   classes per partition {shuffled}")
print(f"DirichletPartitioner, alpha 0.1:  classes per partition {dirichlet}")
if count_classes(sorted_parts) != [1] * 5 or firsts != [0, 200, 400, 600, 800] or shuffled != [5] * 5 or max(dirichlet) < 2:
    sys.exit("This is no longer so.")
PYTHON
