"""Measure how the time of a round grows with the clients, the LoRA rank, the sequence length and the vocabulary.

    python benchmarks/scaling.py [--repeats 3]

One factor at a time is varied from a base case with 10 clients, rank 8, 2 sequences of 64 tokens and 4,096 words. The model is
`pocket`'s architecture with random weights. Stacked training and a loop of transformers and PEFT take turns and must end at the same
adapters. ``work`` is the FLOPs of the frozen matrix products relative to the base case. A round scales well if its time does not
grow faster than ``work``.
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
    """The size of a round."""

    clients: int = 10
    rank: int = 8
    tokens: int = 64
    vocabulary: int = 4096
    sequences: int = 2
    steps: int = 2


AXES = {"clients": (5, 10, 20, 40), "rank": (2, 8, 32, 128), "tokens": (32, 64, 128, 256), "vocabulary": (1024, 4096, 16384, 65536)}
SMALL_AXES = {"clients": (2, 3), "rank": (2, 4)}


def measure(shape_of_round: RoundShape, num_repeats: int, small: bool) -> dict[str, Any]:
    """Time a round on both sides, and compute its FLOPs."""
    preset, trainable = PRESETS["pocket"], Lora(r=shape_of_round.rank)
    architecture = (
        {**TOY_ARCHITECTURES[model_type_of(preset)], "vocab_size": shape_of_round.vocabulary}
        if small
        else {"vocab_size": shape_of_round.vocabulary}
    )
    network, loop_network = (make_random_network(preset, **architecture) for _ in range(2))
    batches = make_batches(
        shape_of_round.clients, shape_of_round.sequences, shape_of_round.tokens, shape_of_round.steps, shape_of_round.vocabulary
    )
    work = flops_per_token(network) * shape_of_round.clients * shape_of_round.sequences * shape_of_round.tokens * shape_of_round.steps
    model = StackedModel(network, trainable)
    start = make_start_params(make_random_network(preset, **architecture), trainable)
    clients_per_pass = choose_clients_per_pass(network, shape_of_round.clients, shape_of_round.sequences, shape_of_round.tokens, CPU)
    sides = {
        "loop": sequential_training(loop_network, batches, start),
        "stacked": stacked_training(model, batches, start, clients_per_pass),
    }
    difference = check_agreement(sides["stacked"](), sides["loop"]())
    seconds_by_side = time_in_turns(sides, num_repeats)
    return {
        **{f"{side}_s": round(median(seconds), 4) for side, seconds in seconds_by_side.items()},
        "work": work,
        **speed_ratios(seconds_by_side, "loop", "stacked"),
        "difference": difference,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure all sizes, print a line for each and write the results."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=3, help="the number of measurements per side")
    args = parser.parse_args(arguments)
    base, axes = (RoundShape(3, 4, 16, 97, 1, 1), SMALL_AXES) if args.small else (RoundShape(), AXES)
    configure_malloc()
    base_row, rows = measure(base, args.repeats, args.small), list[dict[str, Any]]()
    for axis, values in axes.items():
        for value in values:
            shape = replace(base, **{axis: value})
            measured = base_row if shape == base else measure(shape, args.repeats, args.small)
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    **measured,
                    "work": round(measured["work"] / base_row["work"], 2),
                    **{f"{side}_growth": round(measured[f"{side}_s"] / base_row[f"{side}_s"], 2) for side in ("loop", "stacked")},
                }
            )
            print(
                "{axis:10} {value:6,d}   loop {loop_s:7.3f} s ({loop_growth:5.2f}x the base)   stacked {stacked_s:7.3f} s "
                "({stacked_growth:5.2f})   products {work:5.2f}   {ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})".format(
                    **rows[-1]
                ),
                flush=True,
            )
    write_rows(args.out, "scaling", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
