"""What looking costs: every probe of the panel on `pocket`, seconds and forward tokens of one look, beside a round of training.

    python benchmarks/probes.py [--data FOLDER] [--repeats 3]

Ten BBC clients, five a round, LoRA of rank 8: a round of 10 steps of 8 x 64 tokens. Every look is taken on the same round,
`repeats` times; the median and the range are told. General text needs a local copy of a corpus that `pocket` has read
(FEDRIFT_DATA). One or two minutes; writes benchmarks/results/probes.json.
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
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--data", type=Path, default=None, help="local corpora, for general text")
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--out", type=Path, default=OUTPUT)
    said = asked.parse_args()
    torch.set_num_threads(1)
    experiment = parse_config(EXPERIMENT)
    with TemporaryDirectory() as folder:
        setting = build_run(experiment, ResourceCache(Runtime(runs_dir=Path(folder), data_dir=said.data, device="cpu", threads=1)))
        past = MetricHistory()
        past.add_records(to_records(setting.probe_suite.evaluate_initial(setting.initial_state, past)[0], 0, [], setting.simulator.size))
        begun, train = perf_counter(), []
        for each in run_rounds(
            setting.initial_state, setting.simulator, experiment.algorithm, num_rounds=2, cohort_size=setting.cohort_size, seed=0
        ):
            train.append(perf_counter() - begun)
            done, begun = each, perf_counter()
        rows = [measure_probe(look, done, past, said.repeats, setting.losses) for look in setting.probe_suite.probes]
    tokens = float(done.report.tokens.sum())
    every = statistics.median(train)
    numbers = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": 1,
        "round": {"seconds": every, "tokens": tokens},
        "expensive_interval": setting.probe_suite.expensive_interval,
        "max_overhead": setting.probe_suite.max_overhead,
        "looks": rows,
        "caveats": setting.caveats,
    }
    said.out.parent.mkdir(parents=True, exist_ok=True)
    said.out.write_text(json.dumps(numbers, indent=1) + "\n")
    print(
        f"a round of training: {every:.2f} s, {tokens:,.0f} tokens; expensive probes every "
        f"{setting.probe_suite.expensive_interval} rounds keep all within {setting.probe_suite.max_overhead:.0%}\n"
    )
    print(f"{'look':<12} {'when':>5} {'forward tokens':>15} {'seconds':>9} {'range':>17} {'of a round':>11}")
    for row in rows:
        print(
            f"{row['look']:<12} {row['when']!s:>5} {row['tokens']:>15,.0f} {row['seconds']:>9.4f} "
            f"{row['least']:>8.4f}-{row['most']:.4f} {row['seconds'] / every:>11.1%}"
        )
    for caveat in setting.caveats:
        print(f"note: {caveat}")


def measure_probe(
    scheduled_probe: ScheduledProbe | DerivedMetric, result: RoundResult, history: MetricHistory, num_repeats: int, losses: HeldOutLosses
) -> dict[str, object]:
    """One look, some times over, as if it were the first; losses by token are paid by the look that asks first."""
    took: list[float] = []
    said: MetricValues = {}
    for _ in range(num_repeats):
        if scheduled_probe.name == "losses":
            losses.cache.clear()
        begun = perf_counter()
        said = (
            scheduled_probe.derive({"loss": torch.zeros(10)}, history)
            if isinstance(scheduled_probe, DerivedMetric)
            else scheduled_probe.probe(result)
        )
        took.append(perf_counter() - begun)
    plain = isinstance(scheduled_probe, DerivedMetric)
    return {
        "look": scheduled_probe.name,
        "when": "after" if plain else scheduled_probe.schedule,
        "tokens": 0.0 if plain else scheduled_probe.forward_tokens,
        "before round 1": not plain and has_initial(scheduled_probe),
        "seconds": statistics.median(took),
        "least": min(took),
        "most": max(took),
        "metrics": len(said),
    }


if __name__ == "__main__":
    main()
