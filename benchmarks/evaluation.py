"""The share of a run that is spent in looking: an experiment with all defaults on BBC News, phase by phase.

    python benchmarks/evaluation.py [--rounds 10]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from machine import options
from turns import written

from fedrift.experiment import parse
from fedrift.run import carry_out
from fedrift.runtime import Runtime
from fedrift.stock import Stock


def main(words: list[str] | None = None) -> int:
    ask = options(__doc__ or "")
    ask.add_argument("--rounds", type=int, default=10)
    said = ask.parse_args(words)
    plan = {"rounds": 1, "steps": 1, "batch": 1, "seq_len": 16} if said.small else {"rounds": said.rounds}
    with tempfile.TemporaryDirectory() as folder:
        run = carry_out(parse({"corpus": "bbc", "plan": plan}), Stock(Runtime(root=Path(folder))))
        timings = run.timings()
    names = sorted({name for row in timings for name in row if name != "round"})
    whole = sum(row.get(name, 0.0) for row in timings for name in ("train", "evaluate", "store", "final"))
    rows = [{"phase": name, "seconds": round(spent, 3), "share": round(spent / whole, 4)}
            for name in names if (spent := sum(row.get(name, 0.0) for row in timings)) > 0]
    first = sum(spent for name, spent in next(row for row in timings if row["round"] == 0).items() if name.startswith("probe."))
    rows.append({"phase": "round 0 (the anchor that runs of a study share)", "seconds": round(first, 3),
                 "share": round(first / whole, 4)})
    for row in rows:
        print(f"{row['phase']:48s} {row['seconds']:8.2f} s {row['share']:7.1%}")
    written(said.out, "evaluation", rows, rounds=plan["rounds"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
