"""Measure which share of a run evaluation takes: the time of each phase of a default experiment on BBC News.

python benchmarks/evaluation.py [--rounds 10]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from comparison import write_rows
from machine import make_parser

from fedrift.config.runtime import Runtime
from fedrift.config.schema import parse_config
from fedrift.engine.cache import ResourceCache
from fedrift.engine.run import run_experiment


def main(arguments: list[str] | None = None) -> int:
    """Run the experiment, print the time of each phase and write the results."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=10, help="the number of rounds")
    args = parser.parse_args(arguments)
    small_training = {"num_rounds": 1, "local_steps": 1, "batch_size": 1, "max_seq_length": 16}
    training = small_training if args.small else {"num_rounds": args.rounds}
    with tempfile.TemporaryDirectory() as folder:
        run = run_experiment(parse_config({"dataset": "bbc", "training": training}), ResourceCache(Runtime(runs_dir=Path(folder))))
        timings = run.timings()
    names = sorted({name for row in timings for name in row if name != "round"})
    total = sum(row.get(name, 0.0) for row in timings for name in ("train", "evaluate", "store", "final"))
    rows = [
        {"phase": name, "seconds": round(seconds, 3), "share": round(seconds / total, 4)}
        for name in names
        if (seconds := sum(row.get(name, 0.0) for row in timings)) > 0
    ]
    initial_evaluation = sum(
        seconds for name, seconds in next(row for row in timings if row["round"] == 0).items() if name.startswith("probe.")
    )
    rows.append(
        {
            "phase": "round 0 (the anchor that runs of a study share)",
            "seconds": round(initial_evaluation, 3),
            "share": round(initial_evaluation / total, 4),
        }
    )
    for row in rows:
        print(f"{row['phase']:48s} {row['seconds']:8.2f} s {row['share']:7.1%}")
    write_rows(args.out, "evaluation", rows, rounds=training["num_rounds"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
