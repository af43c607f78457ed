"""What a probe is: a function of one round that reads and never changes it."""

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
"""``{metric: value}`` or ``{(metric, domain): value}``; a value is one number for the federation, or one a client:
``[C]`` for the cohort, ``[N]`` for the fleet."""

Probe = Callable[[RoundResult], MetricValues]


def to_records(metrics: MetricValues, round: int, cohort: Iterable[int], num_clients: int) -> list[Record]:
    """A reading as tidy records; a client that it says nothing of has none."""
    cohort, rows = list(cohort), []
    for key, value in metrics.items():
        metric, domain = key if isinstance(key, tuple) else (key, "")
        if not isinstance(value, Tensor) or value.ndim == 0:
            rows.append(Record(round, metric, domain, -1, float(value)))
            continue
        clients = {len(cohort): cohort, num_clients: range(num_clients)}.get(len(value))
        if clients is None:
            raise ValueError(f"{metric}: {len(value)} values for a cohort of {len(cohort)} in a fleet of {num_clients}")
        rows += [Record(round, metric, domain, client, number) for client, number in zip(clients, value.tolist(), strict=True)]
    return rows


# The panel: which probes look at a round, what is concluded from what they saw, and what looking may cost.
#
# A ``ScheduledProbe`` is a probe with a name and a time: every round (1), every k rounds, ``expensive`` (every so many as the
# configuration or the budget says), ``ends`` (the first and the last round) or ``last``. A probe that has
# ``evaluate_state(state)`` is asked before the first round too. A ``DerivedMetric`` concludes from the numbers of the round and
# of the rounds before: ``MetricHistory`` is made from the run's own records, so that a run that resumes concludes the same.
#
# What a run records must not depend on the clock. So no probe is ever skipped because it was slow: the budget is kept
# by counting tokens before the first round. A training token costs three forward passes (one forward, two backward), a
# probe says how many tokens it sends forward at one look, and ``expensive_interval`` is the shortest period that keeps all looks
# within ``max_overhead`` of the whole. Seconds are measured beside it, look by look, and told; where they exceed the budget, the
# run says by how much and what would mend it.

Schedule = int | Literal["expensive", "ends", "last"]
CANDIDATE_INTERVALS = [5, 10, 20, 50, 100, 200, 500, 1000]  # that the budget may choose from
FORWARDS_PER_TRAIN_TOKEN = 3.0  # forward passes that training on a token costs


@dataclass(frozen=True, eq=False)
class ScheduledProbe:
    """A probe, the name that its seconds go by, when it looks, the tokens that it sends forward each time, and what a reader
    must be told with its numbers."""

    name: str
    probe: Probe
    schedule: Schedule = 1
    forward_tokens: float = 0.0
    note: str = ""


@dataclass(frozen=True, eq=False)
class MetricHistory:
    """Of every number of the federation, in the rounds so far: the sum, the lowest, the latest. NaN counts as unsaid."""

    total: dict[tuple[str, str], float] = field(default_factory=dict)
    lowest: dict[tuple[str, str], float] = field(default_factory=dict)
    latest: dict[tuple[str, str], float] = field(default_factory=dict)

    def add_records(self, records: Iterable[Record]) -> None:
        """Take the records of one more round in, in the order of writing."""
        for row in records:
            if row.client >= 0 or math.isnan(row.value):
                continue
            key = row.metric, row.domain
            self.total[key] = self.total.get(key, 0.0) + row.value
            self.lowest[key] = min(self.lowest.get(key, math.inf), row.value)
            self.latest[key] = row.value


DeriveMetrics = Callable[[MetricValues, MetricHistory], MetricValues]


@dataclass(frozen=True, eq=False)
class DerivedMetric:
    """What follows from the round's numbers and the past's; asked in every round in which any look looked."""

    name: str
    derive: DeriveMetrics


@dataclass(frozen=True, eq=False)
class ProbeSuite:
    """Everything that looks, in order. ``last_round`` is the run's last round, ``expensive_interval`` the
    period of the expensive probes."""

    probes: tuple[ScheduledProbe | DerivedMetric, ...]
    last_round: int
    expensive_interval: int = 5
    max_overhead: float = 0.2

    def evaluate_initial(self, state: FederatedState, history: MetricHistory) -> tuple[MetricValues, dict[str, float]]:
        """What is there before the first round, and the seconds of each look."""
        return self._collect(history, lambda look: _evaluate_initial(look, state))

    def __call__(self, result: RoundResult, history: MetricHistory) -> tuple[MetricValues, dict[str, float]]:
        """What is seen in a round, and the seconds of each look."""
        now = result.after.round
        return self._collect(
            history, lambda look: look.probe(result) if is_due(look.schedule, now, self.last_round, self.expensive_interval) else None
        )

    def _collect(
        self, history: MetricHistory, evaluate: Callable[[ScheduledProbe], MetricValues | None]
    ) -> tuple[MetricValues, dict[str, float]]:
        reading: MetricValues = {}
        seconds: dict[str, float] = {}
        for look in self.probes:
            begun = perf_counter()
            said = look.derive(reading, history) if isinstance(look, DerivedMetric) else evaluate(look)
            if said is None:
                continue
            reading.update(said)
            seconds[look.name] = seconds.get(look.name, 0.0) + perf_counter() - begun
        return reading, seconds


