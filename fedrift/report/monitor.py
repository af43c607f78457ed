"""Snapshots of a study or of a runs directory while other processes run it.

A snapshot lists every run with its state, its loss and its findings. The monitor only reads files, and it does not import torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, perf_counter, time
from typing import Any

from ..config.loader import load_yaml
from ..core.errors import UserError
from ..diagnosis import MIN_EVALUATIONS, diagnose
from ..diagnosis.cases import NON_CONFIG_KEYS, extract_run_info, iid_baseline_key, make_config_key
from ..diagnosis.finding import RunEvidence
from ..storage import Run, list_runs, list_unreadable, try_read_each
from ..storage.index import get_read_error, is_iid
from ..storage.leases import EXPIRY_S, get_host_id, list_generations
from ..storage.parquet import parquet_path
from ..storage.query import flatten
from ..studies import StudyManifest, find_study, list_studies, parse_study
from ..studies.spec import build_base_config
from .format import format_strength

STATE_LABELS = {"finished": "finished", "running": "running", "unfinished": "interrupted", "missing": "not started", "failed": "failed"}


@dataclass(frozen=True)
class RunStatus:
    """Describe the state of one run at a moment."""

    run: str
    seed: int
    state: str
    rounds_done: int  # number of finished rounds
    rounds_total: int  # number of planned rounds
    loss: float  # latest loss in nats per token; NaN if it is unknown
    gap: float  # loss minus that of the IID baseline, in nats per token; NaN if it is unknown
    baseline_run: str
    failure_reason: str = ""  # error message of a failed run


@dataclass(frozen=True)
class RunGroup:
    """Group the runs that differ only in their seed."""

    key: str
    condition: str
    stage: str
    role: str  # ``run``, ``iid_baseline`` or ``trial`` (of hyperparameter tuning)
    runs: tuple[RunStatus, ...]

    @property
    def is_running(self) -> bool:
        """Return whether any of the runs is running."""
        return any(run.state == "running" for run in self.runs)

    @property
    def has_started(self) -> bool:
        """Return whether any of the runs has started."""
        return any(run.rounds_done or run.state != "missing" for run in self.runs)


@dataclass(frozen=True)
class Snapshot:
    """Describe a study or a runs directory at a moment."""

    title: str  # what is shown
    question: str  # the question of the study; empty for a runs directory
    groups: tuple[RunGroup, ...]
    note: str  # the most important message: no runs, no running process, or all runs finished
    is_complete: bool  # whether nothing will change any more
    seconds_left: float  # estimated remaining seconds at the recent pace; NaN if it is unknown
    findings: tuple[dict[str, Any], ...] = ()  # findings of the detectors, one per failure, grade and cause
    counts: Counter[str] = field(default_factory=Counter)  # number of runs in each state
    rounds_done: int = 0  # number of finished rounds of all runs
    rounds_total: int = 0  # number of planned rounds of all runs

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of all runs, sorted."""
        return sorted({run.seed for row in self.groups for run in row.runs})


LOSS_MARKER = b', "loss", '  # decoding only these lines keeps a refresh cheap


