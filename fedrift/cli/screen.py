"""What runs look like on a terminal: a progress bar, a summary, a table of verdicts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..diagnose import verdict
from ..report import Exhibit
from ..store import Run

if TYPE_CHECKING:
    from ..run import Progress as Told
    from ..run import Watch


class Bar:
    """A progress bar over the rounds of several runs."""

    def __init__(self, rounds: int) -> None:
        self.progress = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                                 TimeRemainingColumn(), console=Console(stderr=True))
        self.task = self.progress.add_task("loading", total=rounds)
        self.done = 0

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *what: object) -> None:
        self.progress.stop()

    def of(self, name: str) -> Watch:
        """The watch of one run."""
        def watch(told: Told) -> None:
            loss = "" if math.isnan(told.loss) else f"  loss {told.loss:.3f}"
            self.progress.update(self.task, completed=self.done + told.round, description=f"{name}{loss}")

        self.progress.update(self.task, description=name)
        return watch

    def over(self, rounds: int) -> None:
        """A run is over, or was before: its rounds count."""
        self.done += rounds
        self.progress.update(self.task, completed=self.done)


def exhibit(run: Run, twin: Run | None = None) -> Exhibit:
    """A run as the report shows it."""
    said = run.experiment
    return Exhibit(title(run), said, run.trajectory(), twin.trajectory() if twin else None, run.status, run.environment)


def title(run: Run) -> str:
    """A short name: algorithm, regime and severity; of a fork, where it parts."""
    said = run.experiment
    fork = f" · from {said['fork']['run'][:6]} at {said['fork']['round']}" if "fork" in said else ""
    return f"{said['algorithm']['is']} · {said['partition']['is']} {said['partition'].get('severity', 0):g}{fork}"


def summary(run: Run) -> None:
    """One run in a few lines."""
    screen, said = Console(highlight=False), verdict(run.trajectory())
    screen.print(f"[bold]{title(run)}[/]  run {run.id}  {run.status}")
    screen.print(said.sentence)
    for caveat in caveats(run):
        screen.print(f"Caveat: {escape(caveat)}.")
    if run.finished:
        end = run.read_json("finished")
        seconds = end["seconds"]
        screen.print(f"final loss {end['final_loss']:.3f} nats per token on the larger test set; "
                     f"{end['train_tokens']:,.0f} tokens trained in {seconds['train']:.0f} s, "
                     f"evaluated in {seconds['evaluate'] + seconds['final']:.0f} s")
        if kept := end.get("updates"):
            screen.print(f"updates of {kept['rounds']} rounds kept, {kept['bytes'] / 1e6:.1f} MB: "
                         f"`fedrift replay {run.id[:6]} --from-round ...`")
    screen.print(f"[dim]{run.folder}[/]", soft_wrap=True)


def verdicts(pairs: list[tuple[Run, Run]]) -> None:
    """Runs beside their IID twins, and what to think of each."""
    table = Table(title="Beside the IID twin: loss in nats per token, mean of the last 5 evaluations", box=SIMPLE)
    for name in ("algorithm", "end", "gap", "worst domain", "swing", "failure", "run"):
        table.add_column(name, justify="right" if name in ("end", "gap", "swing") else "left", no_wrap=True)
    screen, sentences = Console(highlight=False), []
    for run, twin in pairs:
        said, name = verdict(run.trajectory(), twin.trajectory()), run.experiment["algorithm"]["is"]
        table.add_row(name, number(said.end), signed(said.gap), f"{said.worst_domain} {signed(said.worst_gap)}",
                      "" if math.isnan(said.swing_ratio) else f"{said.swing_ratio:.1f}x", said.grade, run.id[:6])
        sentences.append(f"[bold]{name}[/]: {said.sentence}" + "".join(f"\nCaveat: {escape(caveat)}." for caveat in caveats(run)))
    screen.print(table)
    for sentence in sentences:
        screen.print(sentence + "\n")


def caveats(run: Run) -> list[str]:
    """What was said of a run when it began, each once."""
    return list(dict.fromkeys(event["message"].rstrip(".") for event in run.events() if event["kind"] == "caveat"))


def signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.3f}"


def number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
