"""Studies made of numbers: a frame of runs as the study runner makes it, with a known truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

FACTORS = ["algorithm", "partition", "partition.severity", "training.participation_rate"]


def study(
    truth: Callable[..., float],
    seeds: int = 10,
    algorithms=("FedAvg", "Scaffold"),
    severities=(0.5, 1.0),
    participations=(1.0,),
    noise: float = 0.01,
    draw: int = 0,
) -> pd.DataFrame:
    """Every arm with its twin; one twin for all severities. ``truth(algorithm, severity, participation)``; a seed moves
    all its runs."""
    rng, rows = np.random.default_rng(draw), []
    for seed in range(seeds):
        own = rng.normal(0, 1)
        for algorithm in algorithms:
            for participation in participations:
                for severity in (0.0, *severities):
                    name = f"{algorithm} {participation} {seed}"
                    rows.append(
                        {
                            "run": f"{name} {severity}",
                            "study": "made",
                            "seed": seed,
                            "iid": severity == 0.0,
                            "diverged": False,
                            "iid_baseline": f"{name} 0.0" if severity else "",
                            "algorithm": algorithm,
                            "partition": "TopicMix",
                            "partition.severity": severity,
                            "training.participation_rate": participation,
                            "loss": own + truth(algorithm, severity, participation) + rng.normal(0, noise),
                        }
                    )
    return pd.DataFrame(rows)


def diverge(runs: pd.DataFrame, which: pd.Series) -> pd.DataFrame:
    """The same runs, of which some diverged and left no number."""
    return runs.assign(diverged=runs["diverged"] | which, loss=runs["loss"].mask(which))
