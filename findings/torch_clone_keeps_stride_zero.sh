#!/usr/bin/env bash
# Library: torch 2.13.0 (CPU).
#
# Expected: contiguous() and clone() of an expanded tensor own their memory row by row, so the bytes can be seen with
# view(torch.uint8).
# What happens: a tensor of one element and stride 0 counts as contiguous. contiguous() returns it as it is, clone()
# copies the stride of 0, is_contiguous() is true of both, and view(torch.uint8) raises. With two elements all works.
# clone(memory_format=torch.contiguous_format) gives stride 1.
# Why it matters: code that hashes or writes the bytes of every leaf of an adapter passes all tests with leaves of many
# elements, or two clients, and raises in the first run with one client or a scalar gate that was broadcast.
#
# Seen on 2026-11-29:
#     one element, contiguous()          stride (0,), is_contiguous True, RuntimeError: self.stride(-1) must be 1 to view Float as Byte (different element sizes)
#     one element, clone()               stride (0,), is_contiguous True, RuntimeError: self.stride(-1) must be 1 to view Float as Byte (different element sizes)
#     one element, contiguous_format     stride (1,), is_contiguous True, 4 bytes
#     two elements, contiguous()         stride (1,), is_contiguous True, 8 bytes
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch

def bytes_of(tensor):
    try:
        return f"{tensor.view(torch.uint8).numel()} bytes"
    except RuntimeError as error:
        return f"RuntimeError: {str(error).split(',')[0]}"

def told(name, tensor):
    print(f"{name:<34} stride {tensor.stride()}, is_contiguous {tensor.is_contiguous()}, {bytes_of(tensor)}")
    return bytes_of(tensor)

one, two = torch.ones(()).expand(1), torch.ones(()).expand(2)
seen = [told("one element, contiguous()", one.contiguous()), told("one element, clone()", one.clone()),
        told("one element, contiguous_format", one.clone(memory_format=torch.contiguous_format)),
        told("two elements, contiguous()", two.contiguous())]
if [each.startswith("RuntimeError") for each in seen] != [True, True, False, False]:
    sys.exit("This is no longer so.")
PYTHON
