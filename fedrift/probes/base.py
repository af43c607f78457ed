"""Define the probe interface, the schedule of probes and the overhead budget.

A probe is a function that computes metrics from one round. It reads the round and never changes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

from torch import Tensor

from ..core.records import Record
from ..core.types import FederatedState, RoundResult

MetricValues = dict[str | tuple[str, str], Tensor | float]
"""``{metric: value}`` or ``{(metric, domain): value}``. A value is either one number for the federation or one number per client,
``[C]`` for the cohort or ``[N]`` for all clients."""

Probe = Callable[[RoundResult], MetricValues]
"""A function that computes metrics from one round. It may also have a method ``evaluate_state(state) -> MetricValues``, which runs
before the first round. Example::

    def cohort_size(result: RoundResult) -> MetricValues:
        return {"cohort.size": float(len(result.cohort))}

    ScheduledProbe("cohort size", cohort_size, schedule=1)
"""


def to_records(metrics: MetricValues, round: int, cohort: Iterable[int], num_clients: int) -> list[Record]:
    """Convert metrics to tidy records, one per number.

    Args:
        metrics: Metrics of one round.
        round: Number of the round.
        cohort: C client ids, in the order of the ``[C]`` values.
        num_clients: Number of all clients, N.

    Returns:
        One record per scalar metric (client -1) and one per client of a per-client metric.

    Raises:
        ValueError: A per-client metric has neither C nor N values.
    """
    cohort, rows = list(cohort), []
    for key, value in metrics.items():
        metric, domain = key if isinstance(key, tuple) else (key, "")
        if not isinstance(value, Tensor) or value.ndim == 0:
            rows.append(Record(round, metric, domain, -1, float(value)))
            continue
        clients = {len(cohort): cohort, num_clients: range(num_clients)}.get(len(value))
        if clients is None:
            raise ValueError(
                f"metric {metric!r} has {len(value)} values; return one number, one value for each of the {len(cohort)} clients "
                f"of the cohort, or one for each of all {num_clients} clients"
            )
        rows += [Record(round, metric, domain, client, number) for client, number in zip(clients, value.tolist(), strict=True)]
    return rows


# Schedules and the overhead budget. A derived metric reads only the run's own records, so a resumed run derives the same values.
#
# Recorded metrics must not depend on measured time, so no probe is skipped because it is slow. Instead, the budget counts tokens
# before the first round. One training token costs three forward passes (one forward, two for the backward pass). Each probe
# declares how many tokens it sends through the model. ``expensive_interval`` is the shortest interval that keeps the share of all
# probes within ``max_overhead``. Seconds are measured as well; if they exceed the budget, the run reports a warning with a remedy.

Schedule = int | Literal["expensive", "first_and_last", "last"]
"""When a probe runs: every that many rounds, every ``expensive_interval`` rounds, in the first and last round, or in the last round
only. Every probe runs in the last round."""
CANDIDATE_INTERVALS = [5, 10, 20, 50, 100, 200, 500, 1000]  # rounds; candidates for expensive_interval
FORWARDS_PER_TRAIN_TOKEN = 3.0  # one forward pass, and a backward pass that costs about two


@dataclass(frozen=True, eq=False)
class ScheduledProbe:
    """A probe with its name and schedule.

    Example::

        ScheduledProbe("hidden", probe, schedule="expensive", forward_tokens=2.0 * num_tokens)

    Attributes:
        name: Name under which the probe's seconds are reported.
        probe: The probe. If it has a method ``evaluate_state``, that method runs before the first round.
        schedule: When the probe runs, see ``Schedule``.
        forward_tokens: Tokens that one evaluation of the probe sends through the model.
        note: A note that is stored with the run, e.g. the settings of a scoring library.
    """

    name: str
    probe: Probe
    schedule: Schedule = 1
    forward_tokens: float = 0.0
    note: str = ""


@dataclass(frozen=True, eq=False)
class MetricHistory:
    """Sum, minimum and latest value of every federation metric over the rounds so far.

    Keys are ``(metric, domain)``. Per-client values and NaN are ignored.
    """

    total: dict[tuple[str, str], float] = field(default_factory=dict)
    lowest: dict[tuple[str, str], float] = field(default_factory=dict)
    latest: dict[tuple[str, str], float] = field(default_factory=dict)

    def add_records(self, records: Iterable[Record]) -> None:
        """Add the records of one round, in the order in which they were written."""
        for row in records:
            if row.client >= 0 or math.isnan(row.value):
                continue
            key = row.metric, row.domain
            self.total[key] = self.total.get(key, 0.0) + row.value
            self.lowest[key] = min(self.lowest.get(key, math.inf), row.value)
            self.latest[key] = row.value


DeriveMetrics = Callable[[MetricValues, MetricHistory], MetricValues]
"""``(metrics of this round so far, history of earlier rounds) -> further metrics``."""


@dataclass(frozen=True, eq=False)
class DerivedMetric:
    """Metrics that are derived from other metrics of this round and of earlier rounds.

    ``derive`` is called in every round in which the probe suite runs. Example::

        def loss_increase(metrics: MetricValues, history: MetricHistory) -> MetricValues:
            loss = federation_value(metrics, "loss")
            return {"loss.increase": loss - history.lowest.get(("loss", ""), loss)}

        DerivedMetric("loss increase", loss_increase)
    """

    name: str
    derive: DeriveMetrics


@dataclass(frozen=True, eq=False)
class ProbeSuite:
    """All probes and derived metrics of a run, in order.

    Attributes:
        probes: The probes and derived metrics. A derived metric sees the metrics of the entries before it.
        last_round: Number of the run's last round.
        expensive_interval: Rounds between evaluations of the expensive probes.
        max_overhead: Share of the run that all probes together may take.
    """

    probes: tuple[ScheduledProbe | DerivedMetric, ...]
    last_round: int
    expensive_interval: int = 5
    max_overhead: float = 0.2

    def evaluate_initial(self, state: FederatedState, history: MetricHistory) -> tuple[MetricValues, dict[str, float]]:
        """Evaluate all probes that apply before the first round.

        Args:
            state: The initial state.
            history: Metrics of earlier rounds, empty at the start of a run.

        Returns:
            The metrics, and the seconds of each probe by name.
        """
        return self._collect(history, lambda entry: _evaluate_initial(entry, state))

    def __call__(self, result: RoundResult, history: MetricHistory) -> tuple[MetricValues, dict[str, float]]:
        """Evaluate all probes that are due in a round.

        Args:
            result: The round.
            history: Metrics of the earlier rounds.

        Returns:
            The metrics, and the seconds of each probe by name.
        """
        current_round = result.after.round
        return self._collect(
            history,
            lambda entry: entry.probe(result) if is_due(entry.schedule, current_round, self.last_round, self.expensive_interval) else None,
        )

    def _collect(
        self, history: MetricHistory, evaluate: Callable[[ScheduledProbe], MetricValues | None]
    ) -> tuple[MetricValues, dict[str, float]]:
        """Evaluate all entries in order and measure their seconds; entries that return None are not due."""
        metrics: MetricValues = {}
        seconds: dict[str, float] = {}
        for entry in self.probes:
            start = perf_counter()
            new_metrics = entry.derive(metrics, history) if isinstance(entry, DerivedMetric) else evaluate(entry)
            if new_metrics is None:
                continue
            metrics.update(new_metrics)
            seconds[entry.name] = seconds.get(entry.name, 0.0) + perf_counter() - start
        return metrics, seconds


def _evaluate_initial(probe: ScheduledProbe, state: FederatedState) -> MetricValues | None:
    evaluate_state: Any = getattr(probe.probe, "evaluate_state", None)
    return evaluate_state(state) if has_initial(probe) else None


def has_initial(probe: ScheduledProbe) -> bool:
    """Return whether a probe also runs before the first round."""
    return hasattr(probe.probe, "evaluate_state") and probe.schedule != "last"


def is_due(schedule: Schedule, current_round: int, last_round: int, expensive_interval: int) -> bool:
    """Return whether a probe with a schedule runs in a round.

    Args:
        schedule: The schedule of the probe.
        current_round: The round, from 1 to ``last_round``.
        last_round: The run's last round, in which every probe runs.
        expensive_interval: Rounds between evaluations of the expensive probes.
    """
    if current_round == last_round:
        return True
    if isinstance(schedule, int):
        return current_round % schedule == 0
    return current_round % expensive_interval == 0 if schedule == "expensive" else schedule == "first_and_last" and current_round == 1


def overhead_share(
    probes: Iterable[ScheduledProbe | DerivedMetric], train_tokens: float, last_round: int, expensive_interval: int
) -> float:
    """Compute the share of all probes in the run's total cost, both measured in tokens times forward passes.

    Args:
        probes: Probes and derived metrics; derived metrics cost nothing.
        train_tokens: Training tokens of one round, over all clients of the cohort.
        last_round: Number of rounds.
        expensive_interval: Rounds between evaluations of the expensive probes.
    """
    probe_tokens = sum(
        entry.forward_tokens
        * (
            sum(is_due(entry.schedule, current_round, last_round, expensive_interval) for current_round in range(1, last_round + 1))
            + has_initial(entry)
        )
        for entry in probes
        if isinstance(entry, ScheduledProbe) and entry.forward_tokens
    )
    total_tokens = probe_tokens + FORWARDS_PER_TRAIN_TOKEN * train_tokens * last_round
    return probe_tokens / total_tokens if total_tokens else 0.0


def choose_interval(probes: Iterable[ScheduledProbe | DerivedMetric], train_tokens: float, last_round: int, max_overhead: float) -> int:
    """Choose the shortest interval of the expensive probes that keeps all probes within the budget.

    Args:
        probes: Probes and derived metrics.
        train_tokens: Training tokens of one round, over all clients of the cohort.
        last_round: Number of rounds.
        max_overhead: Largest allowed share of all probes, see ``overhead_share``.

    Returns:
        An interval in rounds. It is ``last_round`` if no candidate keeps the probes within the budget.
    """
    probes = tuple(probes)
    candidates = [interval for interval in CANDIDATE_INTERVALS if interval < last_round] or CANDIDATE_INTERVALS[:1]
    return next(
        (interval for interval in candidates if overhead_share(probes, train_tokens, last_round, interval) <= max_overhead),
        max(last_round, 1),
    )


def overhead_summary(timings: Iterable[Mapping[str, float]], suite: ProbeSuite) -> dict[str, Any]:
    """Summarize the seconds that the probes of a run took.

    Args:
        timings: Seconds of each phase, one mapping per round, with keys such as ``train``, ``evaluate`` and ``probe.<name>``.
        suite: The probe suite of the run.

    Returns:
        The probes' share of the run, the budget, the interval of the expensive probes, the seconds of each probe, and the notes.
    """
    rows = list(timings)
    train, evaluate = (sum(row.get(phase, 0.0) for row in rows) for phase in ("train", "evaluate"))
    seconds: dict[str, float] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("probe."):
                seconds[key[6:]] = seconds.get(key[6:], 0.0) + value
    return {
        "share": evaluate / (train + evaluate) if train + evaluate else 0.0,
        "max_overhead": suite.max_overhead,
        "expensive_interval": suite.expensive_interval,
        "seconds": dict(sorted(seconds.items(), key=lambda item: -item[1])),
        "notes": [entry.note for entry in suite.probes if isinstance(entry, ScheduledProbe) and entry.note],
    }


def overhead_warning(summary: Mapping[str, Any], train_seconds: float, suite: ProbeSuite) -> str:
    """Describe by how much the probes exceeded their budget, and what would reduce their cost.

    Args:
        summary: The result of ``overhead_summary``.
        train_seconds: Seconds that the run spent on training.
        suite: The probe suite of the run.

    Returns:
        One sentence, or "" if the probes stayed within the budget.
    """
    share, seconds = summary["share"], summary["seconds"]
    if share <= suite.max_overhead or not seconds:
        return ""
    total, slowest = sum(seconds.values()), next(iter(seconds))
    sentence = (
        f"the probes took {100 * share:.0f} % of the run's time, which exceeds the budget of {100 * suite.max_overhead:.0f} %; "
        f"the slowest probe, {slowest}, took {100 * seconds[slowest] / total:.0f} % of the probe time"
    )
    expensive = {entry.name for entry in suite.probes if isinstance(entry, ScheduledProbe) and entry.schedule == "expensive"}
    expensive_seconds = sum(value for name, value in seconds.items() if name in expensive)
    for interval in CANDIDATE_INTERVALS:
        reduced = total - expensive_seconds * (1 - suite.expensive_interval / interval)
        if interval > suite.expensive_interval and expensive_seconds and reduced / (reduced + train_seconds) <= suite.max_overhead:
            share = 100 * reduced / (reduced + train_seconds)
            return f"{sentence}; evaluation.expensive_interval={interval} would reduce the share to {share:.0f} %"
    if slowest == "losses":
        return f"{sentence}; a larger evaluation.interval or fewer evaluation.blocks_per_domain would reduce the share"
    return f"{sentence}; remove {slowest} from evaluation.probes or raise evaluation.max_overhead"


def federation_value(metrics: MetricValues, metric: str, domain: str = "") -> float:
    """Return a metric's value for the federation.

    Args:
        metrics: Metrics of one round.
        metric: Name of the metric.
        domain: Name of the domain; "" is the whole federation, for which ``metric`` and ``(metric, "")`` are equivalent keys.

    Returns:
        The value, or NaN if the metric is missing or has one value per client.
    """
    value: Tensor | float | None = metrics.get((metric, domain))
    if value is None and not domain:
        value = metrics.get(metric)
    if value is None or (isinstance(value, Tensor) and value.ndim):
        return math.nan
    return float(value)
