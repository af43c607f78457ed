"""A study of the small world: seconds for all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedrift.study import Study, parse_study
from tests.worlds import experiment


def said(folder: Path, **changes: Any) -> dict[str, Any]:
    base = experiment(folder, "plan.rounds=2", "evaluate.blocks=2", "evaluate.final=2").written()
    return {"name": "tiny", "question": "Does it run?", "base": base, "seeds": 2,
            "factors": {"algorithm": ["FedAvg", {"is": "FedProx", "mu": 0.1}], "partition.severity": [0.5, 1.0]}, **changes}


def study(folder: Path, **changes: Any) -> Study:
    return parse_study(said(folder, **changes))


TUNED = {"tuning": {"trials": 2, "seeds": [100], "set": {"plan.rounds": 1}, "space": {"plan.optimizer.lr": [0.1, 0.5, 1.0]},
                    "more": {"FedProx": {"algorithm.mu": [0.01, 0.1]}}}}
