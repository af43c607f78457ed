"""Measure the training speed, evaluation speed and memory of every model preset, each in its own process.

    make bench-models         (python benchmarks/models.py [--models pocket distilgpt2])

The setting is LoRA of rank 8 on query and value, two stacked clients with 4 sequences of 64 tokens (512 tokens per forward pass),
plain SGD, float32 and the CPU. ``peak`` is the maximum resident memory of the process minus the memory before the model is loaded.
It is compared with the formula of `fedrift models`. If the files of a preset are missing, its weights are random, which does not
affect the time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psutil
import torch
from comparison import load_network, make_batches, stacked_training
from machine import MODELS_PAGE, RESULTS, describe_machine, update_docs_table, write_results

from fedrift.core.errors import default_cache_dir
from fedrift.models.presets import PRESETS, is_available
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora

CLIENTS, SEQUENCES, TOKENS = 2, 4, 64


def median_seconds(function: Callable[[], object], num_repeats: int) -> float:
    """Return the median of the seconds that a function takes."""
    seconds = []
    for _ in range(num_repeats):
        start = perf_counter()
        function()
        seconds.append(perf_counter() - start)
    return median(seconds)


def measure_preset(name: str, num_repeats: int) -> dict[str, Any]:
    """Measure a preset in this process."""
    memory_before, cpu = psutil.Process().memory_info().rss, torch.device("cpu")
    model = StackedModel(load_network(name, cpu, torch.float32), Lora())
    batches = make_batches(CLIENTS, SEQUENCES, TOKENS, 1, PRESETS[name].architecture["vocab_size"], cpu)
    train, start, num_tokens = stacked_training(model, batches, model.init_params()), model.init_params(), CLIENTS * SEQUENCES * TOKENS

    def evaluate() -> None:
        with torch.no_grad():
            model.sequence_losses(start.take(torch.zeros(CLIENTS, dtype=torch.long)), batches[0]["tokens"], batches[0]["loss_mask"])

    train()
    training_s, evaluation_s = median_seconds(train, num_repeats), median_seconds(evaluate, num_repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) - memory_before
    return {
        "model": name,
        "weights": "its own" if is_available(PRESETS[name], default_cache_dir()) else "random",
        "trained_tokens_per_s": round(num_tokens / training_s),
        "read_tokens_per_s": round(num_tokens / evaluation_s),
        "peak_gb": round(peak / 1e9, 2),
        "formula_gb": round(PRESETS[name].training_memory(num_tokens) / 1e9, 2),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure all presets, print a line for each and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(PRESETS), choices=list(PRESETS), help="the presets to measure")
    parser.add_argument("--repeats", type=int, default=3, help="the number of measurements")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="the folder for the results; docs/models.md is updated only with the default folder"
    )
    parser.add_argument("--here", action="store_true", help="measure the first model in this process, and only print the result")
    args = parser.parse_args(arguments)
    if args.here:
        print(json.dumps(measure_preset(args.models[0], args.repeats)))
        return 0
    rows = []
    for name in args.models:
        command = [sys.executable, __file__, "--here", "--models", name, "--repeats", str(args.repeats)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
        print(
            "{model:15} training {trained_tokens_per_s:7,d}   evaluation {read_tokens_per_s:7,d} tokens/s   peak {peak_gb:5.2f} GB, "
            "formula {formula_gb:5.2f} GB".format(**rows[-1]),
            flush=True,
        )
    if args.out == RESULTS:
        update_docs_table(
            MODELS_PAGE,
            "models",
            rows,
            {
                "model": "preset",
                "weights": "weights",
                "trained_tokens_per_s": "training, tokens/s",
                "read_tokens_per_s": "evaluation, tokens/s",
                "peak_gb": "peak memory, GB",
                "formula_gb": "memory by the formula, GB",
            },
        )
    print(write_results(args.out, "models", {**describe_machine(torch.device("cpu")), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
