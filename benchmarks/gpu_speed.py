"""Compare the training speed of stacked clients on this device with a sequential loop of transformers and PEFT.

    make gpu-bench            (python benchmarks/gpu_speed.py [--device cuda] [--minutes 9] [--small] [--compile])

Both sides take turns and must end at the same adapters. ``share`` is the share of the device's peak: 4 FLOPs per weight and token
(forward, and backward to the activations; frozen weights have no gradient), relative to the speed of a large matrix product.
Each row is written when it is measured. If the time limit ends the benchmark, repeat the command to measure the remaining rows. If
the files of a preset are missing, its weights are random, which does not affect the time.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from statistics import median
from time import perf_counter
from typing import Any

import torch
from comparison import load_network, make_batches, make_start_params, relative_difference, sequential_training, stacked_training
from machine import describe_machine, make_parser, synchronize, write_results

from fedrift.config.runtime import Runtime
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora

MODELS = ("pocket", "smollm2-135m", "distilgpt2", "qwen-0.5b", "tinyllama-1.1b")
LADDER = ((20, 1, 64), (20, 8, 64), (20, 4, 128), (100, 1, 64), (4, 8, 64))  # clients, sequences, tokens
ARITHMETIC = ("bfloat16", "float32", "tf32")
MAX_DIFFERENCE = {"float32": 1e-3, "tf32": 2e-1, "bfloat16": 5e-1}  # maximum difference relative to the norm of the updates, by rounding
STEPS, MIN_REPEATS, MIN_SECONDS = 2, 3, 2.0  # local steps; minimum repetitions and minimum total seconds


def flops_per_token(network: Any) -> int:
    """Return the approximate FLOPs per token of training adapters."""
    head = network.get_output_embeddings().weight
    tied = head is network.get_input_embeddings().weight
    matrices = sum(leaf.numel() for leaf in network.parameters() if leaf.ndim == 2)
    return 4 * (matrices - (0 if tied else network.get_input_embeddings().weight.numel()))


def measure_gemm_peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return the FLOP/s of a large matrix product, the best of several trials."""
    matrix, best = torch.randn(side, side, device=device).to(dtype), 0.0
    for _ in range(8):
        synchronize(device)
        start = perf_counter()
        matrix @ matrix
        synchronize(device)
        best = max(best, 2 * side**3 / (perf_counter() - start))
    return best


def measure_row(
    name: str, arithmetic: str, shape: tuple[int, int, int], device: torch.device, small: bool, compiled: bool, gemm_peak: float
) -> dict[str, Any]:
    """Measure both sides in one setting, and return a row of the results."""
    dtype = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    network = load_network(name, device, dtype, small)
    clients, sequences, tokens = shape
    batches = make_batches(clients, sequences, tokens, STEPS, network.config.vocab_size, device)
    start, token_flops = make_start_params(load_network(name, device, dtype, small)), flops_per_token(network)
    loop = sequential_training(load_network(name, device, dtype, small), batches, start)
    model = StackedModel(network, Lora(), fused=not compiled)
    if compiled:
        model.compile()
    sides = {"loop": loop, "stacked": stacked_training(model, batches, start)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    updates = {side: run() for side, run in sides.items()}  # the warm-up runs are also compared
    difference = relative_difference(updates["stacked"], updates["loop"])
    if not difference <= MAX_DIFFERENCE[arithmetic]:
        raise SystemExit(
            f"{name} {arithmetic} {shape}: nothing to compare, because the updates of the two sides differ by {difference:.1e}"
        )
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    while len(seconds["loop"]) < MIN_REPEATS or (sum(map(sum, seconds.values())) < MIN_SECONDS and len(seconds["loop"]) < 20):
        for side, run in sides.items():
            synchronize(device)
            started = perf_counter()
            run()
            synchronize(device)
            seconds[side].append(perf_counter() - started)
    num_tokens = clients * sequences * tokens * STEPS
    ratios = sorted(a / b for a, b in zip(seconds["loop"], seconds["stacked"], strict=True))
    speed = num_tokens / median(seconds["stacked"])
    return {
        "model": name,
        "arithmetic": arithmetic,
        "compiled": compiled,
        "clients": clients,
        "sequences": sequences,
        "tokens": tokens,
        "loop_tokens_per_s": round(num_tokens / median(seconds["loop"])),
        "stacked_tokens_per_s": round(speed),
        "ratio": round(median(ratios), 2),
        "ratio_lowest": round(ratios[0], 2),
        "ratio_highest": round(ratios[-1], 2),
        "share": round(speed * token_flops / gemm_peak, 4),
        "differ": float(f"{difference:.1e}"),
        "memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure the remaining settings until the time is over."""
    parser = make_parser(__doc__ or "", "cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no further measurement after this time")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of the stacked side first")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="the models to measure")
    args = parser.parse_args(arguments)
    started, runtime = perf_counter(), Runtime(device=args.device, deterministic=False)
    runtime.configure_torch()
    device, name = runtime.resolve_device(), f"gpu-speed-{runtime.resolve_device().type}{'-small' if args.small else ''}"
    dtypes = ARITHMETIC if device.type == "cuda" else ("float32",)
    shapes = ((3, 1, 16), (2, 2, 16)) if args.small else LADDER
    path = args.out / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {(row["model"], row["arithmetic"], row["compiled"], row["clients"], row["sequences"], row["tokens"]) for row in rows}
    peaks = {dtype: arithmetic_peak(device, dtype, 256 if args.small else 8192 if device.type == "cuda" else 2048) for dtype in dtypes}
    remaining = [
        setting for setting in product(dtypes, shapes, args.models) if (setting[2], setting[0], args.compile, *setting[1]) not in done
    ]
    for dtype, shape, model in remaining:
        if perf_counter() - started > 60 * args.minutes:
            break
        try:
            rows.append(measure_row(model, dtype, shape, device, args.small, args.compile, peaks[dtype]))
        except torch.OutOfMemoryError:
            print(f"{model} {dtype} {shape}: does not fit into the memory", flush=True)
            rows.append(
                {
                    "model": model,
                    "arithmetic": dtype,
                    "compiled": args.compile,
                    "clients": shape[0],
                    "sequences": shape[1],
                    "tokens": shape[2],
                    "fits": False,
                }
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        write_results(
            args.out,
            name,
            {
                **describe_machine(device),
                "small": args.small,
                "peak_tflops": {dtype_name: round(value / 1e12, 1) for dtype_name, value in peaks.items()},
                "rows": rows,
            },
        )
        if "ratio" in rows[-1]:
            print(
                "{model:15} {arithmetic:9} {clients:3d} x {sequences} x {tokens:3d}   loop {loop_tokens_per_s:9,d}   stacked "
                "{stacked_tokens_per_s:9,d} tokens/s   {ratio:5.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})   "
                "{share:6.1%} of peak".format(**rows[-1]),
                flush=True,
            )
        remaining = [setting for setting in remaining if setting != (dtype, shape, model)]
    print(f"{path}: {len(rows)} rows, {len(remaining)} left{'; repeat the same command to measure them' if remaining else ''}")
    return 0


def arithmetic_peak(device: torch.device, arithmetic: str, side: int) -> float:
    """Return the peak FLOP/s of matrix products in one data type."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    return measure_gemm_peak(device, torch.bfloat16 if arithmetic == "bfloat16" else torch.float32, side)


if __name__ == "__main__":
    sys.exit(main())
