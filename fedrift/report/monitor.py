"""What there is to be seen at a moment: every run in its place, how far all is, and what was found. Plain values."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, perf_counter, time
from typing import Any

from ..config.loader import load_yaml
from ..core.errors import UserError
from ..diagnosis import MIN_EVALUATIONS, diagnose
from ..diagnosis.cases import NON_CONFIG_KEYS, extract_run_info, make_config_key
from ..diagnosis.finding import RunEvidence
from ..storage import Run, list_runs, list_unreadable, read_each
from ..storage.index import find_fault
from ..storage.leases import EXPIRY_S, get_host_id, list_generations
from ..storage.parquet import parquet_path
from ..storage.query import flatten
from ..studies import StudyManifest, find_study, list_studies, parse_study
from ..studies.spec import build_base_config

STATES = ("finished", "running", "unfinished", "missing", "failed")
STATE_LABELS = {
    "finished": "finished",
    "running": "running",
    "unfinished": "begun, nobody at work on it",
    "missing": "not begun",
    "failed": "failed",
}


@dataclass(frozen=True)
class RunStatus:
    """One run as it stands. ``gap``: its loss above the IID baseline's; NaN is what is not known."""

    run: str
    seed: int
    state: str
    round: int
    rounds: int
    loss: float
    gap: float
    baseline_run: str
    failure_reason: str = ""  # it failed


@dataclass(frozen=True)
class RunGroup:
    """The runs that differ only in their seed. ``role``: ``run``, ``iid_baseline`` or ``trial``."""

    key: str
    condition: str
    stage: str
    role: str
    runs: tuple[RunStatus, ...]

    @property
    def is_running(self) -> bool:
        return any(run.state == "running" for run in self.runs)

    @property
    def has_begun(self) -> bool:
        return any(run.round or run.state not in ("missing",) for run in self.runs)


@dataclass(frozen=True)
class Snapshot:
    """A study, or a folder of runs, at a moment."""

    title: str
    question: str
    rows: tuple[RunGroup, ...]
    note: str  # what a reader should know first: nothing there, nobody at work, all done
    is_complete: bool  # nothing will change any more
    seconds_left: float  # seconds, at the pace since the watching began; NaN if that is not known
    findings: tuple[dict[str, Any], ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    rounds_done: int = 0  # rounds
    rounds_total: int = 0

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for row in self.rows for run in row.runs})


# A run's loss as it grows: each look reads only the lines that were written since the last one.

LOSS_MARKER = b', "loss", '


class LossTail:
    """The loss of the federation and of each domain, and the last round with any record."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.offset = 0  # bytes read
        self.last_round = 0
        self.curves: dict[str, dict[int, float]] = defaultdict(dict)  # domain -> round -> loss

    def read_new(self) -> None:
        """Take in what is new; a run that was rewound is read again from its beginning."""
        path = self.run.folder / "records.jsonl"
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                if size < self.offset:
                    self.offset, self.last_round = 0, 0
                    self.curves.clear()
                file.seek(self.offset)
                new = file.read(size - self.offset)
        except FileNotFoundError:
            self._read_archived()
            return
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self.offset += len(whole)
        lines = whole.splitlines()
        for line in lines:
            if LOSS_MARKER in line:
                self._add(*json.loads(line))
        if lines:
            self.last_round = max(self.last_round, int(json.loads(lines[-1])[0]))

    def _read_archived(self) -> None:
        """All there is of a run from an archive is its Parquet file."""
        if self.offset == 0 and parquet_path(self.run.folder).exists():
            try:
                for record in self.run.records():
                    self._add(*record)
                    self.last_round = max(self.last_round, record.round)
            except (UserError, OSError):
                return
            self.offset = -1

    def _add(self, round: int, metric: str, domain: str, client: int, value: float | None) -> None:
        if metric == "loss" and client < 0:
            self.curves[domain][int(round)] = math.nan if value is None else float(value)

    @property
    def loss(self) -> float:
        """The latest; NaN before the first."""
        curve = self.curves.get("")
        return curve[max(curve)] if curve else math.nan

    def gap_to(self, baseline: LossTail | None, last: int = 5) -> float:
        """Mean loss above the twin's over the last evaluations that both have."""
        if baseline is None:
            return math.nan
        ours, theirs = self.curves.get("", {}), baseline.curves.get("", {})
        both = sorted(ours.keys() & theirs.keys())
        both = [round for round in both if round > 0][-last:] or both
        return sum(ours[round] - theirs[round] for round in both) / len(both) if both else math.nan