class LossTail:
    """Follow the losses in a run's records file.

    Each call of ``read_new`` reads only the lines that were appended since the previous call.

    Attributes:
        offset: Number of bytes that were read; -1 if the run comes from an archive.
        last_round: Last round with any record.
        curves: Loss by domain and round; the domain ``""`` means all domains.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.offset = 0
        self.last_round = 0
        self.curves: dict[str, dict[int, float]] = defaultdict(dict)

    def read_new(self) -> None:
        """Read the appended records. If the file was truncated, as on a resumed run, read it again from the beginning."""
        path = self.run.folder / "records.jsonl"
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                if size < self.offset:
                    self.offset, self.last_round = 0, 0
                    self.curves.clear()
                file.seek(self.offset)
                appended = file.read(size - self.offset)
        except FileNotFoundError:
            self._read_archived()
            return
        complete = appended[: appended.rfind(b"\n") + 1]  # another process may be writing the last line
        self.offset += len(complete)
        lines = complete.splitlines()
        for line in lines:
            if LOSS_MARKER in line:
                self._add(*json.loads(line))
        if lines:
            self.last_round = max(self.last_round, int(json.loads(lines[-1])[0]))

    def _read_archived(self) -> None:
        """Read an archived run, which has only a Parquet file."""
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
        """Return the latest loss over all domains; NaN if there is none."""
        curve = self.curves.get("")
        return curve[max(curve)] if curve else math.nan

    def gap_to(self, baseline: LossTail | None, last: int = 5) -> float:
        """Return the mean loss gap to the IID baseline.

        Args:
            baseline: The IID baseline, or None.
            last: Number of the latest common evaluations that are averaged. Round 0 counts only if there is no other.

        Returns:
            The gap in nats per token; NaN if there is no common evaluation.
        """
        if baseline is None:
            return math.nan
        own_curve, baseline_curve = self.curves.get("", {}), baseline.curves.get("", {})
        common = sorted(own_curve.keys() & baseline_curve.keys())
        common = [round for round in common if round > 0][-last:] or common
        return sum(own_curve[round] - baseline_curve[round] for round in common) / len(common) if common else math.nan


BUDGET_S = 0.5  # seconds per snapshot
RECHECK_SHARE = 0.25  # share of a group's rounds that must be new before it is diagnosed again, unless a run ended


class LiveDiagnoser:
    """Diagnose groups of runs repeatedly while they run, within a time budget per snapshot.

    Each run is compared only with its own IID baseline. `fedrift diagnose` also uses reference runs such as centralized training.
    """

    def __init__(self, tails: Mapping[str, LossTail]) -> None:
        self.tails = tails
        self.cache: dict[str, tuple[int, int, list[dict[str, Any]]]] = {}  # group key -> rounds, ended runs, findings

    def update(self, rows: tuple[RunGroup, ...]) -> tuple[dict[str, Any], ...]:
        """Return the findings of all groups, the gravest first.

        Groups are diagnosed again while the budget lasts. Groups that were never diagnosed come first.
        """
        started_at = perf_counter()
        due = [row for row in rows if row.role == "run" and self._is_due(row)]
        for row in sorted(due, key=lambda row: self.cache.get(row.key, (-1,))[0]):
            self.cache[row.key] = (*evidence_size(row), self._diagnose(row))
            if perf_counter() - started_at > BUDGET_S:
                break
        return group_findings([finding for row in rows for finding in self.cache.get(row.key, (0, 0, []))[2]])

    def _is_due(self, row: RunGroup) -> bool:
        rounds, ended = evidence_size(row)
        if max((run.rounds_done for run in row.runs), default=0) < MIN_EVALUATIONS:
            return False
        before = self.cache.get(row.key)
        return before is None or ended != before[1] or rounds - before[0] > RECHECK_SHARE * sum(run.rounds_total for run in row.runs)

    def _diagnose(self, row: RunGroup) -> list[dict[str, Any]]:
        evidence = [item for run in row.runs if run.rounds_done and (item := self._evidence(run))]
        try:
            diagnoses = diagnose(evidence) if evidence else []
        except (UserError, ValueError):  # another process is writing the records
            return []
        return [
            {
                "condition": row.condition,
                "failure": diagnosis.failure,
                "grade": diagnosis.grade,
                "cause": diagnosis.cause,
                "since": diagnosis.first_round,
                "strength": float(diagnosis.strength),
                "sentence": strip_grade(diagnosis.sentence),
            }
            for diagnosis in diagnoses
            if diagnosis.grade in ("suspected", "confirmed")
        ]

    def _evidence(self, run: RunStatus) -> RunEvidence | None:
        tail, baseline = self.tails.get(run.run), self.tails.get(run.baseline_run)
        try:
            if tail is None:
                return None
            return RunEvidence(
                tail.run.trajectory(),
                baseline.run.trajectory() if baseline else None,
                info=extract_run_info(tail.run.config),
                seed=run.seed,
            )
        except (UserError, OSError):
            return None


def group_findings(findings: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Merge findings with the same failure, grade and cause.

    The finding with the largest strength represents its group; its ``also`` lists the conditions of the others. Confirmed findings come
    first. Failures that the IID baseline shows too come last within a grade.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for finding in sorted(findings, key=lambda finding: -finding["strength"]):
        groups.setdefault((finding["failure"], finding["grade"], finding["cause"]), []).append(finding)
    merged = [{**strongest, "also": [other["condition"] for other in others]} for strongest, *others in groups.values()]
    return tuple(
        sorted(
            merged, key=lambda finding: (finding["grade"] != "confirmed", finding["cause"] == "also in IID baseline", -finding["strength"])
        )
    )


def strip_grade(sentence: str) -> str:
    """Return the sentence of a diagnosis without its grade, which is shown beside it."""
    rest = sentence.partition(": ")[2]
    return rest[:1].upper() + rest[1:]


def evidence_size(row: RunGroup) -> tuple[int, int]:
    """Return how many rounds and how many ended runs a diagnosis is based on."""
    return sum(run.rounds_done for run in row.runs), sum(run.state in ("finished", "failed") for run in row.runs)


ROLES = ("trial", "run", "iid_baseline")


@dataclass(frozen=True)
class RunPlacement:
    """State to which group a run belongs."""

    run: str
    key: str  # key of the group
    condition: str  # name of the group
    stage: str
    role: str
    seed: int
    baseline_run: str  # id of the IID baseline; empty if there is none
    num_rounds: int  # number of planned rounds


class FolderLayout:
    """Group the runs of a directory by their configurations, each of which is read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.configs: dict[str, dict[str, Any]] = {}
        self.config_keys: dict[str, tuple[str, str]] = {}  # run -> keys that it shares with other seeds, and with its baseline
        self.placements: list[RunPlacement] = []

    def load_placements(self) -> list[RunPlacement]:
        """Return the placements of all runs in the directory. New runs are read, known ones are not."""
        new = try_read_each((run for run in list_runs(self.root) if run.id not in self.configs), lambda run: run.config)[0]
        for run, config in new:
            self.configs[run.id] = config
            self.config_keys[run.id] = make_config_key(config, ("seed",)), iid_baseline_key(config)
        if new:
            self.placements = self._arrange()
        return self.placements

    def _arrange(self) -> list[RunPlacement]:
        baselines = {self.config_keys[id][1]: id for id, config in self.configs.items() if is_iid(config) and "fork" not in config}
        groups: dict[str, list[str]] = defaultdict(list)
        for id in self.configs:
            groups[self.config_keys[id][0]].append(id)
        titles = group_titles({key: self.configs[ids[0]] for key, ids in groups.items()})
        return [
            RunPlacement(
                id,
                key,
                titles[key],
                "",
                "iid_baseline" if is_iid(self.configs[id]) else "run",
                int(self.configs[id]["seed"]),
                "" if baselines.get(self.config_keys[id][1], id) == id else baselines[self.config_keys[id][1]],
                int(self.configs[id]["training"]["num_rounds"]),
            )
            for key, ids in groups.items()
            for id in sorted(ids, key=lambda id: int(self.configs[id]["seed"]))
        ]


