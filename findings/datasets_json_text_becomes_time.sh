#!/usr/bin/env bash
# Library: datasets 5.2.0 (with pyarrow's JSON reader).
#
# Expected: a JSON string is a string after load_dataset("json"). JSON has no other type that it could be.
# What happens: if every string of a column in the first block looks like an ISO date, the column becomes a timestamp
# and its rows are datetime objects. With one other text in the column it stays text.
# Why it matters: the type depends on which rows a client has. A client whose answers are all dates has a column of
# timestamps and the others one of strings, so the shards cannot be joined, and a tokenizer is handed datetimes (or,
# after str(), another text than the file holds). Extreme topic skew makes such shards.
#
# Seen on 2026-11-29:
#     history: ['1969-07-20', '1989-11-09'] -> timestamp[s], first row datetime.datetime(1969, 7, 20, 0, 0)
#     general: ['1969-07-20', 'a Sunday'] -> string, first row '1969-07-20'
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0
cd "$work"
export HF_HOME="$work/hf" HF_DATASETS_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import json
import pathlib
import sys

import datasets

datasets.disable_progress_bars()

def column(name, answers):
    pathlib.Path(f"{name}.jsonl").write_text("\n".join(json.dumps({"answer": each}) for each in answers))
    data = datasets.load_dataset("json", data_files=f"{name}.jsonl", split="train")
    print(f"{name}: {answers} -> {data.features['answer'].dtype}, first row {data[0]['answer']!r}")
    return data.features["answer"].dtype

dates = column("history", ["1969-07-20", "1989-11-09"])
mixed = column("general", ["1969-07-20", "a Sunday"])
if not dates.startswith("timestamp") or mixed != "string":
    sys.exit("This is no longer so.")
PYTHON
