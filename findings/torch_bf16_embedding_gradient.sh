#!/usr/bin/env bash
# Libraries: torch 2.13.0 (CPU), numpy 2.4.6.
#
# Expected: on the CPU sums of bfloat16 numbers run in float32 and are rounded once, as in sum, mean and a matrix
# product. The gradient of an embedding is a sum over all positions of a token, so it is right to one part in 250.
# What happens: the gradient of an embedding is summed in bfloat16 itself. A token that occurs 1,000 times with a
# gradient of 1 at each position gets 256, because 256 + 1 is 256 in bfloat16, and in float16 it stops at 2,048. The
# same map written as a one-hot matrix product gives 1,000. Of two functions for the same sum, index_add_ stops and
# scatter_add_ does not. Under autocast the gradient is right, because the embedding stays in float32.
# Why it matters: the most frequent tokens, those that a client's style consists of, get a fraction of their gradient,
# and the fraction depends on the batch size and on the sequence length. So it looks like an effect of both. Keeping
# float32 copies of the weights for the optimizer does not help: the gradient is wrong before it arrives there.
#
# Seen on 2026-11-29:
#     torch.float32:  embedding 1000, one-hot product 1000, index_add_ 1000, scatter_add_ 1000
#     torch.bfloat16: embedding 256, one-hot product 1000, index_add_ 256, scatter_add_ 1000
#     float32 weights, cast to bfloat16 before the lookup: 256, after the lookup: 1000
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F

tokens = torch.zeros(8, 125, dtype=torch.long)  # one token at 1,000 positions

def first_gradient(weight, look_up):
    weight.requires_grad_()
    look_up(weight).sum().backward()
    return weight.grad[0, 0].item()

def sums(dtype):
    rows, one = tokens.flatten(), torch.ones(tokens.numel(), dtype=dtype)
    return {
        "embedding": first_gradient(torch.zeros(20, 4, dtype=dtype), lambda weight: F.embedding(tokens, weight)),
        "one-hot product": first_gradient(torch.zeros(20, 4, dtype=dtype), lambda weight: F.one_hot(tokens, 20).to(dtype) @ weight),
        "index_add_": torch.zeros(1, dtype=dtype).index_add_(0, rows, one).item(),
        "scatter_add_": torch.zeros(1, dtype=dtype).scatter_add_(0, rows, one).item(),
    }

seen = {dtype: sums(dtype) for dtype in (torch.float32, torch.bfloat16)}
for dtype, each in seen.items():
    print(f"{f'{dtype}:':<15} " + ", ".join(f"{name} {value:g}" for name, value in each.items()))
before = first_gradient(torch.zeros(20, 4), lambda weight: F.embedding(tokens, weight.bfloat16()))
after = first_gradient(torch.zeros(20, 4), lambda weight: F.embedding(tokens, weight).bfloat16())
print(f"float32 weights, cast to bfloat16 before the lookup: {before:g}, after the lookup: {after:g}")
if set(seen[torch.float32].values()) != {1000.0} or seen[torch.bfloat16]["embedding"] >= 500 or (before >= 500 or after != 1000):
    sys.exit("This is no longer so.")
PYTHON
