"""Tokens trained per second on this device: stacked clients beside the same clients one after another with transformers + peft.

    make gpu-bench            (python benchmarks/gpu_speed.py [--device cuda] [--minutes 9] [--small] [--compile])

Both sides take turns and must end at the same adapters (float32). ``share`` is that of the device's own matrix products:
4 operations a weight and token (forward, and back to the activations; frozen weights get no gradient) over what a large
product reaches. Rows are written as they come; a run that hits its time limit goes on when asked again. Weights are the presets'
own where their files are here and random elsewhere, which changes no time.
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
MAX_DIFFERENCE = {"float32": 1e-3, "tf32": 2e-1, "bfloat16": 5e-1}  # of the updates' length: what rounding may make of them
STEPS, MIN_REPEATS, MIN_SECONDS = 2, 3, 2.0  # of a round; repeats, and seconds of them


def flops_per_token(network: Any) -> int:
    """Operations that training adapters takes for one token, about."""
    head = network.get_output_embeddings().weight
    tied = head is network.get_input_embeddings().weight
    matrices = sum(leaf.numel() for leaf in network.parameters() if leaf.ndim == 2)
    return 4 * (matrices - (0 if tied else network.get_input_embeddings().weight.numel()))


def measure_gemm_peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations a second of a large matrix product; the best of some."""
    one, best = torch.randn(side, side, device=device).to(dtype), 0.0
    for _ in range(8):
        synchronize(device)
        begun = perf_counter()
        one @ one
        synchronize(device)
        best = max(best, 2 * side**3 / (perf_counter() - begun))
    return best


def measure_row(
    name: str, arithmetic: str, shape: tuple[int, int, int], device: torch.device, small: bool, compiled: bool, gemm_peak: float
) -> dict[str, Any]:
    """Both sides of one rung of the ladder."""
    dtype = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    network = load_network(name, device, dtype, small)
    clients, sequences, tokens = shape
    batches = make_batches(clients, sequences, tokens, STEPS, network.config.vocab_size, device)
    start, each = make_start_params(load_network(name, device, dtype, small)), flops_per_token(network)
    loop = sequential_training(load_network(name, device, dtype, small), batches, start)
    model = StackedModel(network, Lora(), fused=not compiled)
    if compiled:
        model.compile()
    sides = {"loop": loop, "stacked": stacked_training(model, batches, start)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ends = {side: run() for side, run in sides.items()}  # warm, and compared
    differ = relative_difference(ends["stacked"], ends["loop"])
    if not differ <= MAX_DIFFERENCE[arithmetic]:
        raise SystemExit(f"{name} {arithmetic} {shape}: the two sides differ by {differ:.1e} of the updates: nothing to compare")
    spent: dict[str, list[float]] = {side: [] for side in sides}
    while len(spent["loop"]) < MIN_REPEATS or (sum(map(sum, spent.values())) < MIN_SECONDS and len(spent["loop"]) < 20):
        for side, run in sides.items():
            synchronize(device)
            begun = perf_counter()
            run()
            synchronize(device)
            spent[side].append(perf_counter() - begun)
    trained = clients * sequences * tokens * STEPS
    ratios = sorted(a / b for a, b in zip(spent["loop"], spent["stacked"], strict=True))
    speed = trained / median(spent["stacked"])
    return {
        "model": name,
        "arithmetic": arithmetic,
        "compiled": compiled,
        "clients": clients,
        "sequences": sequences,
        "tokens": tokens,
        "loop_tokens_per_s": round(trained / median(spent["loop"])),
        "stacked_tokens_per_s": round(speed),
        "ratio": round(median(ratios), 2),
        "ratio_lowest": round(ratios[0], 2),
        "ratio_highest": round(ratios[-1], 2),
        "share": round(speed * each / gemm_peak, 4),
        "differ": float(f"{differ:.1e}"),
        "memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None,
    }


def main(words: list[str] | None = None) -> int:
    ask = make_parser(__doc__ or "", "cuda")
    ask.add_argument("--minutes", type=float, default=9.0, help="no rung is begun after this")
    ask.add_argument("--compile", action="store_true", help="compile the stacked side's blocks first")
    ask.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    said = ask.parse_args(words)
    begun, runtime = perf_counter(), Runtime(device=said.device, deterministic=False)
    runtime.configure_torch()
    device, name = runtime.resolve_device(), f"gpu-speed-{runtime.resolve_device().type}{'-small' if said.small else ''}"
    kinds = ARITHMETIC if device.type == "cuda" else ("float32",)
    ladder = ((3, 1, 16), (2, 2, 16)) if said.small else LADDER
    path = said.out / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {(old["model"], old["arithmetic"], old["compiled"], old["clients"], old["sequences"], old["tokens"]) for old in rows}
    highest = {kind: arithmetic_peak(device, kind, 256 if said.small else 8192 if device.type == "cuda" else 2048) for kind in kinds}
    left = [rung for rung in product(kinds, ladder, said.models) if (rung[2], rung[0], said.compile, *rung[1]) not in done]
    for kind, shape, model in left:
        if perf_counter() - begun > 60 * said.minutes:
            break
        try:
            rows.append(measure_row(model, kind, shape, device, said.small, said.compile, highest[kind]))
        except torch.OutOfMemoryError:
            print(f"{model} {kind} {shape}: does not fit", flush=True)
            rows.append(
                {
                    "model": model,
                    "arithmetic": kind,
                    "compiled": said.compile,
                    "clients": shape[0],
                    "sequences": shape[1],
                    "tokens": shape[2],
                    "fits": False,
                }
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        write_results(
            said.out,
            name,
            {
                **describe_machine(device),
                "small": said.small,
                "peak_tflops": {each: round(value / 1e12, 1) for each, value in highest.items()},
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
        left = [rung for rung in left if rung != (kind, shape, model)]
    print(f"{path}: {len(rows)} rows, {len(left)} left{'; the same command goes on' if left else ''}")
    return 0


def arithmetic_peak(device: torch.device, arithmetic: str, side: int) -> float:
    """The peak of one arithmetic."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    return measure_gemm_peak(device, torch.bfloat16 if arithmetic == "bfloat16" else torch.float32, side)


if __name__ == "__main__":
    sys.exit(main())
