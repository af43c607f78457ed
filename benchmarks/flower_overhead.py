"""What ``fedrift.flower.Diagnosed`` costs per round: a Flower app for LLM fine-tuning without the wrapper and with it, in turn.

    python -m benchmarks.flower_overhead [--small] [--model pocket] [--rounds 6] [--repeats 3]

``overhead_share`` is what recording took, measured inside, by what the rounds took without it, both in seconds of the processor: on a
machine that others use, wall times say little. The wall times are beside it. ``app_overhead`` compares whole apps, from outside: the
processor time of a round with the wrapper by that without it, less 1. The two take turns in both orders, so that neither always runs
after the other; the value is the mean of the medians of the two orders.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import Any

import torch
from flwr.serverapp.strategy import FedAvg

from benchmarks.flower_llm_app import AppConfig, adapter_state, make_model, run_app
from benchmarks.machine import describe_machine, make_parser, write_results
from fedrift.core.errors import default_cache_dir
from fedrift.flower import Diagnosed
from fedrift.models.load import load_model

NUM_CLIENTS, SEQUENCES, LENGTH = 4, 64, 64


def make_app(vocabulary: int, local_steps: int) -> AppConfig:
    """Random tokens: what recording costs does not depend on the text."""
    draw = torch.Generator().manual_seed(0)
    shards = tuple(torch.randint(vocabulary, (SEQUENCES, LENGTH), generator=draw) for _ in range(NUM_CLIENTS))
    return AppConfig(shards, {"all": shards[0][:4]}, local_steps=local_steps, batch_size=4)


def timed_run(strategy: Any, config: AppConfig, model: Any, initial: dict[str, Any], rounds: int) -> tuple[Any, float, float]:
    """The app's result, and the seconds and processor seconds of a round."""
    random.seed(0)
    began, worked = perf_counter(), process_time()
    result = run_app(strategy, config, model, initial, rounds)
    return result, (perf_counter() - began) / rounds, (process_time() - worked) / rounds


def measure(model_name: str, rounds: int, repeats: int, local_steps: int) -> dict[str, Any]:
    """Seconds per round without and with recording, in turn."""
    base = load_model(model_name, cache_dir=default_cache_dir()).network
    model = make_model(base, rank=8)
    initial, config = adapter_state(model), make_app(int(base.config.vocab_size), local_steps)
    rows, same = [], True
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(-1, repeats):  # the first one warms up
            strategy = Diagnosed(FedAvg(fraction_evaluate=0.0), runs_dir=folder, name=f"app{repeat}")
            strategies = {"without": FedAvg(fraction_evaluate=0.0), "with": strategy}
            order = ("without", "with") if repeat % 2 else ("with", "without")
            runs = {name: timed_run(strategies[name], config, model, initial, rounds) for name in order}
            (plain, seconds, cpu), (told, seconds_with, cpu_with) = runs["without"], runs["with"]
            same = same and strategy.is_recording and all(array.data == told.arrays[name].data for name, array in plain.arrays.items())
            if repeat >= 0:
                recording = strategy.recording_seconds / rounds
                names = ("first", "without", "with", "recording", "cpu_without", "cpu_with", "cpu_recording")
                values = (order[0], seconds, seconds_with, recording, cpu, cpu_with, strategy.recording_cpu_seconds / rounds)
                rows.append(dict(zip(names, values, strict=True)))
    return {
        "model": model_name,
        "adapter_parameters": sum(leaf.numel() for leaf in initial.values()),
        "clients_per_round": NUM_CLIENTS,
        "local_steps": local_steps,
        "rounds": rounds,
        "same_arrays": same,
        "seconds_per_round": rows,
        "overhead_share": statistics.median(row["cpu_recording"] / row["cpu_without"] for row in rows),
        "app_overhead": app_overhead(rows),
    }


def app_overhead(rows: Sequence[dict[str, Any]]) -> float:
    """What the wrapper adds to the processor time of a whole app, as a share: the mean over both orders of the median over their turns."""
    by_order: dict[str, list[float]] = {}
    for row in rows:
        by_order.setdefault(row["first"], []).append(row["cpu_with"] / row["cpu_without"] - 1)
    return statistics.fmean(statistics.median(shares) for shares in by_order.values())


def main(arguments: Sequence[str] | None = None) -> int:
    ask = make_parser(str(__doc__))
    ask.add_argument("--model", default="pocket", help="a model that fedrift can load")
    ask.add_argument("--rounds", type=int, default=6)
    ask.add_argument("--repeats", type=int, default=3)
    ask.add_argument("--local-steps", type=int, default=8)
    asked = ask.parse_args(arguments)
    sizes = (2, 1, 1) if asked.small else (asked.rounds, asked.repeats, asked.local_steps)
    torch.set_num_threads(1)
    found = {**describe_machine(torch.device("cpu")), **measure(asked.model, *sizes)}
    print(json.dumps(found, indent=1))
    print(write_results(asked.out, "flower-overhead", found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
