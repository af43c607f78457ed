#!/usr/bin/env bash
# Library: torch 2.13.0 (CPU).
#
# Expected: manual_seed takes 64 bits, and two different seeds give two different streams.
# What happens: the CPU generator uses the low 32 bits alone. 7, 7 + 2**32 and 7 + 2**62 give one stream, while
# initial_seed() gives back all 64 bits and so tells them apart.
# Why it matters: a federation makes seeds of hashes (of the seed, the round, the client and the purpose) and takes 63
# bits so that no two meet. With 32 bits two of 77,000 streams meet with even odds: 100 clients, 300 rounds and three
# purposes are 90,000 streams. Noise for privacy then has 2**32 values at most.
#
# Seen on 2026-11-29:
#             7: initial_seed 7, draws [0.5349225401878357, 0.19880318641662598]
#     7 + 2**32: initial_seed 4294967303, draws [0.5349225401878357, 0.19880318641662598]
#     7 + 2**62: initial_seed 4611686018427387911, draws [0.5349225401878357, 0.19880318641662598]
#             8: initial_seed 8, draws [0.5979272723197937, 0.8452961444854736]
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch

def first(seed):
    return torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist()

for name, seed in (("7", 7), ("7 + 2**32", 7 + 2**32), ("7 + 2**62", 7 + 2**62), ("8", 8)):
    print(f"{name:>9}: initial_seed {torch.Generator().manual_seed(seed).initial_seed()}, draws {first(seed)}")
torch.manual_seed(7 + 2**40)
through = torch.rand(2).tolist()
if not first(7) == first(7 + 2**32) == first(7 + 2**62) == through or first(7) == first(8):
    sys.exit("This is no longer so.")
PYTHON
