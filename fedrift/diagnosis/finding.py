"""Define the input and the output of a detector, ``RunEvidence`` and ``Finding``, and the quantities that several detectors share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import yaml

from ..core.lazy_imports import stats
from ..core.records import Trajectory, final_round_indices

Curve = tuple[np.ndarray, np.ndarray]
"""Rounds ``[K]`` and values ``[K]`` of a metric."""
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


# Quantities of trajectories: curves, final gaps, fluctuations and noise.


def read_curve(run: Trajectory | None, metric: str = "loss", domain: str = "") -> Curve:
    """Read a federation metric of a run.

    Args:
        run: The run, or None.
        metric: Name of the metric.
        domain: Name of the domain; "" is the whole federation.

    Returns:
        The rounds in which the metric was recorded and its values, which may be NaN. Both are empty if it was never recorded.
    """
    if run is None or not run.has_curve(metric, domain):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    recorded = run.observed_mask(metric, domain)
    return run.rounds[recorded], run.curve(metric, domain)[recorded]


def align_curves(
    run: Trajectory, baseline: Trajectory | None, metric: str = "loss", domain: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a metric of a run and of its baseline in the rounds that both have.

    Returns:
        Rounds, values of the run and values of the baseline, each ``[K]``.
    """
    (run_rounds, run_values), (baseline_rounds, baseline_values) = read_curve(run, metric, domain), read_curve(baseline, metric, domain)
    rounds = np.intersect1d(run_rounds, baseline_rounds)
    return rounds, run_values[np.searchsorted(run_rounds, rounds)], baseline_values[np.searchsorted(baseline_rounds, rounds)]


def final_gap(run: Trajectory, baseline: Trajectory | None, domain: str = "", num_last: int = 5) -> float:
    """Compute the mean loss of the last common evaluations, minus the baseline's.

    Round 0 is excluded if there are other rounds. The rounds are determined by the global loss, for domains as well.

    Args:
        run: The run.
        baseline: The run to compare with.
        domain: Name of the domain; "" is the whole federation.
        num_last: Number of last evaluations.

    Returns:
        The gap in nats per token; NaN without common evaluations.
    """
    run_loss, baseline_loss = final_losses(run, baseline, domain, num_last)
    return run_loss - baseline_loss


def final_loss(run: Trajectory, num_last: int = 5) -> float:
    """Compute the mean loss of the last evaluations in nats per token; NaN if there is none."""
    rounds, loss = read_curve(run)
    return float(loss[final_round_indices(rounds, num_last)].mean()) if len(loss) else math.nan


def final_losses(run: Trajectory, baseline: Trajectory | None, domain: str = "", num_last: int = 5) -> tuple[float, float]:
    """Compute the mean losses of a run and of its baseline over the rounds of ``final_gap``.

    Returns:
        Two losses in nats per token; NaN without common evaluations.
    """
    rounds = align_curves(run, baseline)[0]
    rounds = rounds[final_round_indices(rounds, num_last)]
    if baseline is None or not len(rounds) or not (run.has_curve("loss", domain) and baseline.has_curve("loss", domain)):
        return math.nan, math.nan
    run_index, baseline_index = np.searchsorted(run.rounds, rounds), np.searchsorted(baseline.rounds, rounds)
    return float(run.curve("loss", domain)[run_index].mean()), float(baseline.curve("loss", domain)[baseline_index].mean())


LEVEL = 0.95  # of the interval of noise


def noise_interval(values: np.ndarray, num_last: int = 5, num_tests: int = 1) -> float:
    """Compute how far the mean of the last differences may deviate from 0 by chance.

    The noise level is the residual deviation of the second half from a straight line. Successive evaluations are correlated. With lag-1
    correlation rho (Kendall's correction for small samples), the mean of n values has the variance
    s^2 / n (1 + 2 sum_k (1 - k/n) rho^k). Student's t uses the number of values of the second half times (1 - rho) / (1 + rho)
    (Bartlett, JRSS Suppl. 8, 1946).

    Args:
        values: Differences in order of the rounds.
        num_last: Number of last values that are averaged.
        num_tests: Number of simultaneous tests (Bonferroni).

    Returns:
        Half the width of the interval; 0 with fewer than three values, whose noise is unknown.
    """
    values = values[np.isfinite(values)]
    late = values[-max(num_last, len(values) // 2) :]
    count, num_last = len(late), min(num_last, len(late))
    if count < 3:
        return 0.0
    line = np.polyfit(np.arange(count), late, 1) if count > 4 else np.array([0.0, late.mean()])
    residuals = late - np.polyval(line, np.arange(count))
    degrees_of_freedom = count - (2 if count > 4 else 1)
    spread = float(np.sqrt((residuals**2).sum() / degrees_of_freedom))
    rho = lag1_autocorrelation(residuals)
    inflation = 1 + 2 * sum((1 - k / num_last) * rho**k for k in range(1, num_last))
    effective_freedom = max(2.0, degrees_of_freedom * (1 - rho) / (1 + rho))
    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / max(num_tests, 1), effective_freedom) * spread * np.sqrt(inflation / num_last))


def lag1_autocorrelation(residuals: np.ndarray) -> float:
    """Estimate the correlation of successive residuals, corrected for small samples.

    Returns:
        A value from 0 to 0.9; 0 with fewer than six residuals.
    """
    count, sum_of_squares = len(residuals), float((residuals**2).sum())
    if count < 6 or not sum_of_squares > 0:
        return 0.0
    correlation = float((residuals[1:] * residuals[:-1]).sum()) / sum_of_squares
    return float(np.clip(correlation + (1 + 3 * correlation) / count, 0.0, 0.9))


def domain_variability(run: Trajectory | None, rounds: np.ndarray) -> float:
    """Compute how much the domain losses fluctuate between evaluations, in the second half of ``rounds``.

    The value is the mean absolute change minus the absolute net change per evaluation, averaged over domains. A loss that only
    decreases does not fluctuate, however fast it decreases. (The study outcome ``movement`` is the mean absolute change alone.)

    Args:
        run: The run, or None.
        rounds: Rounds to measure in. They are given, so that a run and its baseline are measured in the same rounds.

    Returns:
        The fluctuation in nats; NaN without domain losses.
    """
    if run is None or not run.has_curve("loss"):
        return math.nan
    late = np.isin(run.rounds, rounds[len(rounds) // 2 :])
    by_domain = []
    for domain in run.domains_of("loss"):
        change = np.diff(run.curve("loss", domain)[late])
        change = change[np.isfinite(change)]
        by_domain += [(np.abs(change).sum() - abs(change.sum())) / len(change)] if len(change) else []
    return float(np.mean(by_domain)) if by_domain else math.nan


def client_table(run: Trajectory | None, metric: str) -> np.ndarray:
    """Read a metric per client, ``[rounds, N]``; without rounds if it is not recorded per client."""
    return run.client_table(metric) if run is not None and run.has_client_table(metric) else np.zeros((0, 0))


def find_last_layer(run: Trajectory, metric: str) -> str:
    """Return the last layer for which a metric is recorded, e.g. ``layer 03``, or ""."""
    layers = [domain for domain in run.domains_of(metric) if domain.startswith("layer") and "head" not in domain]
    return layers[-1] if layers else ""
