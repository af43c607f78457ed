"""Runs of a calibration, kept on disk: one that was stopped goes on where it was, and none is run twice.

A run is kept under a hash of all that was asked and of the code that ran it: change either and it is another run. Detectors are
not part of that code, so thresholds can be looked at without running anything again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..detectors.finding import Facts
from ..records import Record, Trajectory
from ..store.files import write_whole

PACKAGE = Path(__file__).parents[1]
ELSEWHERE = ("cli", "report", "detectors", "diagnose", "study", "statistics", "flower", "conform")
AFTERWARDS = ("score.py", "page.py", "healthy.py")  # of this room: what looks at runs


def kept(folder: Path | None, asked: Any, make: Callable[[], tuple[Trajectory, Facts]]) -> tuple[Trajectory, Facts]:
    """The run of ``asked``, whose ``repr`` says all that it is; made if it is not in the folder."""
    if folder is None:
        return make()
    place = folder / f"{sha256(f'{code()} {asked!r}'.encode()).hexdigest()[:24]}.json"
    if place.exists():
        said = json.loads(place.read_text())
        facts = Facts(said["steps"], tuple(said["domains"]), tuple(map(tuple, said["tokens"])))
        return Trajectory(tuple(Record(*row) for row in said["records"])), facts
    run, facts = make()
    rows = {"steps": facts.steps, "domains": facts.domains, "tokens": facts.tokens, "records": run.records}
    write_whole(place, json.dumps(rows).encode())
    return run, facts


@lru_cache(maxsize=1)
def code() -> str:
    """A hash of every file that can change what a run records."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in ELSEWHERE
             and not (path.parent == Path(__file__).parent and path.name in AFTERWARDS)]
    return sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
