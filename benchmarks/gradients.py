"""Check that the gradients of stacked clients equal those of single clients up to rounding, in float32 and float64.

    python benchmarks/gradients.py

Three clients with their own adapters train on 2 x 32 tokens each, one of them padded, with two blocks of each model's width. Each
client is compared with two references: fedrift's fused blocks for this client alone (``alone``), and transformers' modules with
autograd (``plain``). In the latter, the RMS norm computes in the tested data type, because transformers always uses float32 for
it. A value is the norm of the difference relative to the norm of the gradients. The exit code is 1 if a value exceeds its limit.
"""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any

import torch
from comparison import CPU, write_rows
from gpu_check import TRAINABLES, CheckSetup, gradient_difference
from machine import make_parser

MODELS = ("pocket", "distilgpt2", "smollm2-135m")
MAX_DIFFERENCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def main(arguments: list[str] | None = None) -> int:
    """Check all models and data types; return 1 if a difference exceeds its limit."""
    args = make_parser(__doc__ or "").parse_args(arguments)
    rows, setup = list[dict[str, Any]](), CheckSetup(CPU, args.small)
    for name in MODELS:
        for dtype, limit in MAX_DIFFERENCE.items():
            for trainable_name in TRAINABLES if name == "pocket" else ("adapters",):
                network, plain = setup.make_network(name, dtype), with_exact_norms(setup.make_network(name, dtype))
                batch = setup.make_batch(network)
                differences = {
                    "alone": gradient_difference(network, TRAINABLES[trainable_name], batch),
                    "plain": gradient_difference(setup.make_network(name, dtype), TRAINABLES[trainable_name], batch, plain),
                }
                rows.append(
                    {
                        "model": name,
                        "tuned": trainable_name,
                        "arithmetic": str(dtype).removeprefix("torch."),
                        **{reference: float(f"{value:.1e}") for reference, value in differences.items()},
                        "most": limit,
                    }
                )
                print(
                    "{model:13} {tuned:11} {arithmetic}   alone {alone:.1e}   plain {plain:.1e}   limit {most:.0e}".format(**rows[-1]),
                    flush=True,
                )
    write_rows(args.out, "gradients", rows)
    return 0 if all(max(row["alone"], row["plain"]) <= row["most"] for row in rows) else 1


def with_exact_norms(network: Any) -> Any:
    """Make the RMS norms of a network compute in the data type of their input, and return the network."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * self.weight

    for module in network.modules():
        if type(module).__name__.endswith("RMSNorm"):
            vars(module)["forward"] = MethodType(norm, module)
    return network


if __name__ == "__main__":
    sys.exit(main())
