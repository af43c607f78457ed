"""What a probe is: a function of one round that reads and never changes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from ..records import Record
from ..values import Round

Reading = dict[str | tuple[str, str], Tensor | float]
"""``{metric: value}`` or ``{(metric, domain): value}``; a value is one number for the federation, or one a client:
``[C]`` for the cohort, ``[N]`` for the fleet."""

Probe = Callable[[Round], Reading]


def recorded(reading: Reading, round: int, cohort: Iterable[int], size: int) -> list[Record]:
    """A reading as tidy records; a client that it says nothing of has none."""
    cohort, rows = list(cohort), []
    for key, value in reading.items():
        metric, domain = key if isinstance(key, tuple) else (key, "")
        if not isinstance(value, Tensor) or value.ndim == 0:
            rows.append(Record(round, metric, domain, -1, float(value)))
            continue
        clients = {len(cohort): cohort, size: range(size)}.get(len(value))
        if clients is None:
            raise ValueError(f"{metric}: {len(value)} values for a cohort of {len(cohort)} in a fleet of {size}")
        rows += [Record(round, metric, domain, client, number)
                 for client, number in zip(clients, value.tolist(), strict=True)]
    return rows
