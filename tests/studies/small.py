"""A study of the small experiment, which runs within seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedrift.studies import Study, parse_study
from tests.small_experiment import experiment


def study_values(folder: Path, **changes: Any) -> dict[str, Any]:
    base = experiment(folder, "training.num_rounds=2", "evaluation.blocks_per_domain=2", "evaluation.final_blocks_per_domain=2").to_dict()
    return {
        "name": "tiny",
        "question": "Does it run?",
        "base": base,
        "seeds": 2,
        "factors": {"algorithm": ["FedAvg", {"type": "FedProx", "mu": 0.1}], "partition.severity": [0.5, 1.0]},
        **changes,
    }


def study(folder: Path, **changes: Any) -> Study:
    return parse_study(study_values(folder, **changes))


TUNED = {
    "tuning": {
        "trials": 2,
        "seeds": [100],
        "overrides": {"training.num_rounds": 1},
        "space": {"training.client_optimizer.lr": [0.1, 0.5, 1.0]},
        "space_by_level": {"FedProx": {"algorithm.mu": [0.01, 0.1]}},
    }
}
