"""What a detector is given and what it says: `RunEvidence` and `Finding`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import yaml

from ..core.records import Trajectory

Grade = Literal["not measured", "none", "suspected", "confirmed"]
GRADES: tuple[Grade, ...] = ("not measured", "none", "suspected", "confirmed")
Thresholds = Mapping[str, Mapping[str, float]]

THRESHOLDS_FILE = Path(__file__).with_name("thresholds.yaml")


def load_thresholds(path: Path = THRESHOLDS_FILE) -> dict[str, Any]:
    """The thresholds of a file, with its version and date."""
    return dict(yaml.safe_load(path.read_text()))


THRESHOLDS: Thresholds = MappingProxyType({name: value for name, value in load_thresholds().items() if isinstance(value, dict)})


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run beside its records. ``tokens [N][J]``: training tokens of each client in each domain."""

    local_steps: int = 0  # local steps a round; 0 if unknown
    domains: tuple[str, ...] = ()
    tokens: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class RunEvidence:
    """One run with all that it can be judged by. Only ``run`` must be there; what is missing is not measured.

    ``iid_baseline`` is the control of the same seed: the run dealt IID. The anchors are runs of the same seed, corpus and budget:
    ``centralized`` pooled, ``local_only`` everybody alone, ``fedsgd`` without local steps, ``best_lr`` at the best learning rate
    of a grid. ``local_steps_sweep``: the run with other numbers of local steps, by that number.
    """

    run: Trajectory
    iid_baseline: Trajectory | None = None
    centralized: Trajectory | None = None
    local_only: Trajectory | None = None
    fedsgd: Trajectory | None = None
    best_lr: Trajectory | None = None
    local_steps_sweep: Mapping[int, Trajectory] = field(default_factory=dict)
    info: RunInfo = RunInfo()
    seed: int = 0
    thresholds: Thresholds = field(default_factory=lambda: THRESHOLDS)


@dataclass(frozen=True)
class Series:
    """A series that a finding rests on."""

    name: str
    rounds: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Finding:
    """What one detector says of one run. A single run is never graded above ``suspected``.

    ``statistic`` grows with the harm and is called above ``threshold``; ``baseline`` is the same number of the baseline, and
    ``is_positive`` and ``in_baseline`` (None without one) whether all the detector's conditions are met. ``is_confirmable``:
    whether enough was measured that more seeds could confirm it; what is wanting is in ``missing_input``.
    """

    failure: str
    grade: Grade
    message: str  # in plain English, without the grade
    statistic: float = math.nan
    baseline: float = math.nan
    threshold: float = math.nan
    unit: str = ""
    is_positive: bool = False
    in_baseline: bool | None = None
    first_round: int | None = None  # round
    clients: tuple[int, ...] = ()
    locations: tuple[str, ...] = ()  # domains or layers
    is_confirmable: bool = True
    is_event: bool = False  # happens or not: one seed is worth a word
    is_implementation_error: bool = False  # a broken identity: no phenomenon, and needs no twin
    missing_input: str = ""
    evidence: tuple[Series, ...] = ()

    @property
    def excess(self) -> float:
        """The statistic above the baseline's: one seed of the difference in differences."""
        return self.statistic - self.baseline

    @property
    def strength(self) -> float:
        """The statistic in units of its limit."""
        return self.statistic / self.threshold if self.threshold else math.nan


def make_not_measured(failure: str, missing_input: str) -> list[Finding]:
    """Nothing can be said, which is not the same as nothing being there."""
    return [Finding(failure, "not measured", f"{failure} was not measured: it needs {missing_input}", missing_input=missing_input)]


def make_finding(
    failure: str,
    statistic: float,
    baseline: float,
    threshold: float,
    unit: str,
    *,
    is_positive: bool,
    message: str,
    in_baseline: bool | None = None,
    noteworthy: bool = False,
    first_round: int | None = None,
    clients: tuple[int, ...] = (),
    locations: tuple[str, ...] = (),
    is_confirmable: bool = True,
    is_event: bool = False,
    is_implementation_error: bool = False,
    missing_input: str = "",
    evidence: tuple[Series, ...] = (),
) -> Finding:
    """A finding of one run: suspected if positive, or if it is worth a word (``noteworthy``)."""
    grade: Grade = "suspected" if is_positive or noteworthy else "none"
    return Finding(
        failure,
        grade,
        message,
        statistic,
        baseline,
        threshold,
        unit,
        is_positive,
        in_baseline,
        first_round=first_round,
        clients=clients,
        locations=locations,
        is_confirmable=is_confirmable,
        is_event=is_event,
        is_implementation_error=is_implementation_error,
        missing_input=missing_input,
        evidence=evidence,
    )


def make_series(name: str, rounds: Sequence[int] | Any, values: Sequence[float] | Any) -> Series:
    return Series(name, tuple(int(round) for round in rounds), tuple(float(value) for value in values))


# Who holds which domain.


def domain_holders(info: RunInfo, min_ratio: float) -> np.ndarray:
    """Who holds which domain, ``[N, J]`` bool."""
    tokens = np.asarray(info.tokens, dtype=float)
    share = tokens / tokens.sum(axis=1, keepdims=True).clip(1e-12)
    return share >= min_ratio * tokens.sum(axis=0) / tokens.sum() - 1e-12 if tokens.size else np.zeros((0, 0), dtype=bool)


def clients_holding(case: RunEvidence, domains: Iterable[str]) -> tuple[int, ...]:
    """The clients that hold any of some domains; nobody where that is not known."""
    if not case.info.tokens:
        return ()
    held, names = domain_holders(case.info, case.thresholds["forgetting"]["holder"]), case.info.domains
    columns = [names.index(name) for name in domains if name in names]
    return tuple(int(client) for client in np.flatnonzero(held[:, columns].any(axis=1))) if columns else ()
