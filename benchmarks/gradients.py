"""Gradients of stacked clients beside those of each client alone, in float32 and float64: rounding and nothing else.

    python benchmarks/gradients.py

Three clients of 2 x 32 tokens, one of them padded, each with adapters of its own; two blocks of each model's width. Alone, a
client works through the same lean blocks (``alone``) and through transformers' own modules and autograd (``plain``; its RMS norm
in the arithmetic asked for: transformers' own is float32 whatever comes). A figure is the length of the difference as a share of
the gradients' own; one beyond its limit ends the benchmark with exit code 1.
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


def main(words: list[str] | None = None) -> int:
    said = make_parser(__doc__ or "").parse_args(words)
    rows, where = list[dict[str, Any]](), CheckSetup(CPU, said.small)
    for name in MODELS:
        for dtype, most in MAX_DIFFERENCE.items():
            for tuned in TRAINABLES if name == "pocket" else ("adapters",):
                network, plain = where.make_network(name, dtype), with_exact_norms(where.make_network(name, dtype))
                batch = where.make_batch(network)
                found = {
                    "alone": gradient_difference(network, TRAINABLES[tuned], batch),
                    "plain": gradient_difference(where.make_network(name, dtype), TRAINABLES[tuned], batch, plain),
                }
                rows.append(
                    {
                        "model": name,
                        "tuned": tuned,
                        "arithmetic": str(dtype).removeprefix("torch."),
                        **{way: float(f"{value:.1e}") for way, value in found.items()},
                        "most": most,
                    }
                )
                print(
                    "{model:13} {tuned:11} {arithmetic}   alone {alone:.1e}   plain {plain:.1e}   at most {most:.0e}".format(**rows[-1]),
                    flush=True,
                )
    write_rows(said.out, "gradients", rows)
    return 0 if all(max(row["alone"], row["plain"]) <= row["most"] for row in rows) else 1


def with_exact_norms(network: Any) -> Any:
    """A network whose RMS norms compute in the arithmetic of their input."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * self.weight

    for module in network.modules():
        if type(module).__name__.endswith("RMSNorm"):
            vars(module)["forward"] = MethodType(norm, module)
    return network


if __name__ == "__main__":
    sys.exit(main())
