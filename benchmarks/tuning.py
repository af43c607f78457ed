"""Fine-tuning of whole blocks: what the kept frozen prefix and the fused optimiser save.

    python benchmarks/tuning.py [--model pocket] [--repeats 5]

The last 1 and 2 blocks with and without the prefix (from the second time on that blocks of text are read; the first is shown
apart), and full fine-tuning, one client after another, with torch's fused AdamW kernel and with the rule as it is written. Sides
take turns and must end at the same weights.
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
    """AdamW as the rule is written."""

    def _fused_step(self, params: Tree, grad: Tree, opt_state: Tree, count: Tensor) -> tuple[Tree, Tree]:
        return self._unfused_step(params, grad, opt_state, count)


CASES: list[tuple[str, Trainable, dict[str, tuple[AdamW, bool]]]] = [
    *(
        (f"last {blocks}: prefix kept", LastBlocks(blocks), {"plain": (AdamW(1e-4), False), "fast": (AdamW(1e-4), True)})
        for blocks in (1, 2)
    ),
    ("full: fused optimiser", All(), {"plain": (UnfusedAdamW(1e-4), False), "fast": (AdamW(1e-4), False)}),
]


def main(words: list[str] | None = None) -> int:
    ask = make_parser(__doc__ or "")
    ask.add_argument("--model", default="pocket", choices=list(PRESETS))
    ask.add_argument("--repeats", type=int, default=5)
    ask.add_argument("--shape", help="clients,sequences,tokens,steps in place of 4,8,64,3")
    said = ask.parse_args(words)
    shape = said.shape or ("2,2,16,2" if said.small else "4,8,64,3")
    clients, sequences, tokens, steps = map(int, shape.split(","))
    configure_malloc()
    vocabulary = load_network(said.model, small=said.small).config.vocab_size
    batches = make_batches(clients, sequences, tokens, steps, vocabulary)
    rows: list[dict[str, Any]] = []
    for case, tune, how in CASES:
        sides = {}
        for side, (optimizer, prefix) in how.items():
            model = StackedModel(load_network(said.model, small=said.small), tune, use_prefix_cache=prefix)
            sides[side] = stacked_training(model, batches, model.init_params(), 1, optimizer)
        begun = perf_counter()
        end = sides["fast"]()
        first = perf_counter() - begun
        # Adam divides by the gradient's size: where that is all rounding, so is the step.
        difference = check_agreement(end, sides["plain"](), tolerance=0.1)
        spent = time_in_turns(sides, said.repeats)
        rows.append(
            {
                "case": case,
                "first_round_s": round(first, 2),
                "round_s": round(min(spent["fast"]), 2),
                **speed_ratios(spent, "plain", "fast"),
                "difference": difference,
            }
        )
        print(
            "{case:24s} {ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})   first round {first_round_s} s, "
            "later {round_s} s   weights differ by {difference:.0e}".format(**rows[-1]),
            flush=True,
        )
    write_rows(said.out, f"tuning-{said.model}", rows, model=said.model, shape=shape)
    return 0


if __name__ == "__main__":
    sys.exit(main())
