"""What runs look like on a terminal: a progress bar, a summary, a table of verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..diagnosis import judge_run
from ..report import RunView
from ..storage import Run
from .study import format_duration

if TYPE_CHECKING:
    from ..engine.callbacks import Progress as Told
    from ..engine.callbacks import ProgressCallback


class RunProgressBar:
    """A progress bar over the rounds of several runs."""

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
        """The watch of one run."""

        def watch(told: Told) -> None:
            loss = "" if math.isnan(told.loss) else f"  loss {told.loss:.3f}"
            self.progress.update(self.task, completed=self.done + told.round, description=f"{name}{loss}")

        self.progress.update(self.task, description=name)
        return watch

    def advance(self, rounds: int) -> None:
        """A run is over, or was before: its rounds count."""
        self.done += rounds
        self.progress.update(self.task, completed=self.done)


def run_view(run: Run, iid_baseline: Run | None = None) -> RunView:
    """A run as the report shows it."""
    said = run.config
    return RunView(run_title(run), said, run.trajectory(), iid_baseline.trajectory() if iid_baseline else None, run.status, run.environment)


def run_title(run: Run) -> str:
    """A short name: algorithm, regime and severity; of a fork, where it parts."""
    said = run.config
    fork = f" · from {said['fork']['run'][:6]} at {said['fork']['from_round']}" if "fork" in said else ""
    return f"{said['algorithm']['type']} · {said['partition']['type']} {said['partition'].get('severity', 0):g}{fork}"


def print_summary(run: Run) -> None:
    """One run in a few lines."""
    screen, said = Console(highlight=False), judge_run(run.trajectory())
    screen.print(f"[bold]{run_title(run)}[/]  run {run.id}  {run.status}")
    screen.print(said.sentence)
    for caveat in run_caveats(run):
        screen.print(f"Caveat: {escape(caveat)}.")
    if run.is_finished:
        end = run.read_json("finished")
        seconds = end["seconds"]
        screen.print(
            f"final loss {end['final_loss']:.3f} nats per token on the larger test set; "
            f"{end['train_tokens']:,.0f} tokens trained in {seconds['train']:.0f} s, "
            f"evaluated in {seconds['evaluate'] + seconds['final']:.0f} s"
        )
        if kept := end.get("updates"):
            screen.print(
                f"updates of {kept['rounds']} rounds kept, {kept['bytes'] / 1e6:.1f} MB: `fedrift fork {run.id[:6]} --from-round ...`"
            )
    screen.print(f"[dim]{run.folder}[/]", soft_wrap=True)


def print_verdicts(pairs: list[tuple[Run, Run]]) -> None:
    """Runs beside their IID baselines, and what to think of each."""
    table = Table(title="Loss (nats per token, mean of the last 5 evaluations) beside IID baseline", box=SIMPLE, collapse_padding=True)
    for name in ("algorithm", "loss", "gap", "worst domain", "variability", "diagnosis", "run"):
        table.add_column(name, justify="right" if name in ("loss", "gap", "variability") else "left", no_wrap=True)
    screen, sentences = Console(highlight=False), []
    for run, twin in pairs:
        said, name = judge_run(run.trajectory(), twin.trajectory()), run.config["algorithm"]["type"]
        table.add_row(
            name,
            format_number(said.final_loss),
            format_signed(said.gap_to_iid),
            f"{said.worst_domain} {format_signed(said.worst_domain_gap)}",
            "" if math.isnan(said.domain_variability_ratio) else f"{said.domain_variability_ratio:.1f}x",
            said.grade,
            run.id[:6],
        )
        sentences.append(f"[bold]{name}[/]: {said.sentence}" + "".join(f"\nCaveat: {escape(caveat)}." for caveat in run_caveats(run)))
    screen.print(table)
    for sentence in sentences:
        screen.print(sentence + "\n")


def run_caveats(run: Run) -> list[str]:
    """What was said of a run when it began, each once."""
    return list(dict.fromkeys(event["message"].rstrip(".") for event in run.events() if event["kind"] == "caveat"))


def format_signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.3f}"


def format_number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


# A progress bar over the rounds of a whole study, with the time that is left.

if TYPE_CHECKING:
    from ..config.schema import ExperimentConfig
    from ..studies.worker import ProgressFn


class StudyProgressBar:
    """Counts rounds; those done before this start count as done but not as speed."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
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
        """A bar for the tuning stage or for the runs."""
        rounds = {experiment.id: max(experiment.training.num_rounds, 1) for experiment in experiments}
        reached = dict.fromkeys(rounds, 0)
        total = sum(rounds.values())
        task = self.progress.add_task(f"{label} 0/{len(rounds)}", total=total)

        def tell(run: str, round: int) -> None:
            if reached.get(run) != round and run in reached:
                reached[run] = max(round, reached[run]) if round < rounds[run] else rounds[run]
                over = sum(reached[each] >= rounds[each] for each in rounds)
                self.progress.update(task, completed=sum(reached.values()), description=f"{label} {over}/{len(rounds)}")

        return tell


