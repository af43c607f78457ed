"""Measure how much time the prefix cache and the fused optimizer save when complete blocks are fine-tuned.

    python benchmarks/tuning.py [--model pocket] [--repeats 5]

The first two cases train the last one or two blocks with and without the cache of the frozen prefix. The cache only helps when a text
is used again, so the first round is shown separately. The third case trains all weights, with torch's fused AdamW kernel and with
the plain update rule. Clients are trained one after another. Sides take turns and must end at the same weights.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from comparison import check_agreement, load_network, make_batches, speed_ratios, stacked_training, time_in_turns, write_rows
from machine import make_parser
from torch import Tensor

from fedrift.config.runtime import configure_malloc
from fedrift.core.optimizers import AdamW
from fedrift.core.tree import Tree
from fedrift.models.presets import PRESETS
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import All, LastBlocks, Trainable


@dataclass(frozen=True)
class UnfusedAdamW(AdamW):
    """AdamW without torch's fused kernel."""

    def _fused_step(self, params: Tree, grad: Tree, opt_state: Tree, count: Tensor) -> tuple[Tree, Tree]:
        return self._unfused_step(params, grad, opt_state, count)


CASES: list[tuple[str, Trainable, dict[str, tuple[AdamW, bool]]]] = [
    *(
        (f"last {blocks}: prefix kept", LastBlocks(blocks), {"plain": (AdamW(1e-4), False), "fast": (AdamW(1e-4), True)})
        for blocks in (1, 2)
    ),
    ("full: fused optimiser", All(), {"plain": (UnfusedAdamW(1e-4), False), "fast": (AdamW(1e-4), False)}),
]


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases, print a line for each and write the results."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--model", default="pocket", choices=list(PRESETS), help="the model preset")
    parser.add_argument("--repeats", type=int, default=5, help="the number of measurements per side")
    parser.add_argument("--shape", help="clients,sequences,tokens,steps instead of 4,8,64,3")
    args = parser.parse_args(arguments)
    shape = args.shape or ("2,2,16,2" if args.small else "4,8,64,3")
    clients, sequences, tokens, steps = map(int, shape.split(","))
    configure_malloc()
    vocabulary = load_network(args.model, small=args.small).config.vocab_size
    batches = make_batches(clients, sequences, tokens, steps, vocabulary)
    rows: list[dict[str, Any]] = []
    for case, trainable, variants in CASES:
        sides = {}
        for side, (optimizer, prefix) in variants.items():
            model = StackedModel(load_network(args.model, small=args.small), trainable, use_prefix_cache=prefix)
            sides[side] = stacked_training(model, batches, model.init_params(), 1, optimizer)
        start = perf_counter()
        result = sides["fast"]()
        first_round_s = perf_counter() - start
        # Adam divides by the size of the gradient. Where the gradient is only rounding error, the step is too.
        difference = check_agreement(result, sides["plain"](), tolerance=0.1)
        seconds_by_side = time_in_turns(sides, args.repeats)
        rows.append(
            {
                "case": case,
                "first_round_s": round(first_round_s, 2),
                "round_s": round(min(seconds_by_side["fast"]), 2),
                **speed_ratios(seconds_by_side, "plain", "fast"),
                "difference": difference,
            }
        )
        print(
            "{case:24s} {ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})   first round {first_round_s} s, "
            "later rounds {round_s} s   difference of the weights {difference:.0e}".format(**rows[-1]),
            flush=True,
        )
    write_rows(args.out, f"tuning-{args.model}", rows, model=args.model, shape=shape)
    return 0


if __name__ == "__main__":
    sys.exit(main())