# What detectors say of runs that still go on: each row that has changed is judged again, a few a look.
#
# Every run is held against its IID baseline alone; `fedrift diagnose` also uses the anchors that are among the runs.

BUDGET_S = 0.5  # seconds a look
RECHECK_SHARE = 0.25  # of a row's rounds must be new before it is judged again, unless a run ended


class LiveDiagnoser:
    """Keeps the findings of every row, and what they rest on."""

    def __init__(self, tails: Mapping[str, LossTail]) -> None:
        self.tails = tails
        self.cache: dict[str, tuple[int, int, list[dict[str, Any]]]] = {}  # row -> rounds, ended, findings

    def update(self, rows: tuple[RunGroup, ...]) -> tuple[dict[str, Any], ...]:
        """The graver ones first; rows are judged again while the budget lasts, those never judged before the others."""
        begun = perf_counter()
        wanted = [row for row in rows if row.role == "run" and self._is_due(row)]
        for row in sorted(wanted, key=lambda row: self.cache.get(row.key, (-1,))[0]):
            self.cache[row.key] = (*evidence_size(row), self._diagnose(row))
            if perf_counter() - begun > BUDGET_S:
                break
        return group_findings([finding for row in rows for finding in self.cache.get(row.key, (0, 0, []))[2]])

    def _is_due(self, row: RunGroup) -> bool:
        rounds, ended = evidence_size(row)
        if max((run.round for run in row.runs), default=0) < MIN_EVALUATIONS:
            return False
        before = self.cache.get(row.key)
        return before is None or ended != before[1] or rounds - before[0] > RECHECK_SHARE * sum(run.rounds for run in row.runs)

    def _diagnose(self, row: RunGroup) -> list[dict[str, Any]]:
        cases = [case for run in row.runs if run.round and (case := self._evidence(run))]
        try:
            judgements = diagnose(cases) if cases else []
        except (UserError, ValueError):  # rows that are being written
            return []
        return [
            {
                "condition": row.condition,
                "failure": each.failure,
                "grade": each.grade,
                "cause": each.cause,
                "since": each.first_round,
                "strength": float(each.strength),
                "sentence": strip_grade(each.sentence),
            }
            for each in judgements
            if each.grade in ("suspected", "confirmed")
        ]

    def _evidence(self, run: RunStatus) -> RunEvidence | None:
        tail, twin = self.tails.get(run.run), self.tails.get(run.baseline_run)
        try:
            if tail is None:
                return None
            return RunEvidence(
                tail.run.trajectory(), twin.run.trajectory() if twin else None, info=extract_run_info(tail.run.config), seed=run.seed
            )
        except (UserError, OSError):
            return None