# A study or a folder of runs on the terminal: the grid's state, losses as small curves, findings.

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
SPARKLINE_WIDTH = 24  # characters of a small curve
CurveFn = Callable[[str], dict[int, float]]


def render_dashboard(snapshot: Snapshot, curve: CurveFn, height: int = 60) -> RenderableType:
    """All of it, in about ``height`` lines; ``curve``: a run's loss by round."""
    parts: list[RenderableType] = [render_header(snapshot)]
    found = render_findings(snapshot, max(3, height // 6))
    if snapshot.rows:
        parts.append(render_grid(snapshot, curve, max(5, height - 10 - 2 * len(found))))
    return Group(*parts, *found)


def render_header(snapshot: Snapshot) -> RenderableType:
    """Title, how far it is, and what to know first."""
    from ..report.monitor import STATE_LABELS

    parts: list[RenderableType] = [Text.from_markup(f"[bold]{escape(snapshot.title)}[/]  {escape(snapshot.question)}")]
    if snapshot.rounds_total:
        said = ", ".join(f"{snapshot.counts[state]} {STATE_LABELS[state]}" for state in STATE_LABELS if snapshot.counts[state])
        left = "" if snapshot.is_complete or math.isnan(snapshot.seconds_left) else f"; about {format_duration(snapshot.seconds_left)} left"
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=snapshot.rounds_total, completed=snapshot.rounds_done, width=30),
            f"{snapshot.rounds_done / snapshot.rounds_total:.0%} of {snapshot.rounds_total} rounds; {said}{left}",
        )
        parts.append(bar)
    if snapshot.note:
        parts.append(Text(snapshot.note, style="cyan"))
    return Group(*parts)


def render_grid(snapshot: Snapshot, curve: CurveFn, max_rows: int) -> RenderableType:
    """A row an arm: its seeds' states, its loss over the rounds, its end, its distance to the IID baseline."""
    order = sorted(snapshot.rows, key=lambda row: (not row.is_running, row.role == "iid_baseline"))
    shown = [row for row in snapshot.rows if row in order[:max_rows]]
    curves = {row.key: mean_curve(curve(run.run) for run in row.runs) for row in shown}
    low, high = shared_range(curves.values())
    table = Table(box=SIMPLE, pad_edge=False)
    scale = "" if math.isnan(low) else f"loss, {low:.2f} to {high:.2f}"
    for name, side in (
        ("condition", "left"),
        ("seeds", "left"),
        ("rounds", "right"),
        (scale, "left"),
        ("now", "right"),
        ("gap to IID", "right"),
    ):
        table.add_column(name, justify=side, no_wrap=name != "condition")  # type: ignore[arg-type]
    for row in shown:
        stage = f"{row.stage}: " if row.stage not in ("", "main", "tuning") else ""
        reached = min(run.round for run in row.runs), max(run.round for run in row.runs)
        table.add_row(
            Text(stage + row.condition, style="" if row.role == "run" else "dim"),
            seed_marks(row.runs),
            str(reached[1]) if reached[0] == reached[1] else f"{reached[0]}-{reached[1]}",
            sparkline(curves[row.key], low, high),
            format_known(mean_known(run.loss for run in row.runs)),
            format_known(mean_known(run.gap for run in row.runs), "+.3f"),
        )
    hidden = [row for row in snapshot.rows if row not in shown]
    if not hidden:
        return table
    states = {state: sum(run.state == state for row in hidden for run in row.runs) for state in STATE_MARKS}
    rest = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    return Group(table, Text(f"and {len(hidden)} more rows: {rest}", style="dim"))


