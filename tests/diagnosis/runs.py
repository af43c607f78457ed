"""Trajectories with given values, for the tests of detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedrift.core.records import Record, Trajectory

NAN = float("nan")


def run(clients: Mapping[str, Sequence[Sequence[float]]] | None = None, start: int = 0, **curves: Sequence[float]) -> Trajectory:
    """Return a trajectory. ``loss=[...]`` is the curve of the federation, ``loss__sport=[...]`` that of a domain, and ``clients={"loss":
    [[...]]}`` has one row per round.
    """
    records = []
    for name, values in curves.items():
        metric, _, domain = name.partition("__")
        metric, domain = metric.replace("_", "."), domain.replace("_", " ")
        records += [Record(start + k, metric, domain, -1, float(v)) for k, v in enumerate(values)]
    for metric, rows in (clients or {}).items():
        records += [Record(start + k, metric, "", c, float(v)) for k, row in enumerate(rows) for c, v in enumerate(row)]
    return Trajectory(tuple(records))


def falling(rounds: int = 40, first: float = 5.0, last: float = 4.0) -> np.ndarray:
    return last + (first - last) * 0.9 ** np.arange(rounds)