def _evaluate_initial(probe: ScheduledProbe, state: FederatedState) -> MetricValues | None:
    of: Any = getattr(probe.probe, "evaluate_state", None)
    return of(state) if has_initial(probe) else None


def has_initial(probe: ScheduledProbe) -> bool:
    """Whether a look is taken before the first round too."""
    return hasattr(probe.probe, "evaluate_state") and probe.schedule != "last"


def is_due(schedule: Schedule, current_round: int, last_round: int, expensive_interval: int) -> bool:
    """Whether a probe runs in round ``current_round``, 1 to ``last_round``; in the last round everybody looks."""
    if current_round == last_round:
        return True
    if isinstance(schedule, int):
        return current_round % schedule == 0
    return current_round % expensive_interval == 0 if schedule == "expensive" else schedule == "ends" and current_round == 1


def overhead_share(
    probes: Iterable[ScheduledProbe | DerivedMetric], train_tokens: float, last_round: int, expensive_interval: int
) -> float:
    """Share of the run's tokens, counted in forward passes, that all looks together take; ``train_tokens`` a round."""
    seen = sum(
        look.forward_tokens
        * (sum(is_due(look.schedule, now, last_round, expensive_interval) for now in range(1, last_round + 1)) + has_initial(look))
        for look in probes
        if isinstance(look, ScheduledProbe) and look.forward_tokens
    )
    whole = seen + FORWARDS_PER_TRAIN_TOKEN * train_tokens * last_round
    return seen / whole if whole else 0.0


def choose_interval(probes: Iterable[ScheduledProbe | DerivedMetric], train_tokens: float, last_round: int, max_overhead: float) -> int:
    """The shortest period of the expensive probes that keeps the panel within its budget; the longest where none does."""
    probes = tuple(probes)
    possible = [every for every in CANDIDATE_INTERVALS if every < last_round] or CANDIDATE_INTERVALS[:1]
    return next(
        (every for every in possible if overhead_share(probes, train_tokens, last_round, every) <= max_overhead), max(last_round, 1)
    )


def overhead_summary(timings: Iterable[Mapping[str, float]], suite: ProbeSuite) -> dict[str, Any]:
    """What the panel took of a run's seconds, from its ``timings``: the share, each look's, and the period of the expensive
    probes."""
    rows = list(timings)
    train, seen = (sum(row.get(phase, 0.0) for row in rows) for phase in ("train", "evaluate"))
    every: dict[str, float] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("probe."):
                every[key[6:]] = every.get(key[6:], 0.0) + value
    return {
        "share": seen / (train + seen) if train + seen else 0.0,
        "max_overhead": suite.max_overhead,
        "expensive_interval": suite.expensive_interval,
        "seconds": dict(sorted(every.items(), key=lambda item: -item[1])),
        "notes": [look.note for look in suite.probes if isinstance(look, ScheduledProbe) and look.note],
    }


def overhead_warning(summary: Mapping[str, Any], train_seconds: float, suite: ProbeSuite) -> str:
    """A sentence if the panel took more of the run than its budget, with the way out; "" if it did not."""
    found, seconds = summary["share"], summary["seconds"]
    if found <= suite.max_overhead or not seconds:
        return ""
    total, dearest = sum(seconds.values()), next(iter(seconds))
    sentence = (
        f"the panel took {found:.0%} of the run's time, its budget is {suite.max_overhead:.0%}; the dearest is "
        f"{dearest} with {seconds[dearest] / total:.0%} of that"
    )
    slow = {look.name for look in suite.probes if isinstance(look, ScheduledProbe) and look.schedule == "expensive"}
    mine = sum(value for name, value in seconds.items() if name in slow)
    for every in CANDIDATE_INTERVALS:
        left = total - mine * (1 - suite.expensive_interval / every)
        if every > suite.expensive_interval and mine and left / (left + train_seconds) <= suite.max_overhead:
            return f"{sentence}; evaluation.expensive_interval={every} would bring it to {left / (left + train_seconds):.0%}"
    if dearest == "losses":
        return f"{sentence}; a larger evaluation.interval or fewer evaluation.blocks_per_domain would bring it down"
    return f"{sentence}; leave {dearest} out of evaluation.probes, or raise evaluation.max_overhead"


def federation_value(metrics: MetricValues, metric: str, domain: str = "") -> float:
    """The federation's number in a reading, NaN if it is not there; ``(metric, "")`` and ``metric`` are the same."""
    value: Tensor | float | None = metrics.get((metric, domain))
    if value is None and not domain:
        value = metrics.get(metric)
    if value is None or (isinstance(value, Tensor) and value.ndim):
        return math.nan
    return float(value)
