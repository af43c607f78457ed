#!/usr/bin/env bash
# Libraries: flwr-datasets 0.6.1, datasets 4.8.5, numpy 2.4.6.
#
# Expected: ContinuousPartitioner with strictness=1 sorts the samples by the property, so that the values of different
# partitions do not overlap.
# What happens: it casts the property to float32 first. Times in seconds since 1970 are then multiples of 128 s, and
# times in milliseconds multiples of 131 s; numbers above 16,777,216 (row or user ids) lose their last digits too. All
# samples of one step are ties, which numpy's unstable sort puts in any order, so that neighbouring partitions overlap.
# Why it matters: a split by time (concept drift, earlier and later clients) is the main use of this partitioner, and
# "strict" is what a test for leakage relies on. Subtracting the first time avoids it.
#
# Seen on 2026-12-01 (600 posts, one a second, 5 partitions: first and last second of each):
#     seconds since 1970:           (0, 191) (64, 319) (193, 448) (320, 569) (449, 599)
#     milliseconds since 1970:      (0, 168) (38, 300) (172, 431) (301, 562) (433, 599)
#     seconds since the first post: (0, 119) (120, 239) (240, 359) (360, 479) (480, 599)
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q flwr-datasets==0.6.1 datasets==4.8.5 numpy==2.4.6
cd "$work"
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import random
import sys

from datasets import Dataset
from flwr_datasets.partitioner import ContinuousPartitioner

seconds = list(range(600))
random.Random(0).shuffle(seconds)

def find_ranges(start, step):
    partitioner = ContinuousPartitioner(num_partitions=5, partition_by="time", strictness=1.0)
    partitioner.dataset = Dataset.from_dict({"time": [start + step * second for second in seconds]})
    parts = [[(time - start) // step for time in partitioner.load_partition(number)["time"]] for number in range(5)]
    return [(min(part), max(part)) for part in parts]

def overlaps(ranges):
    return any(before[1] >= after[0] for before, after in zip(ranges, ranges[1:]))

found = {
    "seconds since 1970:          ": find_ranges(1_790_000_000, 1),
    "milliseconds since 1970:     ": find_ranges(1_790_000_000_000, 1000),
    "seconds since the first post:": find_ranges(0, 1),
}
for name, ranges in found.items():
    print(name, *ranges)
if [overlaps(ranges) for ranges in found.values()] != [True, True, False]:
    sys.exit("This is no longer so.")
PYTHON
