#!/usr/bin/env bash
# Library: numpy 2.4.6.
#
# Expected: a list of numbers as a seed, default_rng([seed, client]), gives a stream of its own for each list.
# What happens: zeros at the end of a list of up to four numbers do not count. default_rng(7), default_rng([7]),
# default_rng([7, 0]) and default_rng([7, 0, 0]) are one stream. default_rng([7, 5]) is also the stream of the single
# number 7 + 5 * 2**32.
# Why it matters: [seed, client] or [seed, round, client] is the natural seed of a federation's draws. The server's
# stream [seed], that of client 0, [seed, 0], and that of round 0 and client 0, [seed, 0, 0], are then the same draws,
# and a cohort, a shuffle and a noise are tied together with no sign of it.
#
# Seen on 2026-11-29:
#     default_rng(7): 5765488047046174021
#     default_rng([7]): 5765488047046174021
#     default_rng([7, 0]): 5765488047046174021
#     default_rng([7, 0, 0]): 5765488047046174021
#     default_rng([7, 0, 1]): 7684681413861641662
#     default_rng([7, 5]) and default_rng(7 + 5 * 2**32): 175267136829507387 and 175267136829507387
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np

def first(seed):
    return int(np.random.default_rng(seed).integers(2**63))

for seed in (7, [7], [7, 0], [7, 0, 0], [7, 0, 1]):
    print(f"default_rng({seed}): {first(seed)}")
print(f"default_rng([7, 5]) and default_rng(7 + 5 * 2**32): {first([7, 5])} and {first(7 + 5 * 2**32)}")
same = first(7) == first([7]) == first([7, 0]) == first([7, 0, 0]) != first([7, 0, 1])
if not same or first([7, 5]) != first(7 + 5 * 2**32):
    sys.exit("This is no longer so.")
PYTHON