def group_findings(findings: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Each failure once a grade and a cause, told by its strongest row, ``also`` naming the others: the gravest first, and
    what the skew did before what the twins show too."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for each in sorted(findings, key=lambda each: -each["strength"]):
        groups.setdefault((each["failure"], each["grade"], each["cause"]), []).append(each)
    told = [{**first, "also": [other["condition"] for other in others]} for first, *others in groups.values()]
    return tuple(sorted(told, key=lambda each: (each["grade"] != "confirmed", each["cause"] == "also in IID baseline", -each["strength"])))


def strip_grade(sentence: str) -> str:
    """A judgement's sentence without its grade, which is shown beside it."""
    rest = sentence.partition(": ")[2]
    return rest[:1].upper() + rest[1:]


def evidence_size(row: RunGroup) -> tuple[int, int]:
    """What a judgement rests on: rounds, and runs that ended."""
    return sum(run.round for run in row.runs), sum(run.state in ("finished", "failed") for run in row.runs)


# Which runs there are to be watched, and which belong in one row: by a study's book, or by what a folder's runs were asked.

ROLES = ("trial", "run", "iid_baseline")


@dataclass(frozen=True)
class RunPlacement:
    """Where a run belongs. ``key`` and ``arm`` are those of its row."""

    run: str
    key: str
    condition: str
    stage: str
    role: str
    seed: int
    baseline_run: str
    num_rounds: int  # that it is planned to have


class FolderLayout:
    """All runs under a folder; what was asked of each is read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.configs: dict[str, dict[str, Any]] = {}
        self.config_keys: dict[str, tuple[str, str]] = {}  # run -> what it was asked, without the seed; without the severity
        self.placements: list[RunPlacement] = []

    def load_placements(self) -> list[RunPlacement]:
        new = read_each((run for run in list_runs(self.root) if run.id not in self.configs), lambda run: run.config)[0]
        for run, asked in new:
            self.configs[run.id] = asked
            self.config_keys[run.id] = make_config_key(asked, ("seed",)), make_config_key(asked, ("partition.severity",))
        if new:
            self.placements = self._arrange()
        return self.placements

    def _arrange(self) -> list[RunPlacement]:
        iid = {self.config_keys[id][1]: id for id, asked in self.configs.items() if asked["partition"].get("severity") == 0}
        groups: dict[str, list[str]] = defaultdict(list)
        for id in self.configs:
            groups[self.config_keys[id][0]].append(id)
        called = group_titles({key: self.configs[ids[0]] for key, ids in groups.items()})
        return [
            RunPlacement(
                id,
                key,
                called[key],
                "",
                "iid_baseline" if self.configs[id]["partition"].get("severity") == 0 else "run",
                int(self.configs[id]["seed"]),
                "" if iid.get(self.config_keys[id][1], id) == id else iid[self.config_keys[id][1]],
                int(self.configs[id]["training"]["num_rounds"]),
            )
            for key, ids in groups.items()
            for id in sorted(ids, key=lambda id: int(self.configs[id]["seed"]))
        ]


def group_titles(configs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A short name of each row, with the settings that tell it from others of that name."""
    short = {
        key: f"{said['algorithm']['type']} · {said['partition']['type']} {said['partition'].get('severity', 0):g}"
        for key, said in configs.items()
    }
    same: dict[str, list[str]] = defaultdict(list)
    for key, called in short.items():
        same[called].append(key)
    for keys in same.values():
        if len(keys) > 1:
            every = {key: flatten({k: v for k, v in configs[key].items() if k not in (*NON_CONFIG_KEYS, "seed")}) for key in keys}
            paths = sorted({path for said in every.values() for path in said})
            differ = [path for path in paths if len({json.dumps(said.get(path)) for said in every.values()}) > 1]
            for key in keys:
                short[key] += "".join(f", {path}={every[key].get(path, 'none')}" for path in differ[:3])
    return short


class StudyLayout:
    """The runs of a study, in the order of its book, which is read again when it changes."""

    def __init__(self, book: StudyManifest) -> None:
        self.manifest = book
        self.mtime_ns = 0
        self.manifest_values: dict[str, Any] = {}
        self.placements: list[RunPlacement] = []

    def load_placements(self) -> list[RunPlacement]:
        try:
            stamp = (self.manifest.folder / "study.json").stat().st_mtime_ns
        except OSError:
            return []
        if stamp != self.mtime_ns:
            self.manifest_values, self.mtime_ns = self.manifest.read(), stamp
            rounds = int(build_base_config(parse_study(self.manifest_values["study"])).get("training", {}).get("num_rounds", 0))
            every = [self._placement(entry, rounds) for role in ROLES for entry in self.manifest_values["runs"] if entry.role == role]
            self.placements = list({(place.key, place.run): place for place in every}.values())  # a twin may serve several arms
        return self.placements

    def _placement(self, entry: Any, num_rounds: int) -> RunPlacement:
        settings = ", ".join(f"{path}={value}" for path, value in (entry.settings or {}).items())
        arm = f"{entry.condition} [{settings}]" if entry.role == "trial" and settings else entry.condition
        if entry.role == "iid_baseline":
            arm = f"IID baseline: {arm}"
        kept = Run(self.manifest.root, entry.run)
        num_rounds = int(entry.factors.get("training.num_rounds", num_rounds) or num_rounds)
        if (kept.folder / "experiment.json").exists() and not find_fault(kept):
            num_rounds = int(kept.config["training"]["num_rounds"])
        key = f"{entry.role}/{entry.stage}/{arm}"
        return RunPlacement(entry.run, key, arm, entry.stage, entry.role, entry.seed, entry.iid_baseline, num_rounds)


# Looking again and again at a study or a folder of runs, cheaply: what is finished is read once, what grows is read on.

PACE_WINDOW_S = 600.0  # seconds of watching that the pace is taken from


class Monitor:
    """``look`` gives what there is to be seen now. ``clock``: seconds, for the pace."""

    def __init__(self, root: Path, manifest: StudyManifest | None = None, clock: Callable[[], float] = monotonic) -> None:
        self.root, self.manifest, self.clock = Path(root), manifest, clock
        self.layout: FolderLayout | StudyLayout = StudyLayout(manifest) if manifest else FolderLayout(self.root)
        self.tails: dict[str, LossTail] = {}
        self.finished: set[str] = set()
        self.read_errors: dict[str, str] = {}  # why a run could not be read at the last look
        self.diagnoser = LiveDiagnoser(self.tails)
        self.progress_history: deque[tuple[float, int]] = deque()

    def take_snapshot(self) -> Snapshot:
        """Everything, as it is now."""
        places = self.layout.load_placements()
        states = {place.run: self._run_state(place.run) for place in places}
        for run, state in states.items():
            if run not in self.finished and state != "missing":
                bad = read_each([self._get_run(run)], lambda each: self.tails.setdefault(each.id, LossTail(each)).read_new())[1]
                self.read_errors = {**{id: why for id, why in self.read_errors.items() if id != run}, **dict(bad)}
                if state == "finished" and not bad:
                    self.finished.add(run)
        rows: dict[str, list[RunStatus]] = {}
        heads: dict[str, RunPlacement] = {}
        for place in places:
            heads.setdefault(place.key, place)
            state = "failed" if place.run in self.read_errors else states[place.run]
            rows.setdefault(place.key, []).append(self._run_status(place, state))
        laid = tuple(RunGroup(key, heads[key].condition, heads[key].stage, heads[key].role, tuple(runs)) for key, runs in rows.items())
        return self._build_snapshot(laid)

    def curve(self, run: str, domain: str = "") -> dict[int, float]:
        """A run's loss by round; empty if it has none."""
        tail = self.tails.get(run)
        return dict(sorted(tail.curves.get(domain, {}).items())) if tail else {}

    @property
    def domains(self) -> list[str]:
        return sorted({domain for tail in self.tails.values() for domain in tail.curves} - {""})

    def _get_run(self, id: str) -> Run:
        return Run(self.root, id)

    def _run_state(self, id: str) -> str:
        if id in self.finished:
            return "finished"
        run = self._get_run(id)
        if run.is_finished:
            return "finished"
        state = run.status
        if state in ("running", "missing") or not is_running_elsewhere(run.folder):
            failed = state != "running" and self.manifest is not None and self.manifest.get_failure(id)
            return "failed" if failed else state
        return "running"

    def _run_status(self, placement: RunPlacement, state: str) -> RunStatus:
        tail = self.tails.get(placement.run)
        rounds = tail.last_round if tail else 0
        why = ""
        if placement.run in self.read_errors:
            why = f"it cannot be read: {self.read_errors[placement.run]}"
        elif state == "failed":
            why = (self.manifest.get_failure(placement.run) if self.manifest else "") or self._failure_message(placement.run)
        return RunStatus(
            placement.run,
            placement.seed,
            state,
            placement.num_rounds if state == "finished" else rounds,
            placement.num_rounds,
            tail.loss if tail else math.nan,
            tail.gap_to(self.tails.get(placement.baseline_run)) if tail else math.nan,
            placement.baseline_run,
            why,
        )

    def _failure_message(self, id: str) -> str:
        try:
            return str(json.loads((self._get_run(id).folder / "failed.json").read_bytes())["message"])
        except (OSError, ValueError, KeyError):
            return ""

    def _build_snapshot(self, rows: tuple[RunGroup, ...]) -> Snapshot:
        once = {run.run: run for row in rows for run in row.runs}
        counts = Counter(run.state for run in once.values())
        done, total = sum(run.round for run in once.values()), sum(run.rounds for run in once.values())
        failed = sum(run.rounds - run.round for run in once.values() if run.state == "failed")
        said = self.layout.manifest_values if isinstance(self.layout, StudyLayout) else {}
        complete = bool(said.get("complete", True))
        over = bool(rows) and complete and counts["finished"] + counts["failed"] == len(once)
        question = said.get("study", {}).get("question", "")
        title = f"study {self.manifest.name}" if self.manifest else f"runs in {self.root}"
        scene = Snapshot(title, question, rows, "", over, self._seconds_left(done, total - failed), (), counts, done, total)
        bad = [] if self.manifest else list_unreadable(self.root)
        more = f"; run {bad[0].id} cannot be read: {bad[0].reason}" if bad else ""
        more += f" (and {len(bad) - 1} more such runs)" if len(bad) > 1 else ""
        told = status_note(scene, self.manifest, self.root, complete) + more
        return replace(scene, note=told.removeprefix("; "), findings=self.diagnoser.update(rows))

    def _seconds_left(self, done: int, total: int) -> float:
        now = self.clock()
        self.progress_history.append((now, done))
        while now - self.progress_history[0][0] > PACE_WINDOW_S:
            self.progress_history.popleft()
        then, before = self.progress_history[0]
        return (total - done) * (now - then) / (done - before) if done > before else math.nan


def status_note(snapshot: Snapshot, manifest: StudyManifest | None, root: Path, is_complete: bool) -> str:
    """What a reader should know first."""
    counts = snapshot.counts
    if not snapshot.rows:
        return (
            f"study {manifest.name} is not begun in {root}: `fedrift study STUDY.yaml` begins it"
            if manifest
            else f"no runs in {root} yet: `fedrift run EXPERIMENT.yaml` makes one"
        )
    if snapshot.is_complete:
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        return f"all is done: {counts['finished']} finished{failed}"
    if not counts["running"]:
        waiting = counts["unfinished"] + counts["missing"]
        words = f"nobody is at work: {waiting} runs are not finished; the command that began them goes on with them"
        return words if is_complete else f"{words}, then with what tuning chooses"
    return "" if is_complete else "tuning: what it chooses is run after it"


def is_running_elsewhere(folder: Path) -> bool:
    """Whether a worker on another machine, whose lock cannot be seen from here, gave a sign of life lately."""
    held = max(list_generations(folder), default=-1)
    try:
        path = folder / f"lease.{held}"
        return held >= 0 and time() - path.stat().st_mtime < EXPIRY_S and json.loads(path.read_text())["host"] != get_host_id()
    except (OSError, ValueError, KeyError):
        return False


def open_monitor(root: Path, name: str = "", clock: Callable[[], float] = monotonic) -> Monitor:
    """The watcher of what is named: nothing (all runs), a folder of runs, a study by name or by its YAML, begun or not."""
    if not name:
        return Monitor(root, None, clock)
    path = Path(name)
    if name not in list_studies(root) and path.suffix in (".yaml", ".yml") and path.is_file():
        return Monitor(root, StudyManifest(Path(root), str(load_yaml(path).get("name", path.stem))), clock)
    if name not in list_studies(root) and path.is_dir() and not (path / "study.json").is_file():
        return Monitor(path, None, clock)
    book = find_study(root, name)
    return Monitor(book.root, book, clock)


# Runs while they go on, seen from another process: on the terminal and in the browser. It reads only, and needs no torch.


__all__ = ["Monitor", "RunGroup", "RunStatus", "Snapshot", "open_monitor"]
