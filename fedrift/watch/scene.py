"""What there is to be seen at a moment: every run in its place, how far all is, and what was found. Plain values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

STATES = ("finished", "running", "unfinished", "missing", "failed")
WORDS = {"finished": "finished", "running": "running", "unfinished": "begun, nobody at work on it", "missing": "not begun",
         "failed": "failed"}


@dataclass(frozen=True)
class Seen:
    """One run as it stands. ``gap``: its loss above the IID twin's; NaN is what is not known."""

    run: str
    seed: int
    state: str
    round: int
    rounds: int
    loss: float
    gap: float
    twin: str
    why: str = ""  # it failed


@dataclass(frozen=True)
class Row:
    """The runs that differ only in their seed. ``role``: ``run``, ``twin`` or ``trial``."""

    key: str
    arm: str
    stage: str
    role: str
    runs: tuple[Seen, ...]

    @property
    def live(self) -> bool:
        return any(run.state == "running" for run in self.runs)

    @property
    def begun(self) -> bool:
        return any(run.round or run.state not in ("missing",) for run in self.runs)


@dataclass(frozen=True)
class Scene:
    """A study, or a folder of runs, at a moment."""

    title: str
    question: str
    rows: tuple[Row, ...]
    note: str  # what a reader should know first: nothing there, nobody at work, all done
    over: bool  # nothing will change any more
    left: float  # seconds, at the pace since the watching began; NaN if that is not known
    findings: tuple[dict[str, Any], ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    done: int = 0  # rounds
    total: int = 0

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for row in self.rows for run in row.runs})
