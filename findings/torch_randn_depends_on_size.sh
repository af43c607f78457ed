#!/usr/bin/env bash
# Library: torch 2.13.0 (CPU).
#
# Expected: with one seed, randn(40) begins with the numbers of randn(32), as rand(40) begins with those of rand(32).
# What happens: randn fills tensors of 16 or more elements in blocks, and the last block starts anew where the size is
# not a multiple of 16. randn(15) and randn(16) differ from the first element on, randn(32) and randn(40) in elements 24
# to 31. Four draws of 8 are not one draw of 32.
# Why it matters: a federation draws noise or an initialisation for all clients at once, or for one after the other, or
# in chunks that fit the memory. With uniform numbers these agree; with normal ones the chunk size changes the result.
#
# Seen on 2026-11-29:
#     rand(15) and the beginning of rand(16): 0 of 15 differ
#     rand(32) and the beginning of rand(40): elements [] differ
#     rand(32) and four times rand(8): equal is True
#     randn(15) and the beginning of randn(16): 15 of 15 differ
#     randn(32) and the beginning of randn(40): elements [24, 25, 26, 27, 28, 29, 30, 31] differ
#     randn(32) and four times randn(8): equal is False
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch

def draw(kind, *sizes):
    torch.manual_seed(0)
    return torch.cat([kind(size) for size in sizes])

def differing(kind, small, large):
    return [i for i, (a, b) in enumerate(zip(draw(kind, small), draw(kind, large))) if a != b]

for kind in (torch.rand, torch.randn):
    print(f"{kind.__name__}(15) and the beginning of {kind.__name__}(16): {len(differing(kind, 15, 16))} of 15 differ")
    print(f"{kind.__name__}(32) and the beginning of {kind.__name__}(40): elements {differing(kind, 32, 40)} differ")
    print(f"{kind.__name__}(32) and four times {kind.__name__}(8): equal is {draw(kind, 32).equal(draw(kind, 8, 8, 8, 8))}")
held = [differing(torch.randn, 15, 16) != [], differing(torch.randn, 32, 40) == list(range(24, 32)),
        not draw(torch.randn, 32).equal(draw(torch.randn, 8, 8, 8, 8)), draw(torch.rand, 32).equal(draw(torch.rand, 8, 8, 8, 8)),
        differing(torch.rand, 15, 16) == []]
if not all(held):
    sys.exit("This is no longer so.")
PYTHON