def group_titles(configs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return a short name per group. Groups of equal names get the settings that distinguish them, and no others."""
    titles = {}
    for key, config in configs.items():
        strength = format_strength(config["partition"]).removeprefix("severity ")
        titles[key] = f"{config['algorithm']['type']} · {config['partition']['type']} {strength}"
    keys_by_title: dict[str, list[str]] = defaultdict(list)
    for key, title in titles.items():
        keys_by_title[title].append(key)
    for keys in keys_by_title.values():
        if len(keys) > 1:
            settings = {key: flatten({k: v for k, v in configs[key].items() if k not in (*NON_CONFIG_KEYS, "seed")}) for key in keys}
            paths = sorted({path for config in settings.values() for path in config})
            labels = {key: "" for key in keys}
            for path in paths:
                longer = {key: f"{label}, {path}={settings[key].get(path, 'none')}" for key, label in labels.items()}
                if len(set(longer.values())) > len(set(labels.values())):
                    labels = longer
            for key in keys:
                titles[key] += labels[key]
    return titles


class StudyLayout:
    """Group the runs of a study in the order of its manifest, which is read again when its file changes."""

    def __init__(self, manifest: StudyManifest) -> None:
        self.manifest = manifest
        self.mtime_ns = 0
        self.manifest_values: dict[str, Any] = {}
        self.placements: list[RunPlacement] = []

    def load_placements(self) -> list[RunPlacement]:
        """Return the placements of all runs in the manifest; empty if there is no manifest yet."""
        try:
            mtime_ns = (self.manifest.folder / "study.json").stat().st_mtime_ns
        except OSError:
            return []
        if mtime_ns != self.mtime_ns:
            self.manifest_values, self.mtime_ns = self.manifest.read(), mtime_ns
            rounds = int(
                build_base_config(parse_study(self.manifest_values["study"], is_stored=True)).get("training", {}).get("num_rounds", 0)
            )
            placements = [self._placement(entry, rounds) for role in ROLES for entry in self.manifest_values["runs"] if entry.role == role]
            self.placements = list(
                {(placement.key, placement.run): placement for placement in placements}.values()
            )  # several conditions may share an IID baseline
        return self.placements

    def _placement(self, entry: Any, num_rounds: int) -> RunPlacement:
        settings = ", ".join(f"{path}={value}" for path, value in (entry.settings or {}).items())
        condition = f"{entry.condition} [{settings}]" if entry.role == "trial" and settings else entry.condition
        if entry.role == "iid_baseline":
            condition = f"IID baseline: {condition}"
        run = Run(self.manifest.root, entry.run)
        num_rounds = int(entry.factors.get("training.num_rounds", num_rounds) or num_rounds)
        if (run.folder / "experiment.json").exists() and not get_read_error(run):
            num_rounds = int(run.config["training"]["num_rounds"])
        key = f"{entry.role}/{entry.stage}/{condition}"
        return RunPlacement(entry.run, key, condition, entry.stage, entry.role, entry.seed, entry.iid_baseline, num_rounds)


PACE_WINDOW_S = 600.0  # seconds over which the pace is measured


class Monitor:
    """Take snapshots of a study or of a runs directory.

    Finished runs are read once; of other runs only new records are read.

    Args:
        root: The runs directory.
        manifest: The study, or None for all runs in ``root``.
        clock: Function that returns the time in seconds, from which the pace is measured.

    Example:
        ```python
        snapshot = Monitor(Path("runs")).take_snapshot()
        print(snapshot.note, snapshot.counts)
        ```
    """

    def __init__(self, root: Path, manifest: StudyManifest | None = None, clock: Callable[[], float] = monotonic) -> None:
        self.root, self.manifest, self.clock = Path(root), manifest, clock
        self.layout: FolderLayout | StudyLayout = StudyLayout(manifest) if manifest else FolderLayout(self.root)
        self.tails: dict[str, LossTail] = {}
        self.finished: set[str] = set()
        self.read_errors: dict[str, str] = {}  # run -> reason why it could not be read for the latest snapshot
        self.diagnoser = LiveDiagnoser(self.tails)
        self.progress_history: deque[tuple[float, int]] = deque()

    def take_snapshot(self) -> Snapshot:
        """Read what is new and return a snapshot."""
        placements = self.layout.load_placements()
        states = {placement.run: self._run_state(placement.run) for placement in placements}
        for run, state in states.items():
            if run not in self.finished and state != "missing":
                errors = try_read_each([self._get_run(run)], lambda stored: self.tails.setdefault(stored.id, LossTail(stored)).read_new())[
                    1
                ]
                self.read_errors = {**{id: reason for id, reason in self.read_errors.items() if id != run}, **dict(errors)}
                if state == "finished" and not errors:
                    self.finished.add(run)
        rows: dict[str, list[RunStatus]] = {}
        first_placements: dict[str, RunPlacement] = {}
        for placement in placements:
            first_placements.setdefault(placement.key, placement)
            state = "failed" if placement.run in self.read_errors else states[placement.run]
            rows.setdefault(placement.key, []).append(self._run_status(placement, state))
        groups = tuple(
            RunGroup(key, first_placements[key].condition, first_placements[key].stage, first_placements[key].role, tuple(runs))
            for key, runs in rows.items()
        )
        return self._build_snapshot(groups)

    def curve(self, run: str, domain: str = "") -> dict[int, float]:
        """Return a run's loss by round, sorted; empty if it has none. The domain ``""`` means all domains."""
        tail = self.tails.get(run)
        return dict(sorted(tail.curves.get(domain, {}).items())) if tail else {}

    @property
    def domains(self) -> list[str]:
        """Return the names of all domains with a recorded loss, sorted."""
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
        failure_reason = ""
        if placement.run in self.read_errors:
            failure_reason = f"it cannot be read: {self.read_errors[placement.run]}"
        elif state == "failed":
            failure_reason = (self.manifest.get_failure(placement.run) if self.manifest else "") or self._failure_message(placement.run)
        return RunStatus(
            placement.run,
            placement.seed,
            state,
            placement.num_rounds if state == "finished" else rounds,
            placement.num_rounds,
            tail.loss if tail else math.nan,
            tail.gap_to(self.tails.get(placement.baseline_run)) if tail else math.nan,
            placement.baseline_run,
            failure_reason,
        )

    def _failure_message(self, id: str) -> str:
        try:
            return str(json.loads((self._get_run(id).folder / "failed.json").read_bytes())["message"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _build_snapshot(self, rows: tuple[RunGroup, ...]) -> Snapshot:
        runs_by_id = {run.run: run for row in rows for run in row.runs}
        counts = Counter(run.state for run in runs_by_id.values())
        done, total = sum(run.rounds_done for run in runs_by_id.values()), sum(run.rounds_total for run in runs_by_id.values())
        failed_rounds = sum(run.rounds_total - run.rounds_done for run in runs_by_id.values() if run.state == "failed")
        manifest_values = self.layout.manifest_values if isinstance(self.layout, StudyLayout) else {}
        tuning_done = bool(manifest_values.get("complete", True))
        is_complete = bool(rows) and tuning_done and counts["finished"] + counts["failed"] == len(runs_by_id)
        question = manifest_values.get("study", {}).get("question", "")
        title = f"study {self.manifest.name}" if self.manifest else f"runs in {self.root}"
        snapshot = Snapshot(
            title, question, rows, "", is_complete, self._seconds_left(done, total - failed_rounds), (), counts, done, total
        )
        unreadable = [] if self.manifest else list_unreadable(self.root)
        suffix = f"; run {unreadable[0].id} cannot be read: {unreadable[0].reason}" if unreadable else ""
        suffix += f" (and {len(unreadable) - 1} more such runs)" if len(unreadable) > 1 else ""
        note = status_note(snapshot, self.manifest, self.root, tuning_done) + suffix
        return replace(snapshot, note=note.removeprefix("; "), findings=self.diagnoser.update(rows))

    def _seconds_left(self, done: int, total: int) -> float:
        now = self.clock()
        self.progress_history.append((now, done))
        while now - self.progress_history[0][0] > PACE_WINDOW_S:
            self.progress_history.popleft()
        first_time, first_done = self.progress_history[0]
        return (total - done) * (now - first_time) / (done - first_done) if done > first_done else math.nan


def status_note(snapshot: Snapshot, manifest: StudyManifest | None, root: Path, is_complete: bool) -> str:
    """Return the most important message about a snapshot, or an empty string."""
    counts = snapshot.counts
    if not snapshot.groups:
        return (
            f"study {manifest.name} has no runs in {root} yet; start it with `fedrift study STUDY.yaml`"
            if manifest
            else f"no runs in {root} yet; start one with `fedrift run EXPERIMENT.yaml`"
        )
    if snapshot.is_complete:
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        return f"all runs have ended: {counts['finished']} finished{failed}"
    if not counts["running"]:
        waiting = counts["unfinished"] + counts["missing"]
        message = f"no process is running, and {waiting} runs are not finished; repeat the command that started them to continue"
        return message if is_complete else f"{message}, which also starts the runs that tuning selects"
    return "" if is_complete else "tuning is in progress; the runs with the selected settings follow"


def is_running_elsewhere(folder: Path) -> bool:
    """Return whether a worker on another machine, whose lock is not visible here, has renewed its lease recently."""
    generation = max(list_generations(folder), default=-1)
    try:
        path = folder / f"lease.{generation}"
        return generation >= 0 and time() - path.stat().st_mtime < EXPIRY_S and json.loads(path.read_text())["host"] != get_host_id()
    except (OSError, ValueError, KeyError):
        return False


def open_monitor(root: Path, name: str = "") -> Monitor:
    """Return the monitor of a study or of a runs directory.

    Args:
        root: The runs directory.
        name: The name of a study, its YAML file, or a directory of runs; empty means all runs in ``root``. The study may have no runs yet.

    Raises:
        UserError: There is no such study.
    """
    if not name:
        return Monitor(root, None)
    path = Path(name)
    if name not in list_studies(root) and path.suffix in (".yaml", ".yml") and path.is_file():
        study = load_yaml(path, kind="study", example="base: my.yaml")
        return Monitor(root, StudyManifest(Path(root), str(study.get("name", path.stem))))
    if name not in list_studies(root) and path.is_dir() and not (path / "study.json").is_file():
        return Monitor(path, None)
    manifest = find_study(root, name)
    return Monitor(manifest.root, manifest)


def mean_curve(curves: Iterable[dict[int, float]]) -> dict[int, float]:
    """Return the mean of the curves in the rounds that all non-empty curves have."""
    started = [curve for curve in curves if curve]
    shared = set.intersection(*(set(curve) for curve in started)) if started else set()
    return {round: sum(curve[round] for curve in started) / len(started) for round in sorted(shared)}


def mean_known(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
