"""How a round grows with its clients, the adapters' rank, the length of sequences and the vocabulary.

    python benchmarks/scaling.py [--repeats 3]

One thing at a time from 10 clients, rank 8, 2 sequences of 64 tokens and 4,096 words, on `pocket`'s architecture with random
weights. Our stacked fleet beside the transformers + peft loop: they take turns and must end at the same adapters. ``work`` is the
frozen matrix products of the round as multiples of the base case's: a round that grows faster than its work grows badly.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from loop import flops_per_token
from machine import options
from sides import CPU, TOY, batches_of, family, one_by_one, stacked, start_of
from turns import agreed, compared, taking_turns, written

from fedrift.fleet.micro import micro_cohort
from fedrift.models.presets import PRESETS
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Lora
from fedrift.models.unread import unread
from fedrift.runtime import keep_pages


@dataclass(frozen=True)
class Round:
    """What a round is made of."""

    clients: int = 10
    rank: int = 8
    tokens: int = 64
    vocabulary: int = 4096
    sequences: int = 2
    steps: int = 2


AXES = {"clients": (5, 10, 20, 40), "rank": (2, 8, 32, 128), "tokens": (32, 64, 128, 256),
        "vocabulary": (1024, 4096, 16384, 65536)}
SMALL = {"clients": (2, 3), "rank": (2, 4)}


def measure(one: Round, repeats: int, small: bool) -> dict[str, Any]:
    """Seconds of a round on both sides, and its work."""
    preset, tune = PRESETS["pocket"], Lora(rank=one.rank)
    shape = {**TOY[family(preset)], "vocab_size": one.vocabulary} if small else {"vocab_size": one.vocabulary}
    network, other = (unread(preset, **shape) for _ in range(2))
    batches = batches_of(one.clients, one.sequences, one.tokens, one.steps, one.vocabulary)
    work = flops_per_token(network) * one.clients * one.sequences * one.tokens * one.steps
    model = StackedModel(network, tune)
    start = start_of(unread(preset, **shape), tune)
    micro = micro_cohort(network, one.clients, one.sequences, one.tokens, CPU)
    sides = {"loop": one_by_one(other, batches, start), "stacked": stacked(model, batches, start, micro)}
    difference = agreed(sides["stacked"](), sides["loop"]())
    spent = taking_turns(sides, repeats)
    return {**{f"{side}_s": round(median(seconds), 4) for side, seconds in spent.items()}, "work": work,
            **compared(spent, "loop", "stacked"), "difference": difference}


def main(words: list[str] | None = None) -> int:
    ask = options(__doc__ or "")
    ask.add_argument("--repeats", type=int, default=3)
    said = ask.parse_args(words)
    base, axes = (Round(3, 4, 16, 97, 1, 1), SMALL) if said.small else (Round(), AXES)
    keep_pages()
    usual, rows = measure(base, said.repeats, said.small), list[dict[str, Any]]()
    for axis, values in axes.items():
        for value in values:
            one = replace(base, **{axis: value})
            found = usual if one == base else measure(one, said.repeats, said.small)
            rows.append({"axis": axis, "value": value, **found, "work": round(found["work"] / usual["work"], 2), **{
                f"{side}_growth": round(found[f"{side}_s"] / usual[f"{side}_s"], 2) for side in ("loop", "stacked")}})
            print("{axis:10} {value:6,d}   loop {loop_s:7.3f} s ({loop_growth:5.2f} of the base)   stacked {stacked_s:7.3f} s "
                  "({stacked_growth:5.2f})   products {work:5.2f}   {ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})"
                  .format(**rows[-1]), flush=True)
    written(said.out, "scaling", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
