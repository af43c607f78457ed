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

from fedrift.experiment import parse
from fedrift.probes import After, Look, Losses, Past, Reading, recorded
from fedrift.probes.panel import early
from fedrift.rounds import rounds
from fedrift.runtime import Runtime
from fedrift.setting import prepare
from fedrift.stock import Stock
from fedrift.values import Round

GROUPS = ["language", "updates", "fairness", "cost", "hidden", "attention", "barriers", "adapters", "general", "syntax", "text"]
ASKED = {
    "corpus": "bbc", "model": "pocket", "tune": {"is": "Lora", "rank": 8},
    "partition": {"is": "TopicMix", "clients": 10, "severity": 1.0},
    "plan": {"rounds": 2, "participation": 0.5, "steps": 10, "batch": 8, "seq_len": 64, "optimizer": {"is": "Sgd", "lr": 1.0}},
    "evaluate": {"panel": GROUPS, "final": 0},
}
HERE = Path(__file__).parent / "results" / "probes.json"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--data", type=Path, default=None, help="local corpora, for general text")
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--out", type=Path, default=HERE)
    said = asked.parse_args()
    torch.set_num_threads(1)
    experiment = parse(ASKED)
    with TemporaryDirectory() as folder:
        setting = prepare(experiment, Stock(Runtime(root=Path(folder), data=said.data, device="cpu", threads=1)))
        past = Past()
        past.note(recorded(setting.panel.first(setting.state, past)[0], 0, [], setting.fleet.size))
        begun, train = perf_counter(), []
        for each in rounds(setting.state, setting.fleet, experiment.algorithm, until=2, cohort=setting.cohort, seed=0):
            train.append(perf_counter() - begun)
            done, begun = each, perf_counter()
        rows = [measured(look, done, past, said.repeats, setting.losses) for look in setting.panel.looks]
    tokens = float(done.report.tokens.sum())
    every = statistics.median(train)
    numbers = {
        "date": date.today().isoformat(), "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
        "threads": 1, "round": {"seconds": every, "tokens": tokens}, "deep": setting.panel.deep, "budget": setting.panel.budget,
        "looks": rows, "caveats": setting.caveats}
    said.out.parent.mkdir(parents=True, exist_ok=True)
    said.out.write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"a round of training: {every:.2f} s, {tokens:,.0f} tokens; deep looks every {setting.panel.deep} rounds keep "
          f"the panel within {setting.panel.budget:.0%}\n")
    print(f"{'look':<12} {'when':>5} {'forward tokens':>15} {'seconds':>9} {'range':>17} {'of a round':>11}")
    for row in rows:
        print(f"{row['look']:<12} {row['when']!s:>5} {row['tokens']:>15,.0f} {row['seconds']:>9.4f} "
              f"{row['least']:>8.4f}-{row['most']:.4f} {row['seconds'] / every:>11.1%}")
    for caveat in setting.caveats:
        print(f"note: {caveat}")


def measured(look: Look | After, done: Round, past: Past, repeats: int, losses: Losses) -> dict[str, object]:
    """One look, some times over, as if it were the first; losses by token are paid by the look that asks first."""
    took: list[float] = []
    said: Reading = {}
    for _ in range(repeats):
        if look.name == "losses":
            losses.seen.clear()
        begun = perf_counter()
        said = look.conclude({"loss": torch.zeros(10)}, past) if isinstance(look, After) else look.probe(done)
        took.append(perf_counter() - begun)
    plain = isinstance(look, After)
    return {"look": look.name, "when": "after" if plain else look.when, "tokens": 0.0 if plain else look.tokens,
            "before round 1": not plain and early(look), "seconds": statistics.median(took), "least": min(took),
            "most": max(took), "metrics": len(said)}


if __name__ == "__main__":
    main()
