"""Every preset: tokens trained and read a second here, and the memory that it takes; each in a process of its own.

    make bench-models         (python benchmarks/models.py [--models pocket distilgpt2])

Adapters of rank 8 on query and value, 2 clients of 4 sequences of 64 tokens stacked (512 tokens a pass), plain gradient steps, on
the CPU in float32. ``peak`` is the process's largest resident memory less what Python, torch and the imports take; beside it the
formula of `fedrift models`. Weights are the presets' own where their files are here and random elsewhere, which changes no time.
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
    """Seconds, the median."""
    spent = []
    for _ in range(num_repeats):
        begun = perf_counter()
        function()
        spent.append(perf_counter() - begun)
    return median(spent)


def measure_preset(name: str, num_repeats: int) -> dict[str, Any]:
    """A preset, in this process."""
    before, cpu = psutil.Process().memory_info().rss, torch.device("cpu")
    model = StackedModel(load_network(name, cpu, torch.float32), Lora())
    batches = make_batches(CLIENTS, SEQUENCES, TOKENS, 1, PRESETS[name].architecture["vocab_size"], cpu)
    train, start, work = stacked_training(model, batches, model.init_params()), model.init_params(), CLIENTS * SEQUENCES * TOKENS

    def read() -> None:
        with torch.no_grad():
            model.sequence_losses(start.take(torch.zeros(CLIENTS, dtype=torch.long)), batches[0]["tokens"], batches[0]["keep"])

    train()
    trained, seen = median_seconds(train, num_repeats), median_seconds(read, num_repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) - before
    return {
        "model": name,
        "weights": "its own" if is_available(PRESETS[name], default_cache_dir()) else "random",
        "trained_tokens_per_s": round(work / trained),
        "read_tokens_per_s": round(work / seen),
        "peak_gb": round(peak / 1e9, 2),
        "formula_gb": round(PRESETS[name].training_memory(work) / 1e9, 2),
    }


def main(words: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--models", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    ask.add_argument("--repeats", type=int, default=3)
    ask.add_argument("--out", type=Path, default=RESULTS, help="only there, docs/models.md is written too")
    ask.add_argument("--here", action="store_true", help="in this process, and only print")
    said = ask.parse_args(words)
    if said.here:
        print(json.dumps(measure_preset(said.models[0], said.repeats)))
        return 0
    rows = []
    for name in said.models:
        command = [sys.executable, __file__, "--here", "--models", name, "--repeats", str(said.repeats)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
        print(
            "{model:15} trained {trained_tokens_per_s:7,d}   read {read_tokens_per_s:7,d} tokens/s   peak {peak_gb:5.2f} GB, "
            "by the formula {formula_gb:5.2f}".format(**rows[-1]),
            flush=True,
        )
    if said.out == RESULTS:
        update_docs_table(
            MODELS_PAGE,
            "models",
            rows,
            {
                "model": "preset",
                "weights": "weights",
                "trained_tokens_per_s": "trained, tokens/s",
                "read_tokens_per_s": "read, tokens/s",
                "peak_gb": "memory at the peak, GB",
                "formula_gb": "by the formula, GB",
            },
        )
    print(write_results(said.out, "models", {**describe_machine(torch.device("cpu")), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
