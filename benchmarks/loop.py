"""A round of local training: our stacked fleet beside a plain transformers + peft loop, one client after another.

    python benchmarks/loop.py [--models pocket distilgpt2] [--repeats 5] [--shape 10,2,64,4]

Both sides train the same clients on the same batches with plain gradient descent on the same LoRA adapters and must end at the
same adapters. They take turns in one process, each from a warm start; the table gives medians and the spread. The loop is a fair
one: one base model in memory, adapters swapped by copying, no padding, no re-wrapping. The share of peak is that of the frozen
matrix products, which both sides must do, in what a large float32 product reaches here: its inverse is the most that anything
could win. DistilGPT2's weights are random where its files are not here, which changes no time.
"""

from __future__ import annotations

import math
import sys
from statistics import median
from typing import Any

from comparison import (
    CPU,
    check_agreement,
    load_network,
    make_batches,
    make_start_params,
    measure_gemm_peak,
    sequential_training,
    speed_ratios,
    stacked_training,
    time_in_turns,
    write_rows,
)
from machine import make_parser

from fedrift.config.runtime import configure_malloc
from fedrift.models.presets import PRESETS
from fedrift.models.stacked_layers import linear_shape
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora, find_blocks
from fedrift.simulation.batches import choose_clients_per_pass

Shape = tuple[int, int, int, int]  # clients, sequences, tokens, steps
SHAPES: dict[str, list[Shape]] = {
    "pocket": [(10, 8, 64, 4), (10, 2, 64, 4), (10, 8, 128, 2), (4, 8, 64, 4)],
    "distilgpt2": [(1, 8, 64, 2), (4, 8, 64, 1), (10, 1, 64, 1)],
}
SMALL_SHAPE: Shape = (3, 2, 16, 2)


def flops_per_token(network: Any) -> float:
    """Of the frozen matrix products of a step: all maps forward; backward all but those that read the embedding."""
    head = network.get_output_embeddings()
    maps = {
        path: math.prod(shape)
        for path, module in network.named_modules()
        if (shape := linear_shape(module)) is not None and module is not head
    }
    first = find_blocks(network)[0] + ".0."
    readers = "q_proj", "k_proj", "v_proj", "c_attn"
    idle = sum(size for path, size in maps.items() if path.startswith(first) and path.endswith(readers))
    return 2.0 * (2 * (sum(maps.values()) + head.weight.numel()) - idle)


def measure(name: str, shape: Shape, num_repeats: int, clients_per_pass: int | None, small: bool) -> tuple[dict[str, Any], float]:
    """The row of a shape, and the peak."""
    network = load_network(name, small=small)
    clients, sequences, tokens, steps = shape
    batches = make_batches(*shape, network.config.vocab_size)
    fits = min(clients, clients_per_pass or choose_clients_per_pass(network, clients, sequences, tokens, CPU))
    each, work = flops_per_token(network), math.prod(shape)
    start = make_start_params(load_network(name, small=small))
    sides = {
        "loop": sequential_training(load_network(name, small=small), batches, start),
        "stacked": stacked_training(StackedModel(network, Lora()), batches, start, fits),
    }
    ends = {side: run() for side, run in sides.items()}  # warm, and compared
    difference = check_agreement(ends["stacked"], ends["loop"])
    top = measure_gemm_peak()
    spent = time_in_turns(sides, num_repeats)
    top = max(top, measure_gemm_peak())
    rate = {side: work / median(seconds) for side, seconds in spent.items()}
    return {
        "clients": clients,
        "sequences": sequences,
        "tokens": tokens,
        "steps": steps,
        "micro": fits,
        **{f"{side}_tokens_per_s": round(value) for side, value in rate.items()},
        **{f"{side}_share_of_peak": round(value * each / top, 2) for side, value in rate.items()},
        **speed_ratios(spent, "loop", "stacked"),
        "difference": difference,
    }, top


def main(words: list[str] | None = None) -> int:
    ask = make_parser(__doc__ or "")
    ask.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(PRESETS))
    ask.add_argument("--repeats", type=int, default=5)
    ask.add_argument("--micro", type=int, help="clients in one pass; as a run would choose if not said")
    ask.add_argument("--shape", action="append", help="clients,sequences,tokens,steps in place of the usual ones")
    said = ask.parse_args(words)
    asked: Any = [tuple(map(int, shape.split(","))) for shape in said.shape or []]
    configure_malloc()  # as every run does; both sides profit
    for name in said.models:
        rows, top = list[dict[str, Any]](), 0.0
        for shape in asked or ([SMALL_SHAPE] if said.small else SHAPES.get(name, [(4, 8, 64, 1)])):
            row, reached = measure(name, shape, said.repeats, said.micro, said.small)
            rows.append(row)
            top = max(top, reached)
            print(
                "{name:10} {clients:3d} x {sequences} x {tokens:3d}   loop {loop_tokens_per_s:6,d} tokens/s "
                "({loop_share_of_peak:.0%})   stacked {stacked_tokens_per_s:6,d} ({stacked_share_of_peak:.0%})   {ratio:.2f}x "
                "({ratio_lowest:.2f} to {ratio_highest:.2f})   adapters differ by {difference:.0e}".format(name=name, **row),
                flush=True,
            )
        write_rows(said.out, f"loop-{name}", rows, model=name, peak_gflops=round(top / 1e9))
    return 0


if __name__ == "__main__":
    sys.exit(main())