def seed_marks(runs: Iterable[RunStatus]) -> Text:
    """A mark a seed."""
    text = Text()
    for run in runs:
        text.append(*STATE_MARKS[run.state])
    return text


def render_findings(snapshot: Snapshot, max_items: int) -> list[RenderableType]:
    """The gravest, and what failed."""
    parts: list[RenderableType] = []
    for each in snapshot.findings[:max_items]:
        colour = "bold red" if each["grade"] == "confirmed" else "yellow"
        where = f"{each['condition']}, and in {len(each['also'])} more" if each["also"] else each["condition"]
        parts.append(Text.from_markup(f"[{colour}]{each['failure']}[/] [bold]{escape(where)}[/]: {escape(each['sentence'])}"))
    if len(snapshot.findings) > max_items:
        parts.append(Text(f"and {len(snapshot.findings) - max_items} more findings; `fedrift monitor --web` has them all", style="dim"))
    failed = [(row, run) for row in snapshot.rows for run in row.runs if run.state == "failed"]
    for row, run in failed[:max_items]:
        reason = run.failure_reason.splitlines()[0] if run.failure_reason else "no reason was left"
        parts.append(Text(f"failed {run.run[:6]} {row.condition}, seed {run.seed}: {reason}", style="red"))
    return parts


def mean_curve(curves: Iterable[dict[int, float]]) -> list[float]:
    """The mean by round over the runs that have begun."""
    begun = [curve for curve in curves if curve]
    rounds = sorted(set.intersection(*(set(curve) for curve in begun))) if begun else []
    return [sum(curve[round] for curve in begun) / len(begun) for round in rounds]


def shared_range(curves: Iterable[list[float]]) -> tuple[float, float]:
    """The scale that all small curves share; a loss that runs away does not flatten the others."""
    every = [curve for curve in curves if curve]
    known = sorted(value for curve in every for value in curve if math.isfinite(value))
    starts = [curve[0] for curve in every if math.isfinite(curve[0])]
    if not known:
        return math.nan, math.nan
    return known[0], min(known[-1], 1.5 * max(starts)) if starts else known[-1]


def sparkline(values: list[float], low: float, high: float) -> str:
    """``▇▆▅▃▂``: at most ``WIDE`` characters, the last value at the end; ``×`` is no number or off the scale."""
    if not values or math.isnan(low):
        return ""
    step = max(1, math.ceil(len(values) / SPARKLINE_WIDTH))
    picked = values[::-1][::step][::-1]

    def block(value: float) -> str:
        if not math.isfinite(value) or value > high + 1e-9:
            return "×"
        return BLOCKS[min(len(BLOCKS) - 1, int((value - low) / (high - low or 1.0) * len(BLOCKS)))]

    return "".join(map(block, picked))


def mean_known(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def format_known(value: float, number_format: str = ".3f") -> str:
    return "" if math.isnan(value) else format(value, number_format)


def snapshot_to_plain(snapshot: Snapshot) -> dict[str, Any]:
    """The same for scripts."""
    from ..report.web import snapshot_to_json

    return {
        key: value
        for key, value in snapshot_to_json(snapshot, (), 0.0, is_exact=True).items()
        if key not in ("every", "suggested", "words")
    }
