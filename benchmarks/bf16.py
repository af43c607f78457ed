"""Measure on this machine what training in bfloat16 gains, and with ``--effect`` what it changes in the results.

    python benchmarks/bf16.py [--models pocket distilgpt2 smollm2-135m] [--repeats 5] [--shape 10,8,64,1] [--short]
    python benchmarks/bf16.py --effect [--seeds 3] [--rounds 8] [--steps 20] [--short]

Without ``--effect`` it compares the processor time of four sides, which take turns in one process: a transformers + PEFT loop and
fedrift, each in float32 and bfloat16. All sides train the same adapters on the same batches with plain SGD. In float32 both must end at
the same adapters. The weights of `pocket` are its own; those of the other models are random, which does not affect the time.

With ``--effect`` it runs pairs of experiments that differ only in the arithmetic: the demo, one topic per client on BBC News, and the
synthetic corpus without shared words, each with its IID baseline. It prints the differences of the final losses and of the gaps beside
the limit under which bfloat16 could become a default. These runs use the code path of processors that have bfloat16 products.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any
from unittest.mock import patch

import torch
from comparison import (
    check_agreement,
    load_network,
    make_batches,
    make_start_params,
    relative_difference,
    sequential_training,
    speed_ratios,
    stacked_training,
    time_in_turns,
    write_rows,
)
from machine import make_parser

from fedrift import load_config
from fedrift.config.runtime import Runtime, configure_malloc
from fedrift.config.schema import ExperimentConfig, parse_config
from fedrift.diagnosis.verdict import Verdict, judge_run
from fedrift.engine.cache import ResourceCache
from fedrift.engine.run import run_experiment
from fedrift.models import fused
from fedrift.models.load import cast_weights, make_random_network
from fedrift.models.presets import PRESETS
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora

Shape = tuple[int, int, int, int]  # clients, sequences, tokens, steps
SHAPES: dict[str, Shape] = {"pocket": (10, 8, 64, 1), "distilgpt2": (4, 8, 64, 1), "smollm2-135m": (4, 8, 64, 1)}
SHORT_SHAPES: dict[str, Shape] = {"pocket": (4, 2, 64, 1), "distilgpt2": (1, 1, 64, 1), "smollm2-135m": (1, 1, 16, 1)}
SMALL_SHAPE: Shape = (3, 2, 16, 2)
ARITHMETICS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RATIOS = {  # column: (slow side, fast side)
    "loop_bfloat16": ("loop float32", "loop bfloat16"),
    "fedrift_float32": ("loop float32", "fedrift float32"),
    "fedrift_bfloat16": ("loop float32", "fedrift bfloat16"),
    "fedrift_gain": ("fedrift float32", "fedrift bfloat16"),
    "over_loop_bfloat16": ("loop bfloat16", "fedrift bfloat16"),
}
MAX_DIFFERENCE = 0.005  # nats per token, of final losses and of gaps


def measure_speed(name: str, shape: Shape, num_repeats: int, small: bool) -> dict[str, Any]:
    """Measure the four sides on one shape, and return the row of the table."""
    network = load_network(name, small=small) if small or name == "pocket" else make_random_network(PRESETS[name])
    batches = make_batches(*shape, network.config.vocab_size)
    start = make_start_params(deepcopy(network))
    sides: dict[str, Any] = {}
    for arithmetic, dtype in ARITHMETICS.items():
        cast = cast_weights(deepcopy(network), dtype)
        sides[f"loop {arithmetic}"] = sequential_training(deepcopy(cast), batches, start)
        sides[f"fedrift {arithmetic}"] = stacked_training(StackedModel(cast, Lora()), batches, start)
    updates = {side: run() for side, run in sides.items()}  # the warm-up runs are also compared
    difference = check_agreement(updates["fedrift float32"], updates["loop float32"])
    seconds = time_in_turns(sides, num_repeats, process_time)
    ratios = {column: speed_ratios(seconds, *pair) for column, pair in RATIOS.items()}
    return {
        "model": name,
        **dict(zip(("clients", "sequences", "tokens", "steps"), shape, strict=True)),
        "loop_float32_s": round(median(seconds["loop float32"]), 3),
        **{f"{column}{key.removeprefix('ratio')}": ratio[key] for column, ratio in ratios.items() for key in list(ratio)[:3]},
        "difference_float32": difference,
        "update_difference": round(relative_difference(updates["fedrift bfloat16"], updates["fedrift float32"]), 5),
    }


def make_experiments(num_rounds: int | None, local_steps: int | None, small: bool) -> dict[str, ExperimentConfig]:
    """Return the experiments whose results are compared, by name.

    Args:
        num_rounds: Rounds of each experiment; None: those of its file.
        local_steps: Local steps of each experiment; None: those of its file.
        small: Whether to use toy sizes.
    """
    demo = load_config(Path(__file__).parents[1] / "experiments" / "demo.yaml")
    synthetic = {"name": "synthetic", "synthetic": {"num_domains": 5, "overlap": 0.0, "num_documents": 200 if small else 2000}}
    topics = {"partition": {"type": "TopicMix", "num_clients": 5, "severity": 1.0}}
    raw = {"demo": demo.to_dict(), "topic": {**demo.to_dict(), **topics}, "synthetic": {**demo.to_dict(), **topics, "dataset": synthetic}}
    configs = {name: parse_config(config) for name, config in raw.items()}
    changes = {"num_rounds": 1 if small else num_rounds, "local_steps": 1 if small else local_steps}
    changes = {name: value for name, value in changes.items() if value is not None}
    return {name: replace(config, training=replace(config.training, **changes)) for name, config in configs.items()}


def judge_pair(config: ExperimentConfig, dtype: Any, folder: Path) -> Verdict:
    """Run an experiment and its IID baseline in one arithmetic, and judge the run."""
    resources = ResourceCache(Runtime(runs_dir=folder / dtype, device="cpu", dtype=dtype))
    run, baseline = (run_experiment(each, resources) for each in (config, config.iid_baseline()))
    return judge_run(run.trajectory(), baseline.trajectory())


def compare_verdicts(name: str, seed: int, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """Return the row of the table for one pair of runs that differ in the arithmetic."""
    exact, coarse = verdicts["float32"], verdicts["bfloat16"]
    differences = {"loss_difference": coarse.final_loss - exact.final_loss, "gap_difference": coarse.gap_to_iid - exact.gap_to_iid}
    is_within = all(abs(value) <= MAX_DIFFERENCE for value in differences.values()) and exact.grade == coarse.grade
    return {
        "experiment": name,
        "seed": seed,
        "initial_loss": round(exact.initial_loss, 4),
        "loss_float32": round(exact.final_loss, 4),
        "loss_bfloat16": round(coarse.final_loss, 4),
        "gap_float32": round(exact.gap_to_iid, 4),
        "gap_bfloat16": round(coarse.gap_to_iid, 4),
        **{key: round(value, 5) for key, value in differences.items()},
        "same_grade": "yes" if exact.grade == coarse.grade else "no",
        "within_limit": "yes" if is_within else "no",
    }


def measure_effect(args: argparse.Namespace) -> None:
    """Run all pairs, print a line for each and write the results."""
    rows = []
    configs = make_experiments(3 if args.short else args.rounds, 5 if args.short else args.steps, args.small)
    for seed in range(args.seeds):
        for name, config in configs.items():
            # Processors without bfloat16 products would use another attention.
            with tempfile.TemporaryDirectory() as folder, patch.object(fused, "has_bfloat16_products", lambda: True):
                seeded = replace(config, seed=seed)
                verdicts = {dtype: judge_pair(seeded, dtype, Path(folder)) for dtype in ARITHMETICS}
            rows.append(compare_verdicts(name, seed, verdicts))
            print(
                "{experiment:10} seed {seed}   final loss {loss_float32:.4f} float32, {loss_bfloat16:.4f} bfloat16 "
                "({loss_difference:+.5f})   gap {gap_float32:+.4f}, {gap_bfloat16:+.4f} ({gap_difference:+.5f})".format(**rows[-1]),
                "  within the limit:",
                rows[-1]["within_limit"],
                flush=True,
            )
    training = next(iter(configs.values())).training
    size = {"rounds": training.num_rounds, "local_steps": training.local_steps, "seeds": args.seeds}
    write_rows(args.out, "bf16-effect", rows, limit=MAX_DIFFERENCE, **size)


def measure_all_speeds(args: argparse.Namespace) -> None:
    """Measure all models, print a line for each and write the results."""
    rows, num_repeats = [], 2 if args.short else args.repeats
    configure_malloc()  # as in every run; all sides benefit
    for name in args.models:
        shape: Any = SMALL_SHAPE if args.small else (SHORT_SHAPES if args.short else SHAPES)[name]
        shape = tuple(map(int, args.shape.split(","))) if args.shape else shape
        rows.append(measure_speed(name, shape, num_repeats, args.small))
        print(
            "{model:12} {clients:2d} x {sequences} x {tokens}   speedup over the loop in float32: loop bfloat16 {loop_bfloat16:.2f}, "
            "fedrift float32 {fedrift_float32:.2f}, fedrift bfloat16 {fedrift_bfloat16:.2f}   fedrift bfloat16 over its float32 "
            "{fedrift_gain:.2f}, over the loop in bfloat16 {over_loop_bfloat16:.2f}   difference of the updates "
            "{update_difference:.2%}".format(**rows[-1]),
            flush=True,
        )
        # Written after every model, because the larger ones take long on a processor without bfloat16 products.
        write_rows(args.out, "bf16", rows, bfloat16_products=fused.has_bfloat16_products(), repeats=num_repeats)


def main(arguments: list[str] | None = None) -> int:
    """Measure speed or effect."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--effect", action="store_true", help="compare results instead of speed")
    parser.add_argument("--short", action="store_true", help="use fewer repeats and smaller shapes, or fewer rounds and steps")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="the models to measure")
    parser.add_argument("--repeats", type=int, default=5, help="the number of measurements per side")
    parser.add_argument("--shape", help="clients,sequences,tokens,steps instead of the default shapes")
    parser.add_argument("--seeds", type=int, default=3, help="the number of paired seeds of --effect")
    parser.add_argument("--rounds", type=int, help="the rounds of --effect; by default those of the demo")
    parser.add_argument("--steps", type=int, help="the local steps of --effect; by default those of the demo")
    args = parser.parse_args(arguments)
    (measure_effect if args.effect else measure_all_speeds)(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
