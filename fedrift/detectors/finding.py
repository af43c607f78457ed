"""What a detector is given and what it says: `Case` and `Finding`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml

from ..records import Trajectory

Grade = Literal["not measured", "none", "suspected", "confirmed"]
GRADES: tuple[Grade, ...] = ("not measured", "none", "suspected", "confirmed")
Limits = Mapping[str, Mapping[str, float]]

FILE = Path(__file__).with_name("thresholds.yaml")


def read_limits(path: Path = FILE) -> dict[str, Any]:
    """The thresholds of a file, with its version and date."""
    return dict(yaml.safe_load(path.read_text()))


LIMITS: Limits = MappingProxyType({name: value for name, value in read_limits().items() if isinstance(value, dict)})


@dataclass(frozen=True)
class Facts:
    """What is known of a run beside its records. ``tokens [N][J]``: training tokens of each client in each domain."""

    steps: int = 0  # local steps a round; 0 if unknown
    domains: tuple[str, ...] = ()
    tokens: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Case:
    """One run with all that it can be judged by. Only ``run`` must be there; what is missing is not measured.

    ``twin`` is the control of the same seed: the run dealt IID. The anchors are runs of the same seed, corpus and budget:
    ``central`` pooled, ``local`` everybody alone, ``fedsgd`` without local steps, ``best`` at the best learning rate of a
    grid. ``ladder``: the run with other numbers of local steps, by that number.
    """

    run: Trajectory
    twin: Trajectory | None = None
    central: Trajectory | None = None
    local: Trajectory | None = None
    fedsgd: Trajectory | None = None
    best: Trajectory | None = None
    ladder: Mapping[int, Trajectory] = field(default_factory=dict)
    facts: Facts = Facts()
    seed: int = 0
    limits: Limits = field(default_factory=lambda: LIMITS)


@dataclass(frozen=True)
class Series:
    """A series that a finding rests on."""

    name: str
    rounds: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Finding:
    """What one detector says of one run. A single run is never graded above ``suspected``.

    ``statistic`` grows with the harm and is called above ``limit``; ``base`` is the same number of the twin, and
    ``positive`` and ``shown`` (by the twin; None without one) whether all the detector's conditions are met. ``confirmable``:
    whether enough was measured that more seeds could confirm it; what is wanting is in ``needs``.
    """

    failure: str
    grade: Grade
    said: str  # in plain English, without the grade
    statistic: float = math.nan
    base: float = math.nan
    limit: float = math.nan
    unit: str = ""
    positive: bool = False
    shown: bool | None = None
    since: int | None = None  # round
    clients: tuple[int, ...] = ()
    where: tuple[str, ...] = ()  # domains or layers
    confirmable: bool = True
    event: bool = False  # happens or not: one seed is worth a word
    bug: bool = False  # a broken identity: no phenomenon, and needs no twin
    needs: str = ""
    evidence: tuple[Series, ...] = ()

    @property
    def excess(self) -> float:
        """The statistic above the twin's: one seed of the difference in differences."""
        return self.statistic - self.base

    @property
    def strength(self) -> float:
        """The statistic in units of its limit."""
        return self.statistic / self.limit if self.limit else math.nan


def not_measured(failure: str, needs: str) -> list[Finding]:
    """Nothing can be said, which is not the same as nothing being there."""
    return [Finding(failure, "not measured", f"{failure} was not measured: it needs {needs}", needs=needs)]


def judged(failure: str, statistic: float, base: float, limit: float, unit: str, *, positive: bool, said: str,
           shown: bool | None = None, notice: bool = False, **more: Any) -> Finding:
    """A finding of one run: suspected if positive, or if it is worth a word (``notice``)."""
    grade: Grade = "suspected" if positive or notice else "none"
    return Finding(failure, grade, said, statistic, base, limit, unit, positive, shown, **more)


def series(name: str, rounds: Sequence[int] | Any, values: Sequence[float] | Any) -> Series:
    return Series(name, tuple(int(round) for round in rounds), tuple(float(value) for value in values))
