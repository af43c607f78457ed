"""Tables of runs as the study runner makes them, with given true effects."""

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
    """Return every condition with its IID baseline, which is shared by all severities. ``truth(algorithm, severity, participation)`` is the
    true value; a seed shifts all its runs.
    """
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
    """Return the same runs, of which some diverged and have no value."""
    return runs.assign(diverged=runs["diverged"] | which, loss=runs["loss"].mask(which))


def make_arms(arms: dict[str, float], seeds: int = 8, metric: str = "loss", noise: float = 0.005, **more) -> pd.DataFrame:
    """Return one run of each arm in each seed, with the given true value and without an IID baseline. ``more`` are further columns."""
    rng = np.random.default_rng(0)
    rows = [
        {"run": f"{arm} {seed}", "seed": seed, "iid": False, "diverged": False, "iid_baseline": "", "stage": "main", "condition": arm,
         "arm": arm, metric: value + noise * rng.normal(), **more}
        for arm, value in arms.items()
        for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def with_baselines(runs: pd.DataFrame, **values) -> pd.DataFrame:
    """Return the runs with one IID baseline per seed, which all of them share. ``values`` are columns of the baselines."""
    baselines = [
        {
            "run": f"iid {seed}",
            "seed": seed,
            "iid": True,
            "diverged": False,
            "iid_baseline": "",
            "stage": "main",
            "condition": "iid",
            **values,
        }
        for seed in sorted(set(runs["seed"]))
    ]
    runs = runs.assign(iid_baseline=[f"iid {seed}" for seed in runs["seed"]])
    return pd.concat([runs, pd.DataFrame(baselines)], ignore_index=True)
