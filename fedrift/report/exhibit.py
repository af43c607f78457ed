"""What the report shows of one run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..records import Trajectory


class Exhibit(NamedTuple):
    """One run, ready to be shown; ``experiment["partition_table"]`` may hold the dealt tokens."""

    name: str
    experiment: dict[str, Any]
    trajectory: Trajectory
    twin: Trajectory | None
    status: str  # as ``Run.status`` says it
    environment: dict[str, Any]

    @property
    def asked_rounds(self) -> int | None:
        """How many rounds the experiment plans, where it says so."""
        plan = self.experiment.get("plan")
        return plan.get("rounds") if isinstance(plan, dict) else None


def distinct(exhibits: Iterable[Exhibit]) -> list[Exhibit]:
    """The same exhibits with names that differ: a second "a" is "a (2)"."""
    taken: set[str] = set()
    named = []
    for exhibit in exhibits:
        name, again = exhibit.name, 1
        while name in taken:
            again += 1
            name = f"{exhibit.name} ({again})"
        taken.add(name)
        named.append(exhibit._replace(name=name))
    return named
