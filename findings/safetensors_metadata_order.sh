#!/usr/bin/env bash
# Libraries: safetensors 0.8.0, numpy 2.4.6.
#
# Expected: the same tensors with the same metadata give the same file, because a safetensors file holds no time and no
# path.
# What happens: the two keys of the metadata are written in an order that is drawn anew for each file. The same call
# gives two different byte sequences, within one process and between processes.
# Why it matters: a federation that names an adapter by the hash of its file, caches it by that hash, or compares hashes
# to see whether two sites hold the same weights, sees differences where none are. With one key there is one order only.
#
# Seen on 2026-11-29:
#     two keys: 64 equal calls wrote 2 different files
#     one key:  64 equal calls wrote 1 file
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import hashlib
import sys

import numpy as np
from safetensors.numpy import load, save

def digests(metadata):
    told = [save({"lora_A": np.zeros((2, 3), np.float32)}, metadata=metadata) for _ in range(64)]
    assert all((load(each)["lora_A"] == 0).all() for each in told)
    return {hashlib.sha256(each).hexdigest() for each in told}

two = len(digests({"format": "pt", "round": "7"}))
one = len(digests({"format": "pt"}))
print(f"two keys: 64 equal calls wrote {two} different files")
print(f"one key:  64 equal calls wrote {one} file")
if two == 1 or one != 1:
    sys.exit("This is no longer so.")
PYTHON
