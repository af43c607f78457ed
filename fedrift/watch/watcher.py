"""Looking again and again at a study or a folder of runs, cheaply: what is finished is read once, what grows is read on."""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, time

from ..config import load_yaml
from ..store import Run, list_unreadable, read_each
from ..store.claims import DEAD, generations, here
from ..study import Book, find_study, studies
from .findings import Judge
from .places import Folder, OfStudy, Place
from .scene import Row, Scene, Seen
from .tail import Tail

WINDOW = 600.0  # seconds of watching that the pace is taken from


class Watcher:
    """``look`` gives what there is to be seen now. ``clock``: seconds, for the pace."""

    def __init__(self, root: Path, book: Book | None = None, clock: Callable[[], float] = monotonic) -> None:
        self.root, self.book, self.clock = Path(root), book, clock
        self.source: Folder | OfStudy = OfStudy(book) if book else Folder(self.root)
        self.tails: dict[str, Tail] = {}
        self.settled: set[str] = set()
        self.faults: dict[str, str] = {}  # why a run could not be read at the last look
        self.judge = Judge(self.tails)
        self.pace: deque[tuple[float, int]] = deque()

    def look(self) -> Scene:
        """Everything, as it is now."""
        places = self.source.places()
        states = {place.run: self._state(place.run) for place in places}
        for run, state in states.items():
            if run not in self.settled and state != "missing":
                bad = read_each([self._run(run)], lambda each: self.tails.setdefault(each.id, Tail(each)).look())[1]
                self.faults = {**{id: why for id, why in self.faults.items() if id != run}, **dict(bad)}
                if state == "finished" and not bad:
                    self.settled.add(run)
        rows: dict[str, list[Seen]] = {}
        heads: dict[str, Place] = {}
        for place in places:
            heads.setdefault(place.key, place)
            state = "failed" if place.run in self.faults else states[place.run]
            rows.setdefault(place.key, []).append(self._seen(place, state))
        laid = tuple(Row(key, heads[key].arm, heads[key].stage, heads[key].role, tuple(runs)) for key, runs in rows.items())
        return self._scene(laid)

    def curve(self, run: str, domain: str = "") -> dict[int, float]:
        """A run's loss by round; empty if it has none."""
        tail = self.tails.get(run)
        return dict(sorted(tail.curves.get(domain, {}).items())) if tail else {}

    @property
    def domains(self) -> list[str]:
        return sorted({domain for tail in self.tails.values() for domain in tail.curves} - {""})

    def _run(self, id: str) -> Run:
        return Run(self.root, id)

    def _state(self, id: str) -> str:
        if id in self.settled:
            return "finished"
        run = self._run(id)
        if run.finished:
            return "finished"
        state = run.status
        if state in ("running", "missing") or not elsewhere(run.folder):
            failed = state != "running" and self.book is not None and self.book.failure(id)
            return "failed" if failed else state
        return "running"

    def _seen(self, place: Place, state: str) -> Seen:
        tail = self.tails.get(place.run)
        rounds = tail.round if tail else 0
        why = ""
        if place.run in self.faults:
            why = f"it cannot be read: {self.faults[place.run]}"
        elif state == "failed":
            why = (self.book.failure(place.run) if self.book else "") or self._reason(place.run)
        return Seen(place.run, place.seed, state, place.rounds if state == "finished" else rounds, place.rounds,
                    tail.loss if tail else math.nan, tail.gap(self.tails.get(place.twin)) if tail else math.nan, place.twin, why)

    def _reason(self, id: str) -> str:
        try:
            return str(json.loads((self._run(id).folder / "failed.json").read_bytes())["message"])
        except (OSError, ValueError, KeyError):
            return ""

    def _scene(self, rows: tuple[Row, ...]) -> Scene:
        once = {run.run: run for row in rows for run in row.runs}
        counts = Counter(run.state for run in once.values())
        done, total = sum(run.round for run in once.values()), sum(run.rounds for run in once.values())
        failed = sum(run.rounds - run.round for run in once.values() if run.state == "failed")
        said = self.source.said if isinstance(self.source, OfStudy) else {}
        complete = bool(said.get("complete", True))
        over = bool(rows) and complete and counts["finished"] + counts["failed"] == len(once)
        question = said.get("study", {}).get("question", "")
        title = f"study {self.book.name}" if self.book else f"runs in {self.root}"
        scene = Scene(title, question, rows, "", over, self._left(done, total - failed), (), counts, done, total)
        bad = [] if self.book else list_unreadable(self.root)
        more = f"; run {bad[0].id} cannot be read: {bad[0].reason}" if bad else ""
        more += f" (and {len(bad) - 1} more such runs)" if len(bad) > 1 else ""
        told = note(scene, self.book, self.root, complete) + more
        return replace(scene, note=told.removeprefix("; "), findings=self.judge.look(rows))

    def _left(self, done: int, total: int) -> float:
        now = self.clock()
        self.pace.append((now, done))
        while now - self.pace[0][0] > WINDOW:
            self.pace.popleft()
        then, before = self.pace[0]
        return (total - done) * (now - then) / (done - before) if done > before else math.nan


def note(scene: Scene, book: Book | None, root: Path, complete: bool) -> str:
    """What a reader should know first."""
    counts = scene.counts
    if not scene.rows:
        return (f"study {book.name} is not begun in {root}: `fedrift study STUDY.yaml` begins it" if book else
                f"no runs in {root} yet: `fedrift run EXPERIMENT.yaml` makes one")
    if scene.over:
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        return f"all is done: {counts['finished']} finished{failed}"
    if not counts["running"]:
        waiting = counts["unfinished"] + counts["missing"]
        words = f"nobody is at work: {waiting} runs are not finished; the command that began them goes on with them"
        return words if complete else f"{words}, then with what tuning chooses"
    return "" if complete else "tuning: what it chooses is run after it"


def elsewhere(folder: Path) -> bool:
    """Whether a worker on another machine, whose lock cannot be seen from here, gave a sign of life lately."""
    held = max(generations(folder), default=-1)
    try:
        path = folder / f"claim.{held}"
        return held >= 0 and time() - path.stat().st_mtime < DEAD and json.loads(path.read_text())["where"] != here()
    except (OSError, ValueError, KeyError):
        return False


def target(root: Path, name: str = "", clock: Callable[[], float] = monotonic) -> Watcher:
    """The watcher of what is named: nothing (all runs), a folder of runs, a study by name or by its YAML, begun or not."""
    if not name:
        return Watcher(root, None, clock)
    path = Path(name)
    if name not in studies(root) and path.suffix in (".yaml", ".yml") and path.is_file():
        return Watcher(root, Book(Path(root), str(load_yaml(path).get("name", path.stem))), clock)
    if name not in studies(root) and path.is_dir() and not (path / "study.json").is_file():
        return Watcher(path, None, clock)
    book = find_study(root, name)
    return Watcher(book.root, book, clock)
