"""Terminal output of runs and studies: progress bars, summaries, tables of verdicts and the dashboard of `fedrift monitor`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..diagnosis import judge_run
from ..diagnosis.verdict import to_perplexity
from ..report import RunView
from ..report.format import DASH, format_number, format_signed, format_strength, format_worst_domain, grade_with_label
from ..storage import Run
from .tables import format_duration, print_table

if TYPE_CHECKING:
    from ..engine.callbacks import Progress as RunProgress
    from ..engine.callbacks import ProgressCallback


WIDE_TERMINAL = 100  # columns
BAR_WIDTH = 48  # columns of a progress bar beside the name of the run: loss, bar, rounds and times
LOG_INTERVAL_S = 60.0  # a progress bar whose output is not a terminal, e.g. a log file, prints at most one line in this time


def log_progress(progress: Progress, task_id: TaskID) -> None:
    """Print the state of a task as a line if the output is not a terminal, where rich draws its bar only at the end."""
    task = progress.tasks[progress.task_ids.index(task_id)]
    now = time.monotonic()
    if progress.console.is_terminal or now - task.fields.get("logged", now - LOG_INTERVAL_S) < LOG_INTERVAL_S:
        return
    progress.update(task_id, logged=now)
    remaining = "" if task.time_remaining is None else f", about {format_duration(task.time_remaining)} remaining"
    label = task.fields.get("label", task.description)
    progress.console.print(f"{label}: {task.completed:.0f}/{task.total:.0f} rounds{remaining}", soft_wrap=True, highlight=False)


class RunProgressBar:
    """A progress bar over the rounds of several runs.

    Args:
        rounds: The total number of rounds of all runs.
    """

    def __init__(self, rounds: int) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task("loading", total=rounds)
        self.done = 0

    def __enter__(self) -> RunProgressBar:
        self.progress.start()
        return self

    def __exit__(self, *what: object) -> None:
        self.progress.stop()

    def callback_for(self, name: str) -> ProgressCallback:
        """Return the progress callback of one run; ``name`` labels the bar."""

        def on_progress(progress: RunProgress) -> None:
            loss = "" if math.isnan(progress.loss) else f"  loss {progress.loss:.3f}"
            completed = self.done + progress.round
            self.progress.update(self.task, completed=completed, description=f"{short}{loss}", label=f"{name}{loss}")
            log_progress(self.progress, self.task)

        # A long name would take the columns of the times.
        limit = max(self.progress.console.width - BAR_WIDTH, 16)
        short = name if len(name) <= limit else f"{name[: limit - 1].rstrip()}…"
        self.progress.update(self.task, description=short, label=name)
        return on_progress

    def advance(self, rounds: int) -> None:
        """Count the rounds of a run that has finished now or was finished before."""
        self.done += rounds
        self.progress.update(self.task, completed=self.done)


def run_view(run: Run, iid_baseline: Run | None = None) -> RunView:
    """Return a run, and its IID baseline if given, in the form that the report shows."""
    config = run.config
    return RunView(
        run_title(run), config, run.trajectory(), iid_baseline.trajectory() if iid_baseline else None, run.status, run.environment
    )


def run_title(run: Run) -> str:
    """Return a short title: algorithm, partition and severity, and for a fork also its origin and round."""
    config = run.config
    strength = format_strength(config["partition"]).removeprefix("severity ")
    fork = f" · fork of {config['fork']['run'][:6]} at round {config['fork']['from_round']}" if "fork" in config else ""
    return f"{config['algorithm']['type']} · {config['partition']['type']} {strength}{fork}"


def print_summary(run: Run, baseline: Run | None = None) -> None:
    """Print one run in a few lines: status, verdict, warnings, final evaluation and cost.

    Args:
        run: The run.
        baseline: Its IID baseline, with which the verdict compares it; None if none is stored.
    """
    console, verdict = Console(highlight=False), judge_run(run.trajectory(), baseline.trajectory() if baseline else None)
    console.print(f"[bold]{run_title(run)}[/]  run {run.id}  {run.status}")
    console.print(verdict.sentence)
    for warning in run_warnings(run):
        console.print(f"Warning: {escape(warning)}.")
    if run.is_finished:
        result = run.summary()
        seconds = result["seconds"]
        loss = result["final_loss"]  # None or NaN without a final evaluation (evaluation.final_blocks_per_domain=0)
        larger_evaluation = (
            ""
            if loss is None or math.isnan(loss)
            else f"perplexity {to_perplexity(loss)} (loss {loss:.3f} nats per token) after the last round on more held-out text; "
        )
        console.print(
            f"{larger_evaluation}trained on {result['train_tokens']:,.0f} tokens in {seconds['train']:.0f} s, "
            f"evaluated in {seconds['evaluate'] + seconds['final']:.0f} s"
        )
        if (updates := result.get("updates")) and (run.folder / "updates").is_dir():
            size = f"{updates['bytes'] / 1e6:.1f} MB"
            console.print(f"stored updates of {updates['rounds']} rounds ({size}): `fedrift fork {run.id[:6]} --from-round ...`")
    console.print(f"[dim]{run.folder}[/]", soft_wrap=True)


def print_verdicts(pairs: list[tuple[Run, Run]]) -> None:
    """Print a table of ``(run, IID baseline)`` pairs, and the verdict on each run in words.

    The table fits 80 columns; a wider terminal also shows the domain variability.
    """
    console, sentences = Console(highlight=False), []
    is_wide = console.width >= WIDE_TERMINAL
    numbers = ("perplexity", "loss", "gap", *(["variability"] if is_wide else []))
    columns, rows = ("algorithm", *numbers[:3], "worst domain", *numbers[3:], "diagnosis", "run"), []
    for run, baseline in pairs:
        verdict, name = judge_run(run.trajectory(), baseline.trajectory()), run.config["algorithm"]["type"]
        ratio = DASH if math.isnan(verdict.domain_variability_ratio) else f"{verdict.domain_variability_ratio:.1f}x"
        rows.append(
            (
                name,
                to_perplexity(verdict.final_loss),
                format_number(verdict.final_loss),
                format_signed(verdict.gap_to_iid),
                format_worst_domain(verdict),
                *([ratio] if is_wide else []),
                grade_with_label(verdict)[1],
                run.id[:6],
            )
        )
        sentences.append(
            f"[bold]{name}[/]: {verdict.sentence}" + "".join(f"\nWarning: {escape(warning)}." for warning in run_warnings(run))
        )
    print_table(console, columns, rows, numbers, "Mean of the last 5 evaluations; gap to IID baseline in nats per token")
    for sentence in sentences:
        console.print(sentence + "\n")


def run_warnings(run: Run) -> list[str]:
    """Return the warnings that a run recorded at its start, without duplicates."""
    return list(dict.fromkeys(event["message"].rstrip(".") for event in run.events() if event["kind"] == "warning"))


# Progress bar of a study.

if TYPE_CHECKING:
    from ..config.schema import ExperimentConfig
    from ..studies.executors import ProgressFn


class StudyProgressBar:
    """A progress bar over the rounds of a whole study, with the remaining time.

    Runs that finished before this start count as completed, but do not enter the estimate of the speed.

    Args:
        runs_dir: The folder of the runs.
    """

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=Console(stderr=True),
            speed_estimate_period=600,
        )

    def __enter__(self) -> StudyProgressBar:
        self.progress.start()
        return self

    def __exit__(self, *what: object) -> None:
        self.progress.stop()

    def start(self, label: str, experiments: Sequence[ExperimentConfig]) -> ProgressFn:
        """Add a bar for one stage of the study.

        Args:
            label: The name of the stage: the tuning or the runs.
            experiments: All experiments of the stage.

        Returns:
            A function that the study calls with a run id and the round that this run has reached.
        """
        rounds = {experiment.id: max(experiment.training.num_rounds, 1) for experiment in experiments}
        reached = {run: total if Run(self.runs_dir, run).is_finished else 0 for run, total in rounds.items()}

        def describe() -> str:
            return f"{label} {sum(reached[run] >= rounds[run] for run in rounds)}/{len(rounds)}"

        task = self.progress.add_task(describe(), total=sum(rounds.values()), completed=sum(reached.values()))

        def on_round(run: str, round: int) -> None:
            if reached.get(run) != round and run in reached:
                reached[run] = max(round, reached[run]) if round < rounds[run] else rounds[run]
                self.progress.update(task, completed=sum(reached.values()), description=describe())
                log_progress(self.progress, task)

        return on_round


# Dashboard of `fedrift monitor`: the state of every run, losses as sparklines, and findings.

if TYPE_CHECKING:
    from ..report.monitor import RunStatus, Snapshot

STATE_MARKS = {
    "finished": ("●", "blue"),
    "running": ("◐", "yellow"),
    "unfinished": ("◌", "dim"),
    "missing": ("·", "dim"),
    "failed": ("✕", "bold red"),
}
BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24  # characters
CurveFn = Callable[[str], dict[int, float]]


def render_dashboard(snapshot: Snapshot, curve: CurveFn, height: int = 60) -> RenderableType:
    """Return the whole dashboard.

    Args:
        snapshot: The state of the study or of the folder of runs.
        curve: Returns the loss by round of a run, given its id.
        height: The approximate number of lines to fill.
    """
    parts: list[RenderableType] = [render_header(snapshot)]
    findings = render_findings(snapshot, max(3, height // 6))
    if snapshot.groups:
        parts.append(render_grid(snapshot, curve, max(5, height - 10 - 2 * len(findings))))
    return Group(*parts, *findings)


def render_header(snapshot: Snapshot) -> RenderableType:
    """Return the title, the overall progress and the most important note."""
    from ..report.monitor import STATE_LABELS

    parts: list[RenderableType] = [Text.from_markup(f"[bold]{escape(snapshot.title)}[/]  {escape(snapshot.question)}")]
    if snapshot.rounds_total:
        states = ", ".join(f"{snapshot.counts[state]} {STATE_LABELS[state]}" for state in STATE_LABELS if snapshot.counts[state])
        remaining = (
            ""
            if snapshot.is_complete or math.isnan(snapshot.seconds_left)
            else f"; about {format_duration(snapshot.seconds_left)} remaining"
        )
        progress = Table.grid(padding=(0, 1))
        progress.add_row(
            ProgressBar(total=snapshot.rounds_total, completed=snapshot.rounds_done, width=30),
            f"{100 * snapshot.rounds_done / snapshot.rounds_total:.0f} % of {snapshot.rounds_total} rounds; {states}{remaining}",
        )
        parts.append(progress)
    if snapshot.note:
        parts.append(Text(snapshot.note, style="cyan"))
    return Group(*parts)


def render_grid(snapshot: Snapshot, curve: CurveFn, max_rows: int) -> RenderableType:
    """Return one row per condition: states of its seeds, loss over the rounds, current loss and gap to the IID baseline.

    Args:
        snapshot: The state of the study.
        curve: Returns the loss by round of a run, given its id.
        max_rows: The maximum number of rows. Running conditions come first; the hidden rows are summarized in one line.
    """
    from ..report.monitor import mean_curve, mean_known

    order = sorted(snapshot.groups, key=lambda row: (not row.is_running, row.role == "iid_baseline"))
    shown = [row for row in snapshot.groups if row in order[:max_rows]]
    curves = {row.key: list(mean_curve(curve(run.run) for run in row.runs).values()) for row in shown}
    low, high = shared_range(curves.values())
    table = Table(box=SIMPLE, pad_edge=False)
    scale = "" if math.isnan(low) else f"loss, {low:.2f} to {high:.2f}"
    for name, justify in (
        ("condition", "left"),
        ("seeds", "left"),
        ("rounds", "right"),
        (scale, "left"),
        ("now", "right"),
        ("gap to IID", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=name != "condition", overflow="fold")  # type: ignore[arg-type]
    for row in shown:
        stage = f"{row.stage}: " if row.stage not in ("", "main", "tuning") else ""
        reached = min(run.rounds_done for run in row.runs), max(run.rounds_done for run in row.runs)
        table.add_row(
            Text(stage + row.condition, style="" if row.role == "run" else "dim"),
            seed_marks(row.runs),
            str(reached[1]) if reached[0] == reached[1] else f"{reached[0]}-{reached[1]}",
            sparkline(curves[row.key], low, high),
            format_number(mean_known(run.loss for run in row.runs)),
            format_signed(mean_known(run.gap for run in row.runs)),
        )
    hidden = [row for row in snapshot.groups if row not in shown]
    if not hidden:
        return table
    states = {state: sum(run.state == state for row in hidden for run in row.runs) for state in STATE_MARKS}
    summary = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    return Group(table, Text(f"and {len(hidden)} more rows: {summary}", style="dim"))


def seed_marks(runs: Iterable[RunStatus]) -> Text:
    """Return one mark per seed."""
    text = Text()
    for run in runs:
        text.append(*STATE_MARKS[run.state])
    return text


def render_findings(snapshot: Snapshot, max_items: int) -> list[RenderableType]:
    """Return the most severe findings, then the failed runs; at most ``max_items`` of each."""
    parts: list[RenderableType] = []
    for finding in snapshot.findings[:max_items]:
        color = "bold red" if finding["grade"] == "confirmed" else "yellow"
        condition = f"{finding['condition']}, and in {len(finding['also'])} more conditions" if finding["also"] else finding["condition"]
        parts.append(Text.from_markup(f"[{color}]{finding['failure']}[/] [bold]{escape(condition)}[/]: {escape(finding['sentence'])}"))
    if len(snapshot.findings) > max_items:
        parts.append(
            Text(f"and {len(snapshot.findings) - max_items} more findings; `fedrift monitor --web` shows all of them", style="dim")
        )
    failed = [(row, run) for row in snapshot.groups for run in row.runs if run.state == "failed"]
    for row, run in failed[:max_items]:
        reason = run.failure_reason.splitlines()[0] if run.failure_reason else "no reason was recorded"
        parts.append(Text(f"failed {run.run[:6]} {row.condition}, seed {run.seed}: {reason}", style="red"))
    return parts


def shared_range(curves: Iterable[list[float]]) -> tuple[float, float]:
    """Return the lowest and the highest loss of the scale that all sparklines share; NaN if there is no loss.

    The scale ends at 1.5 times the highest initial loss, so that a diverging loss does not flatten the other curves.
    """
    nonempty = [curve for curve in curves if curve]
    finite = sorted(value for curve in nonempty for value in curve if math.isfinite(value))
    starts = [curve[0] for curve in nonempty if math.isfinite(curve[0])]
    if not finite:
        return math.nan, math.nan
    return finite[0], min(finite[-1], 1.5 * max(starts)) if starts else finite[-1]


def sparkline(values: list[float], low: float, high: float) -> str:
    """Return values as block characters such as ``▇▆▅▃▂``.

    The text has at most ``SPARKLINE_WIDTH`` characters and ends with the last value. ``×`` marks a value that is not finite or
    lies above ``high``.
    """
    if not values or math.isnan(low):
        return ""
    step = max(1, math.ceil(len(values) / SPARKLINE_WIDTH))
    picked = values[::-1][::step][::-1]

    def block(value: float) -> str:
        if not math.isfinite(value) or value > high + 1e-9:
            return "×"
        return BLOCKS[min(len(BLOCKS) - 1, int((value - low) / (high - low or 1.0) * len(BLOCKS)))]

    return "".join(map(block, picked))


def snapshot_to_plain(snapshot: Snapshot) -> dict[str, Any]:
    """Return the snapshot as plain values for ``--json``."""
    from ..report.web import snapshot_to_json

    return {
        key: value
        for key, value in snapshot_to_json(snapshot, (), 0.0, is_exact=True).items()
        if key not in ("interval", "suggested", "state_labels")
    }
