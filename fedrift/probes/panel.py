"""The panel: which probes look at a round, what is concluded from what they saw, and what looking may cost.

A ``Look`` is a probe with a name and a time: every round (1), every k rounds, ``deep`` (every so many as the plan or the
budget says), ``ends`` (the first and the last round) or ``last``. A probe that has ``of(state)`` is asked before the first
round too. An ``After`` concludes from the numbers of the round and of the rounds before: ``Past`` is made from the run's own
records, so that a run that resumes concludes the same.

What a run records must not depend on the clock. So no probe is ever skipped because it was slow: the budget is kept
by counting tokens before the first round. A training token costs three forward passes (one forward, two backward), a
probe says how many tokens it sends forward at one look, and ``deep`` is the shortest period that keeps all looks within
``budget`` of the whole. Seconds are measured beside it, look by look, and told; where they exceed the budget, the
run says by how much and what would mend it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

from torch import Tensor

from ..records import Record
from ..values import Round, State
from .probe import Probe, Reading

When = int | Literal["deep", "ends", "last"]
PERIODS = [5, 10, 20, 50, 100, 200, 500, 1000]  # that the budget may choose from
TRAIN = 3.0  # forward passes that training on a token costs


@dataclass(frozen=True, eq=False)
class Look:
    """A probe, the name that its seconds go by, when it looks, the tokens that it sends forward each time, and what a reader
    must be told with its numbers."""

    name: str
    probe: Probe
    when: When = 1
    tokens: float = 0.0
    note: str = ""


@dataclass(frozen=True, eq=False)
class Past:
    """Of every number of the federation, in the rounds so far: the sum, the lowest, the latest. NaN counts as unsaid."""

    total: dict[tuple[str, str], float] = field(default_factory=dict)
    lowest: dict[tuple[str, str], float] = field(default_factory=dict)
    latest: dict[tuple[str, str], float] = field(default_factory=dict)

    def note(self, rows: Iterable[Record]) -> None:
        """Take the records of one more round in, in the order of writing."""
        for row in rows:
            if row.client >= 0 or math.isnan(row.value):
                continue
            key = row.metric, row.domain
            self.total[key] = self.total.get(key, 0.0) + row.value
            self.lowest[key] = min(self.lowest.get(key, math.inf), row.value)
            self.latest[key] = row.value


Conclude = Callable[[Reading, Past], Reading]


@dataclass(frozen=True, eq=False)
class After:
    """What follows from the round's numbers and the past's; asked in every round in which any look looked."""

    name: str
    conclude: Conclude


@dataclass(frozen=True, eq=False)
class Panel:
    """Everything that looks, in order. ``last`` is the run's last round, ``deep`` the period of the deep looks."""

    looks: tuple[Look | After, ...]
    last: int
    deep: int = 5
    budget: float = 0.2

    def first(self, state: State, past: Past) -> tuple[Reading, dict[str, float]]:
        """What is there before the first round, and the seconds of each look."""
        return self._gather(past, lambda look: _of(look, state))

    def __call__(self, done: Round, past: Past) -> tuple[Reading, dict[str, float]]:
        """What is seen in a round, and the seconds of each look."""
        now = done.after.round
        return self._gather(past, lambda look: look.probe(done) if due(look.when, now, self.last, self.deep) else None)

    def _gather(self, past: Past, ask: Callable[[Look], Reading | None]) -> tuple[Reading, dict[str, float]]:
        reading: Reading = {}
        seconds: dict[str, float] = {}
        for look in self.looks:
            begun = perf_counter()
            said = look.conclude(reading, past) if isinstance(look, After) else ask(look)
            if said is None:
                continue
            reading.update(said)
            seconds[look.name] = seconds.get(look.name, 0.0) + perf_counter() - begun
        return reading, seconds


def _of(look: Look, state: State) -> Reading | None:
    of: Any = getattr(look.probe, "of", None)
    return of(state) if early(look) else None


def early(look: Look) -> bool:
    """Whether a look is taken before the first round too."""
    return hasattr(look.probe, "of") and look.when != "last"


def due(when: When, now: int, last: int, deep: int) -> bool:
    """Whether a look is to be taken in round ``now``, 1 to ``last``; in the last round everybody looks."""
    if now == last:
        return True
    if isinstance(when, int):
        return now % when == 0
    return now % deep == 0 if when == "deep" else when == "ends" and now == 1


def share(looks: Iterable[Look | After], train: float, last: int, deep: int) -> float:
    """Share of the run's tokens, counted in forward passes, that all looks together take; ``train`` tokens a round."""
    seen = sum(look.tokens * (sum(due(look.when, now, last, deep) for now in range(1, last + 1)) + early(look))
               for look in looks if isinstance(look, Look) and look.tokens)
    whole = seen + TRAIN * train * last
    return seen / whole if whole else 0.0


def period(looks: Iterable[Look | After], train: float, last: int, budget: float) -> int:
    """The shortest period of the deep looks that keeps the panel within its budget; the longest where none does."""
    looks = tuple(looks)
    possible = [every for every in PERIODS if every < last] or PERIODS[:1]
    return next((every for every in possible if share(looks, train, last, every) <= budget), max(last, 1))


def told(timings: Iterable[Mapping[str, float]], panel: Panel) -> dict[str, Any]:
    """What the panel took of a run's seconds, from its ``timings``: the share, each look's, and the period of the deep looks."""
    rows = list(timings)
    train, seen = (sum(row.get(phase, 0.0) for row in rows) for phase in ("train", "evaluate"))
    every: dict[str, float] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("probe."):
                every[key[6:]] = every.get(key[6:], 0.0) + value
    return {"share": seen / (train + seen) if train + seen else 0.0, "budget": panel.budget, "deep": panel.deep,
            "seconds": dict(sorted(every.items(), key=lambda item: -item[1])),
            "notes": [look.note for look in panel.looks if isinstance(look, Look) and look.note]}


def over(said: Mapping[str, Any], train: float, panel: Panel) -> str:
    """A sentence if the panel took more of the run than its budget, with the way out; "" if it did not."""
    found, seconds = said["share"], said["seconds"]
    if found <= panel.budget or not seconds:
        return ""
    total, dearest = sum(seconds.values()), next(iter(seconds))
    sentence = (f"the panel took {found:.0%} of the run's time, its budget is {panel.budget:.0%}; the dearest is "
                f"{dearest} with {seconds[dearest] / total:.0%} of that")
    slow = {look.name for look in panel.looks if isinstance(look, Look) and look.when == "deep"}
    mine = sum(value for name, value in seconds.items() if name in slow)
    for every in PERIODS:
        left = total - mine * (1 - panel.deep / every)
        if every > panel.deep and mine and left / (left + train) <= panel.budget:
            return f"{sentence}; evaluate.deep={every} would bring it to {left / (left + train):.0%}"
    if dearest == "losses":
        return f"{sentence}; a larger evaluate.every or fewer evaluate.blocks would bring it down"
    return f"{sentence}; leave {dearest} out of evaluate.panel, or raise evaluate.budget"


def number(reading: Reading, metric: str, domain: str = "") -> float:
    """The federation's number in a reading, NaN if it is not there; ``(metric, "")`` and ``metric`` are the same."""
    value: Tensor | float | None = reading.get((metric, domain))
    if value is None and not domain:
        value = reading.get(metric)
    if value is None or (isinstance(value, Tensor) and value.ndim):
        return math.nan
    return float(value)


__all__ = ["After", "Look", "Panel", "Past", "When", "due", "number", "over", "period", "share", "told"]
