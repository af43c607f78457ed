#!/usr/bin/env bash
# Libraries: datasets 5.2.0, numpy 2.4.6.
#
# Expected: with_format("numpy") gives a column in its own type: float64 as float64, whole numbers as whole numbers.
# What happens: a column of float64 comes as float32, while one row of the same data set comes as float64. A column of
# whole numbers with one missing value becomes float32 as well, and numbers above 2**24 become other numbers.
# Why it matters: ids of documents and clients, weights and stored log-probabilities pass through this format. An id
# that is rounded to its neighbour's deals a document to the wrong client, and losses averaged from it differ from those
# of a row-by-row loop.
#
# Seen on 2026-11-29:
#     features: loss float64, id int64
#     loss as a column: float32, first value 0.10000000149011612
#     loss of one row:  float64, value 0.1
#     id as a column:   float32, first value 16777216 (16777217 was stored)
#     id of one row:    int64, value 16777217
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0 numpy==2.4.6
cd "$work"
export HF_HOME="$work/hf" HF_DATASETS_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import sys

from datasets import Dataset

data = Dataset.from_dict({"loss": [0.1, 0.2], "id": [16777217, None]}).with_format("numpy")
batch, row = data[:], data[0]
print(f"features: loss {data.features['loss'].dtype}, id {data.features['id'].dtype}")
print(f"loss as a column: {batch['loss'].dtype}, first value {float(batch['loss'][0])!r}")
print(f"loss of one row:  {row['loss'].dtype}, value {float(row['loss'])!r}")
print(f"id as a column:   {batch['id'].dtype}, first value {int(batch['id'][0])} (16777217 was stored)")
print(f"id of one row:    {row['id'].dtype}, value {int(row['id'])}")
if str(batch["loss"].dtype) != "float32" or str(row["loss"].dtype) != "float64" or int(batch["id"][0]) != 16777216:
    sys.exit("This is no longer so.")
PYTHON
