"""What detectors say of runs that still go on: each row that has changed is judged again, a few a look.

Every run is held against its IID twin alone; `fedrift diagnose` also uses the anchors that are among the runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from ..detectors.finding import Case
from ..diagnose import SHORTEST, diagnose
from ..diagnose.cases import facts
from ..errors import UserError
from .scene import Row, Seen
from .tail import Tail

BUDGET = 0.5  # seconds a look
AGAIN = 0.25  # of a row's rounds must be new before it is judged again, unless a run ended


class Judge:
    """Keeps the findings of every row, and what they rest on."""

    def __init__(self, tails: Mapping[str, Tail]) -> None:
        self.tails = tails
        self.known: dict[str, tuple[int, int, list[dict[str, Any]]]] = {}  # row -> rounds, ended, findings

    def look(self, rows: tuple[Row, ...]) -> tuple[dict[str, Any], ...]:
        """The graver ones first; rows are judged again while the budget lasts, those never judged before the others."""
        begun = perf_counter()
        wanted = [row for row in rows if row.role == "run" and self._due(row)]
        for row in sorted(wanted, key=lambda row: self.known.get(row.key, (-1,))[0]):
            self.known[row.key] = (*basis(row), self._judged(row))
            if perf_counter() - begun > BUDGET:
                break
        return gathered([finding for row in rows for finding in self.known.get(row.key, (0, 0, []))[2]])

    def _due(self, row: Row) -> bool:
        rounds, ended = basis(row)
        if max((run.round for run in row.runs), default=0) < SHORTEST:
            return False
        before = self.known.get(row.key)
        return before is None or ended != before[1] or rounds - before[0] > AGAIN * sum(run.rounds for run in row.runs)

    def _judged(self, row: Row) -> list[dict[str, Any]]:
        cases = [case for run in row.runs if run.round and (case := self._case(run))]
        try:
            judgements = diagnose(cases) if cases else []
        except (UserError, ValueError):  # rows that are being written
            return []
        return [{"arm": row.arm, "failure": each.failure, "grade": each.grade, "cause": each.cause,
                 "since": each.since, "strength": float(each.strength), "sentence": untagged(each.sentence)}
                for each in judgements if each.grade in ("suspected", "confirmed")]

    def _case(self, run: Seen) -> Case | None:
        tail, twin = self.tails.get(run.run), self.tails.get(run.twin)
        try:
            if tail is None:
                return None
            return Case(tail.run.trajectory(), twin.run.trajectory() if twin else None, facts=facts(tail.run.experiment),
                        seed=run.seed)
        except (UserError, OSError):
            return None


def gathered(every: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Each failure once a grade and a cause, told by its strongest row, ``also`` naming the others: the gravest first, and
    what the skew did before what the twins show too."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for each in sorted(every, key=lambda each: -each["strength"]):
        groups.setdefault((each["failure"], each["grade"], each["cause"]), []).append(each)
    told = [{**first, "also": [other["arm"] for other in others]} for first, *others in groups.values()]
    return tuple(sorted(told, key=lambda each: (each["grade"] != "confirmed", each["cause"] == "shared", -each["strength"])))


def untagged(sentence: str) -> str:
    """A judgement's sentence without its grade, which is shown beside it."""
    rest = sentence.partition(": ")[2]
    return rest[:1].upper() + rest[1:]


def basis(row: Row) -> tuple[int, int]:
    """What a judgement rests on: rounds, and runs that ended."""
    return sum(run.round for run in row.runs), sum(run.state in ("finished", "failed") for run in row.runs)
