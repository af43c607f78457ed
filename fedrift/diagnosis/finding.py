"""Define the input and the output of a detector: ``RunEvidence`` and ``Finding``."""

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
Thresholds = Mapping[str, Mapping[str, float]]  # detector family -> name of the threshold -> value

THRESHOLDS_FILE = Path(__file__).with_name("thresholds.yaml")


def load_thresholds(path: Path = THRESHOLDS_FILE) -> dict[str, Any]:
    """Load the thresholds of a YAML file, with its version and date."""
    return dict(yaml.safe_load(path.read_text()))


THRESHOLDS: Thresholds = MappingProxyType({name: value for name, value in load_thresholds().items() if isinstance(value, dict)})


@dataclass(frozen=True)
class RunInfo:
    """Facts about a run that its records do not contain.

    Attributes:
        local_steps: Local steps per round; 0 if unknown.
        domains: Names of J domains.
        tokens: ``[N][J]``, training tokens of each client in each domain.
    """

    local_steps: int = 0
    domains: tuple[str, ...] = ()
    tokens: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class RunEvidence:
    """One run together with the runs that it is compared with.

    Only ``run`` is required. Detectors that need a missing run report "not measured". All reference runs have the same seed and
    corpus, and train on as many tokens.

    Attributes:
        run: The run to diagnose.
        iid_baseline: The matched IID baseline, i.e. the same experiment with an IID partition.
        centralized: A run that trains on all data centrally.
        local_only: A run in which each client trains alone.
        fedsgd: A run without local steps.
        best_lr: The run with the best learning rate of a grid.
        local_steps_sweep: Runs with other numbers of local steps, by that number.
        info: Facts about the run that its records do not contain.
        seed: Seed of the run.
        thresholds: Thresholds of all detectors.
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
    """A curve that a finding is based on."""

    name: str
    rounds: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Finding:
    """The result of one detector for one run. A single run is never graded above ``suspected``.

    Attributes:
        failure: Name of the failure mode.
        grade: The grade.
        message: The result in plain English, without the grade.
        statistic: A number that increases with the harm and is compared with ``threshold``.
        baseline: The same number for the IID baseline.
        threshold: Threshold of the statistic.
        unit: Unit of statistic, baseline and threshold.
        is_positive: Whether all conditions of the detector are met.
        in_baseline: Whether the baseline meets the conditions; None without a baseline.
        first_round: First round with signs of the failure.
        clients: Affected clients.
        locations: Affected domains, layers or phenomena.
        is_confirmable: Whether enough was measured for further seeds to confirm the failure.
        is_event: Whether the failure either occurs or not. An event in a minority of seeds is still suspected.
        is_implementation_error: Whether the finding is a violated invariant of an algorithm. It needs no baseline.
        missing_input: Measurements that are missing for a confirmation.
        evidence: Curves that the finding is based on.
    """

    failure: str
    grade: Grade
    message: str
    statistic: float = math.nan
    baseline: float = math.nan
    threshold: float = math.nan
    unit: str = ""
    is_positive: bool = False
    in_baseline: bool | None = None
    first_round: int | None = None
    clients: tuple[int, ...] = ()
    locations: tuple[str, ...] = ()
    is_confirmable: bool = True
    is_event: bool = False
    is_implementation_error: bool = False
    missing_input: str = ""
    evidence: tuple[Series, ...] = ()

    @property
    def excess(self) -> float:
        """Return the statistic minus the baseline's, the difference in differences of one seed."""
        return self.statistic - self.baseline

    @property
    def strength(self) -> float:
        """Return the statistic divided by its threshold."""
        return self.statistic / self.threshold if self.threshold else math.nan


def make_not_measured(failure: str, missing_input: str) -> list[Finding]:
    """Build the findings of a detector that lacks an input. "Not measured" does not mean that there is no failure.

    Args:
        failure: Name of the failure mode.
        missing_input: The missing input, as a phrase that continues "it needs".
    """
    return [Finding(failure, "not measured", f"{failure} was not measured: it needs {missing_input}", missing_input=missing_input)]


def single_run_grade(is_positive: bool, *, noteworthy: bool = False) -> Grade:
    """Return the grade of a finding of one run: "suspected" or "none".

    Args:
        is_positive: Whether all conditions of the detector are met.
        noteworthy: Whether to suspect the failure although not all conditions are met.
    """
    return "suspected" if is_positive or noteworthy else "none"


def make_series(name: str, rounds: Sequence[int] | Any, values: Sequence[float] | Any) -> Series:
    """Build a series from rounds and values."""
    return Series(name, tuple(int(round) for round in rounds), tuple(float(value) for value in values))


# Assignment of domains to clients.


def domain_holders(info: RunInfo, min_ratio: float) -> np.ndarray:
    """Determine which clients hold which domains.

    A client holds a domain if the domain's share of the client's tokens is at least ``min_ratio`` times its share of all tokens.

    Returns:
        Bool, ``[N, J]``; ``[0, 0]`` if the token counts are unknown.
    """
    tokens = np.asarray(info.tokens, dtype=float)
    share = tokens / tokens.sum(axis=1, keepdims=True).clip(1e-12)
    return share >= min_ratio * tokens.sum(axis=0) / tokens.sum() - 1e-12 if tokens.size else np.zeros((0, 0), dtype=bool)


def clients_holding(evidence: RunEvidence, domains: Iterable[str]) -> tuple[int, ...]:
    """Return the clients that hold at least one of some domains; none if the token counts are unknown."""
    if not evidence.info.tokens:
        return ()
    is_holder, names = domain_holders(evidence.info, evidence.thresholds["forgetting"]["holder"]), evidence.info.domains
    columns = [names.index(name) for name in domains if name in names]
    return tuple(int(client) for client in np.flatnonzero(is_holder[:, columns].any(axis=1))) if columns else ()
