"""Compare stacked training of a cohort with a sequential loop of transformers and PEFT over the clients.

    python benchmarks/loop.py [--models pocket distilgpt2] [--repeats 5] [--shape 10,2,64,4]

Both sides train the same LoRA adapters of the same clients on the same batches with plain SGD, and must end at the same adapters.
After a warm-up they take turns in one process; the table shows medians and ranges. The loop is efficient: it keeps one base model
in memory, swaps adapters by copying, and neither pads sequences nor wraps the model again. The share of the peak compares the
frozen matrix products, which both sides must compute, with the speed of a large float32 product on this machine. Its inverse is
the largest possible speedup. If the files of DistilGPT2 are missing, its weights are random, which does not affect the time.
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
    """Return the FLOPs per token of the frozen matrix products in one training step.

    The forward pass uses all linear maps. The backward pass omits those that read the embedding, because it needs no gradient.
    """
    head = network.get_output_embeddings()
    sizes = {
        path: math.prod(shape)
        for path, module in network.named_modules()
        if (shape := linear_shape(module)) is not None and module is not head
    }
    first_block = find_blocks(network)[0] + ".0."
    embedding_readers = "q_proj", "k_proj", "v_proj", "c_attn"
    skipped = sum(size for path, size in sizes.items() if path.startswith(first_block) and path.endswith(embedding_readers))
    return 2.0 * (2 * (sum(sizes.values()) + head.weight.numel()) - skipped)


def measure(name: str, shape: Shape, num_repeats: int, clients_per_pass: int | None, small: bool) -> tuple[dict[str, Any], float]:
    """Measure both sides on one shape.

    Returns:
        The row of the table, and the peak speed of this machine in FLOP/s.
    """
    network = load_network(name, small=small)
    clients, sequences, tokens, steps = shape
    batches = make_batches(*shape, network.config.vocab_size)
    group_size = min(clients, clients_per_pass or choose_clients_per_pass(network, clients, sequences, tokens, CPU))
    token_flops, num_tokens = flops_per_token(network), math.prod(shape)
    start = make_start_params(load_network(name, small=small))
    sides = {
        "loop": sequential_training(load_network(name, small=small), batches, start),
        "stacked": stacked_training(StackedModel(network, Lora()), batches, start, group_size),
    }
    results = {side: run() for side, run in sides.items()}  # the warm-up runs are also compared
    difference = check_agreement(results["stacked"], results["loop"])
    peak_flops = measure_gemm_peak()
    seconds_by_side = time_in_turns(sides, num_repeats)
    peak_flops = max(peak_flops, measure_gemm_peak())
    tokens_per_s = {side: num_tokens / median(samples) for side, samples in seconds_by_side.items()}
    return {
        "clients": clients,
        "sequences": sequences,
        "tokens": tokens,
        "steps": steps,
        "micro": group_size,
        **{f"{side}_tokens_per_s": round(value) for side, value in tokens_per_s.items()},
        **{f"{side}_share_of_peak": round(value * token_flops / peak_flops, 2) for side, value in tokens_per_s.items()},
        **speed_ratios(seconds_by_side, "loop", "stacked"),
        "difference": difference,
    }, peak_flops


def main(arguments: list[str] | None = None) -> int:
    """Measure all shapes, print a line for each and write the results."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(PRESETS), help="the models to measure")
    parser.add_argument("--repeats", type=int, default=5, help="the number of measurements per side")
    parser.add_argument("--micro", type=int, help="the number of clients per forward pass; by default chosen as in a run")
    parser.add_argument("--shape", action="append", help="clients,sequences,tokens,steps instead of the default shapes")
    args = parser.parse_args(arguments)
    shapes: Any = [tuple(map(int, shape.split(","))) for shape in args.shape or []]
    configure_malloc()  # as in every run; both sides benefit
    for name in args.models:
        rows, peak_flops = list[dict[str, Any]](), 0.0
        for shape in shapes or ([SMALL_SHAPE] if args.small else SHAPES.get(name, [(4, 8, 64, 1)])):
            row, row_peak = measure(name, shape, args.repeats, args.micro, args.small)
            rows.append(row)
            peak_flops = max(peak_flops, row_peak)
            print(
                "{name:10} {clients:3d} x {sequences} x {tokens:3d}   loop {loop_tokens_per_s:6,d} tokens/s "
                "({loop_share_of_peak:.0%})   stacked {stacked_tokens_per_s:6,d} ({stacked_share_of_peak:.0%})   {ratio:.2f}x "
                "({ratio_lowest:.2f} to {ratio_highest:.2f})   difference of the adapters {difference:.0e}".format(name=name, **row),
                flush=True,
            )
        write_rows(args.out, f"loop-{name}", rows, model=name, peak_gflops=round(peak_flops / 1e9))
    return 0


if __name__ == "__main__":
    sys.exit(main())
