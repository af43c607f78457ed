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

from comparison import (
    CPU,
    TOY_ARCHITECTURES,
    check_agreement,
    make_batches,
    make_start_params,
    model_type_of,
    sequential_training,
    speed_ratios,
    stacked_training,
    time_in_turns,
    write_rows,
)
from loop import flops_per_token
from machine import make_parser

from fedrift.config.runtime import configure_malloc
from fedrift.models.load import make_random_network
from fedrift.models.presets import PRESETS
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora
from fedrift.simulation.batches import choose_clients_per_pass


@dataclass(frozen=True)
class RoundShape:
    """What a round is made of."""

    clients: int = 10
    rank: int = 8
    tokens: int = 64
    vocabulary: int = 4096
    sequences: int = 2
    steps: int = 2


AXES = {"clients": (5, 10, 20, 40), "rank": (2, 8, 32, 128), "tokens": (32, 64, 128, 256), "vocabulary": (1024, 4096, 16384, 65536)}
SMALL_AXES = {"clients": (2, 3), "rank": (2, 4)}


def measure(shape_of_round: RoundShape, num_repeats: int, small: bool) -> dict[str, Any]:
    """Seconds of a round on both sides, and its work."""
    preset, tune = PRESETS["pocket"], Lora(r=shape_of_round.rank)
    shape = (
        {**TOY_ARCHITECTURES[model_type_of(preset)], "vocab_size": shape_of_round.vocabulary}
        if small
        else {"vocab_size": shape_of_round.vocabulary}
    )
    network, other = (make_random_network(preset, **shape) for _ in range(2))
    batches = make_batches(
        shape_of_round.clients, shape_of_round.sequences, shape_of_round.tokens, shape_of_round.steps, shape_of_round.vocabulary
    )
    work = flops_per_token(network) * shape_of_round.clients * shape_of_round.sequences * shape_of_round.tokens * shape_of_round.steps
    model = StackedModel(network, tune)
    start = make_start_params(make_random_network(preset, **shape), tune)
    micro = choose_clients_per_pass(network, shape_of_round.clients, shape_of_round.sequences, shape_of_round.tokens, CPU)
    sides = {"loop": sequential_training(other, batches, start), "stacked": stacked_training(model, batches, start, micro)}
    difference = check_agreement(sides["stacked"](), sides["loop"]())
    spent = time_in_turns(sides, num_repeats)
    return {
        **{f"{side}_s": round(median(seconds), 4) for side, seconds in spent.items()},
        "work": work,
        **speed_ratios(spent, "loop", "stacked"),
        "difference": difference,
    }


def main(words: list[str] | None = None) -> int:
    ask = make_parser(__doc__ or "")
    ask.add_argument("--repeats", type=int, default=3)
    said = ask.parse_args(words)
    base, axes = (RoundShape(3, 4, 16, 97, 1, 1), SMALL_AXES) if said.small else (RoundShape(), AXES)
    configure_malloc()
    usual, rows = measure(base, said.repeats, said.small), list[dict[str, Any]]()
    for axis, values in axes.items():
        for value in values:
            one = replace(base, **{axis: value})
            found = usual if one == base else measure(one, said.repeats, said.small)
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    **found,
                    "work": round(found["work"] / usual["work"], 2),
                    **{f"{side}_growth": round(found[f"{side}_s"] / usual[f"{side}_s"], 2) for side in ("loop", "stacked")},
                }
            )
            print(
                "{axis:10} {value:6,d}   loop {loop_s:7.3f} s ({loop_growth:5.2f} of the base)   stacked {stacked_s:7.3f} s "
                "({stacked_growth:5.2f})   products {work:5.2f}   {ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})".format(
                    **rows[-1]
                ),
                flush=True,
            )
    write_rows(said.out, "scaling", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
