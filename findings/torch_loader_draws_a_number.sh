#!/usr/bin/env bash
# Library: torch 2.13.0 (CPU).
#
# Expected: to walk over a DataLoader with shuffle=False and num_workers=0, as an evaluation does, draws no random
# number.
# What happens: each walk draws one number of the global generator, for a seed of workers that there are not. Whatever
# is drawn afterwards (dropout, a new layer, noise) is different. A DataLoader that is given a generator of its own
# draws it from there.
# Why it matters: to evaluate every round or every second round changes the training of the rounds that follow. Two runs
# that differ in how often they look differ in their results, and an arm with one more evaluation set is no fair twin.
#
# Seen on 2026-11-29:
#     no evaluation:                     the next draw is 0.496257
#     one evaluation:                    the next draw is 0.088477
#     two evaluations:                   the next draw is 0.307423
#     one, the loader has a generator:   the next draw is 0.496257
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.utils.data import DataLoader

def next_draw(*loaders):
    torch.manual_seed(0)
    for loader in loaders:
        for _ in loader:
            pass
    return torch.rand(1).item()

plain = DataLoader(list(range(4)), batch_size=2)
own = DataLoader(list(range(4)), batch_size=2, generator=torch.Generator())
print(f"no evaluation:                     the next draw is {next_draw():.6f}")
print(f"one evaluation:                    the next draw is {next_draw(plain):.6f}")
print(f"two evaluations:                   the next draw is {next_draw(plain, plain):.6f}")
print(f"one, the loader has a generator:   the next draw is {next_draw(own):.6f}")
seen = {next_draw(), next_draw(plain), next_draw(plain, plain)}
if len(seen) != 3 or next_draw(own) != next_draw():
    sys.exit("This is no longer so.")
PYTHON
