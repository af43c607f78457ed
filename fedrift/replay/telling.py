"""What the parting of two runs says: sentences, and what the detectors find in the one and in the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..diagnose import Judgement, diagnose
from ..diagnose.cases import Shelf
from ..recording import Parting
from ..store import Run
from .parting import Apart, parted

FOUND = ("suspected", "confirmed")
SEEN = 0.0005  # nats; less is not to be seen in three digits


@dataclass(frozen=True)
class Change:
    """One failure, before and after the change."""

    failure: str
    origin: Judgement
    fork: Judgement

    @property
    def sentence(self) -> str:
        """``divergence: gone (was: loss is no number; ...)``."""
        was, now = self.origin.grade in FOUND, self.fork.grade in FOUND
        if was and now:
            return f"{self.failure}: in both ({self.origin.strength:.1f}x and {self.fork.strength:.1f}x its limit)"
        return f"{self.failure}: {'gone. It was ' if was else 'new. '}{(self.origin if was else self.fork).sentence}"


@dataclass(frozen=True)
class Told:
    """A fork beside its origin."""

    origin: str
    fork: str
    round: int
    twin: str  # the IID twin that both are held against; "" if none was run
    said: str  # what was changed
    reused: bool
    rounds: tuple[Apart, ...]
    findings: tuple[Change, ...]

    @property
    def sentence(self) -> str:
        """What the change did, in plain English."""
        words = f"{self.said[:1].upper()}{self.said[1:]} from round {self.round} on"
        seen = [row for row in self.rounds if row.round >= self.round and math.isfinite(row.difference)]
        if all(row.distance == 0 for row in self.rounds):
            return f"{words}, it is the same run, bit for bit."
        if not seen:
            return f"{words}, the servers part in round {self.first}; there is no finite loss to compare."
        first, last = seen[0], seen[-1]
        words += f", the loss after round {first.round} is {held(first)}"
        if last is not first:
            words += f"; after round {last.round} it is {held(last)}"
        return (f"{words}. The servers part in round {self.first} and end {self.rounds[-1].distance:.2f} times as far apart as "
                f"the origin went since round {self.round - 1}.")

    @property
    def first(self) -> int:
        """The first round after which the servers differ."""
        return next((row.round for row in self.rounds if row.distance != 0), self.round)

    def plain(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            **{name: getattr(self, name) for name in ("origin", "fork", "round", "twin", "said", "reused", "sentence")},
            "rounds": [{**asdict(row), "difference": row.difference} for row in self.rounds],
            "findings": [{"failure": each.failure, "sentence": each.sentence, "origin": short(each.origin),
                          "fork": short(each.fork)} for each in self.findings]}


def told(parting: Parting, known: Iterable[Run]) -> Told:
    """Both runs side by side. The fork is judged by the twin and the anchors of its origin: they are of the same seed."""
    origin, fork = parting.origin, parting.run
    shelf = Shelf.of([*known, origin, fork])
    twin = shelf.twin(origin)
    before = shelf.case(origin, twin)
    after = replace(before, run=fork.trajectory())
    return Told(origin.id, fork.id, parting.fork.round, twin.id if twin else "", parting.said, parting.reuses,
                tuple(parted(origin, fork)), compared(diagnose([before]), diagnose([after]), parting.fork.drop_client))


def compared(before: Sequence[Judgement], after: Sequence[Judgement], dropped: Sequence[int]) -> tuple[Change, ...]:
    """What is found in either. That those who were left out were left out is no finding."""
    now, ours = {each.failure: each for each in after}, set(dropped)
    pairs = [Change(each.failure, each, now[each.failure]) for each in before if each.failure in now]
    pairs = [each for each in pairs if each.origin.grade in FOUND or each.fork.grade in FOUND]
    return tuple(each for each in pairs if not (
        each.failure == "left out" and each.origin.grade not in FOUND and set(each.fork.clients) <= ours))


def held(row: Apart) -> str:
    """``4.301 nats per token instead of 4.420 (-0.119), most in business (-0.400)``."""
    words = f"{row.fork:.3f} nats per token instead of {row.origin:.3f} ({row.difference:+.3f})"
    most = max((domain for domain, value in row.domains.items() if abs(value) >= SEEN),
               key=lambda domain: abs(row.domains[domain]), default="")
    return words + (f", most in {most} ({row.domains[most]:+.3f})" if most else "")


def short(said: Judgement) -> dict[str, Any]:
    """What a script wants of a judgement."""
    return {name: getattr(said, name) for name in ("grade", "cause", "since", "clients", "where", "strength", "sentence")}


__all__ = ["Change", "Told", "told"]
