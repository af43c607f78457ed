#!/usr/bin/env bash
# Library: datasets 5.2.0.
#
# Expected: Dataset.map runs again when the function has changed, since its cache is keyed by a hash of the function.
# What happens: the hash covers the function's own code, and of a helper that it calls from another module the name
# alone. After an edit of the helper the next process gets the result of the old helper from the cache, without a
# warning.
# Why it matters: cleaning, packing and splitting by client live in a module of the project, and the call is a small
# lambda in a script. A corrected cleaning step has no effect, or one site of a federation trains on the old text and
# another on the new one.
#
# Seen on 2026-11-29:
#     helper returns text.lower()          main.py prints: hello there
#     helper returns text.upper() + ' now' main.py prints: hello there
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0
cd "$work"
export HF_HOME="$work/hf" HF_DATASETS_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import pathlib
import subprocess
import sys

pathlib.Path("x.jsonl").write_text('{"text": "Hello There"}\n')
pathlib.Path("main.py").write_text('''
import datasets
import helper

datasets.disable_progress_bars()
data = datasets.load_dataset("json", data_files="x.jsonl", split="train")
print(data.map(lambda row: {"text": helper.clean(row["text"])})[0]["text"])
''')
seen = []
for code in ("text.lower()", "text.upper() + ' now'"):
    pathlib.Path("helper.py").write_text(f"def clean(text):\n    return {code}\n")
    seen.append(subprocess.run([sys.executable, "-B", "main.py"], capture_output=True, text=True, check=True).stdout.strip())
    print(f"helper returns {code:<21} main.py prints: {seen[-1]}")
if seen != ["hello there", "hello there"]:
    sys.exit("This is no longer so.")
PYTHON
