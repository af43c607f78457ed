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
from machine import PAGE, RESULTS, into_docs, machine, write
from sides import batches_of, network_of, stacked

from fedrift.folders import cache_folder
from fedrift.models.presets import PRESETS, at_hand
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Lora

CLIENTS, SEQUENCES, TOKENS = 2, 4, 64


def timed(do: Callable[[], object], repeats: int) -> float:
    """Seconds, the median."""
    spent = []
    for _ in range(repeats):
        begun = perf_counter()
        do()
        spent.append(perf_counter() - begun)
    return median(spent)


def one(name: str, repeats: int) -> dict[str, Any]:
    """A preset, in this process."""
    before, cpu = psutil.Process().memory_info().rss, torch.device("cpu")
    model = StackedModel(network_of(name, cpu, torch.float32), Lora())
    batches = batches_of(CLIENTS, SEQUENCES, TOKENS, 1, PRESETS[name].architecture["vocab_size"], cpu)
    train, start, work = stacked(model, batches, model.template()), model.template(), CLIENTS * SEQUENCES * TOKENS

    def read() -> None:
        with torch.no_grad():
            model.sums(start.rows(torch.zeros(CLIENTS, dtype=torch.long)), batches[0]["tokens"], batches[0]["keep"])

    train()
    trained, seen = timed(train, repeats), timed(read, repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) - before
    return {"model": name, "weights": "its own" if at_hand(PRESETS[name], cache_folder()) else "random",
            "trained_tokens_per_s": round(work / trained), "read_tokens_per_s": round(work / seen),
            "peak_gb": round(peak / 1e9, 2), "formula_gb": round(PRESETS[name].training_memory(work) / 1e9, 2)}


def main(words: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--models", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    ask.add_argument("--repeats", type=int, default=3)
    ask.add_argument("--out", type=Path, default=RESULTS, help="only there, docs/models.md is written too")
    ask.add_argument("--here", action="store_true", help="in this process, and only print")
    said = ask.parse_args(words)
    if said.here:
        print(json.dumps(one(said.models[0], said.repeats)))
        return 0
    rows = []
    for name in said.models:
        command = [sys.executable, __file__, "--here", "--models", name, "--repeats", str(said.repeats)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
        print("{model:15} trained {trained_tokens_per_s:7,d}   read {read_tokens_per_s:7,d} tokens/s   peak {peak_gb:5.2f} GB, "
              "by the formula {formula_gb:5.2f}".format(**rows[-1]), flush=True)
    if said.out == RESULTS:
        into_docs(PAGE, "models", rows, {
            "model": "preset", "weights": "weights", "trained_tokens_per_s": "trained, tokens/s",
            "read_tokens_per_s": "read, tokens/s", "peak_gb": "memory at the peak, GB", "formula_gb": "by the formula, GB"})
    print(write(said.out, "models", {**machine(torch.device("cpu")), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
