#!/usr/bin/env bash
# Library: transformers 5.23.0 (no torch needed).
#
# Expected: configurations are strict dataclasses since version 5: LlamaConfig(num_hidden_layers=2.0) is refused for its
# type, so a name that does not exist is refused as well.
# What happens: any name is taken and stored. LlamaConfig(num_hidden_layer=2, hidden_sizes=64) builds, without a
# warning, a configuration of 32 layers and width 4096 that also has two attributes which nobody reads. The names
# survive save_pretrained.
# Why it matters: a study's small model is made by naming sizes in a configuration file. With a slip in one name the run
# is not small, and a site that wanted another rope_theta or dropout trains the default and records the value it asked
# for.
#
# Seen on 2026-11-29:
#     LlamaConfig(num_hidden_layers=2.0): StrictDataclassFieldValidationError
#     LlamaConfig(num_hidden_layer=2, hidden_sizes=64): 32 layers of width 4096
#     saved and read again: num_hidden_layer=2, num_hidden_layers=32
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0
cd "$work"
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import sys

from transformers import LlamaConfig

try:
    LlamaConfig(num_hidden_layers=2.0)
    typed = "accepted"
except Exception as error:
    typed = type(error).__name__
wrong = LlamaConfig(num_hidden_layer=2, hidden_sizes=64)
wrong.save_pretrained("saved")
again = LlamaConfig.from_pretrained("saved")
print(f"LlamaConfig(num_hidden_layers=2.0): {typed}")
print(f"LlamaConfig(num_hidden_layer=2, hidden_sizes=64): {wrong.num_hidden_layers} layers of width {wrong.hidden_size}")
print(f"saved and read again: num_hidden_layer={again.num_hidden_layer}, num_hidden_layers={again.num_hidden_layers}")
if typed == "accepted" or (wrong.num_hidden_layers, wrong.hidden_size, again.num_hidden_layer) != (32, 4096, 2):
    sys.exit("This is no longer so.")
PYTHON
