"""Measure the cost of every probe on `pocket`, in seconds and forward tokens, compared with a round of training.

    python benchmarks/probes.py [--data FOLDER] [--repeats 3]

The setting has ten clients on BBC News, five per round, LoRA of rank 8 and 10 local steps of 8 x 64 tokens. Every probe runs
`repeats` times on the same round; the script reports the median and the range. The probe of general text needs a local copy of a
dataset on which `pocket` was pretrained (FEDRIFT_DATA). The script takes one or two minutes and writes
benchmarks/results/probes.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch

from fedrift.config.runtime import Runtime
from fedrift.config.schema import parse_config
from fedrift.core.types import RoundResult
from fedrift.engine.build import build_run
from fedrift.engine.cache import ResourceCache
from fedrift.engine.loop import run_rounds
from fedrift.probes import DerivedMetric, HeldOutLosses, MetricHistory, MetricValues, ScheduledProbe, to_records
from fedrift.probes.base import has_initial

PROBE_GROUPS = ["language", "updates", "fairness", "cost", "hidden", "attention", "barriers", "adapters", "general", "syntax", "text"]
EXPERIMENT = {
    "dataset": "bbc",
    "model": "pocket",
    "trainable": {"type": "Lora", "r": 8},
    "partition": {"type": "TopicMix", "num_clients": 10, "severity": 1.0},
    "training": {
        "num_rounds": 2,
        "participation_rate": 0.5,
        "local_steps": 10,
        "batch_size": 8,
        "max_seq_length": 64,
        "client_optimizer": {"type": "Sgd", "lr": 1.0},
    },
    "evaluation": {"probes": PROBE_GROUPS, "final_blocks_per_domain": 0},
}
OUTPUT = Path(__file__).parent / "results" / "probes.json"


def main() -> None:
    """Time all probes, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="the folder of local datasets, for general text")
    parser.add_argument("--repeats", type=int, default=3, help="the number of measurements per probe")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="the results file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    experiment = parse_config(EXPERIMENT)
    with TemporaryDirectory() as folder:
        run_context = build_run(experiment, ResourceCache(Runtime(runs_dir=Path(folder), data_dir=args.data, device="cpu", threads=1)))
        suite = run_context.evaluation.probe_suite
        history = MetricHistory()
        history.add_records(to_records(suite.evaluate_initial(run_context.initial_state, history)[0], 0, [], run_context.simulator.size))
        start, round_seconds = perf_counter(), []
        for result in run_rounds(
            run_context.initial_state,
            run_context.simulator,
            experiment.algorithm,
            num_rounds=2,
            cohort_size=run_context.cohort_size,
            seed=0,
        ):
            round_seconds.append(perf_counter() - start)
            last_result, start = result, perf_counter()
        rows = [measure_probe(probe, last_result, history, args.repeats, run_context.evaluation.losses) for probe in suite.probes]
    tokens = float(last_result.update.tokens.sum())
    round_s = statistics.median(round_seconds)
    results = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": 1,
        "round": {"seconds": round_s, "tokens": tokens},
        "expensive_interval": suite.expensive_interval,
        "max_overhead": suite.max_overhead,
        "probes": rows,
        "warnings": run_context.warnings,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(
        f"one round of training: {round_s:.2f} s, {tokens:,.0f} tokens; with expensive probes every "
        f"{suite.expensive_interval} rounds, all probes stay within {100 * suite.max_overhead:.0f} %\n"
    )
    print(f"{'probe':<12} {'when':>5} {'forward tokens':>15} {'seconds':>9} {'range':>17} {'of a round':>11}")
    for row in rows:
        print(
            f"{row['probe']:<12} {row['when']!s:>5} {row['tokens']:>15,.0f} {row['seconds']:>9.4f} "
            f"{row['least']:>8.4f}-{row['most']:.4f} {row['seconds'] / round_s:>11.1%}"
        )
    for warning in run_context.warnings:
        print(f"note: {warning}")


def measure_probe(
    scheduled_probe: ScheduledProbe | DerivedMetric, result: RoundResult, history: MetricHistory, num_repeats: int, losses: HeldOutLosses
) -> dict[str, object]:
    """Time one probe.

    The cache of losses is cleared before each repetition of the probe ``losses``, because the first probe that needs losses
    per token computes them for all.

    Returns:
        A row of the table: name, schedule, forward tokens and seconds.
    """
    seconds: list[float] = []
    metrics: MetricValues = {}
    for _ in range(num_repeats):
        if scheduled_probe.name == "losses":
            losses.cache.clear()
        start = perf_counter()
        metrics = (
            scheduled_probe.derive({"loss": torch.zeros(10)}, history)
            if isinstance(scheduled_probe, DerivedMetric)
            else scheduled_probe.probe(result)
        )
        seconds.append(perf_counter() - start)
    is_derived = isinstance(scheduled_probe, DerivedMetric)
    return {
        "probe": scheduled_probe.name,
        "when": "after" if is_derived else scheduled_probe.schedule,
        "tokens": 0.0 if is_derived else scheduled_probe.forward_tokens,
        "before round 1": not is_derived and has_initial(scheduled_probe),
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "metrics": len(metrics),
    }


if __name__ == "__main__":
    main()
