#!/usr/bin/env bash
# Libraries: gguf 0.19.0, numpy 2.4.6.
#
# Expected: GGUFReader gives back the shape that GGUFWriter was handed, and a tensor's .shape is the shape of its .data.
# What happens: .shape is the reverse of what was written, and .data has the shape that was written. For one tensor in
# one object the two disagree: (2, 3) was written, .shape is [3, 2], .data.shape is (2, 3).
# Why it matters: code that loads a quantised base for LoRA checks shapes by .shape and copies .data. For square
# matrices (q and o projections of many models) nothing is seen, and a "fix" by reshape(.shape) scrambles the weights of
# the others without an error.
#
# Seen on 2026-11-29:
#     written (2, 3), .shape [3, 2], .data.shape (2, 3)
#     .data equals what was written: True
#     .data.reshape(.shape) equals its transpose: False
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q gguf==0.19.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
from gguf import GGUFReader, GGUFWriter

written = np.arange(6, dtype=np.float32).reshape(2, 3)
writer = GGUFWriter("model.gguf", "llama")
writer.add_tensor("blk.0.ffn_up.weight", written)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
tensor = GGUFReader("model.gguf").tensors[0]
print(f"written {written.shape}, .shape {tensor.shape.tolist()}, .data.shape {tensor.data.shape}")
print(f".data equals what was written: {bool((tensor.data == written).all())}")
print(f".data.reshape(.shape) equals its transpose: {bool((tensor.data.reshape(tuple(tensor.shape)) == written.T).all())}")
if tensor.shape.tolist() != [3, 2] or tensor.data.shape != (2, 3):
    sys.exit("This is no longer so.")
PYTHON
