"""A study or a folder of runs on the terminal: the grid's state, losses as small curves, findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .studying import duration

if TYPE_CHECKING:
    from ..watch import Scene, Seen

MARKS = {"finished": ("●", "blue"), "running": ("◐", "yellow"), "unfinished": ("◌", "dim"), "missing": ("·", "dim"),
         "failed": ("✕", "bold red")}
BLOCKS = "▁▂▃▄▅▆▇█"
WIDE = 24  # characters of a small curve
Curve = Callable[[str], dict[int, float]]


def board(scene: Scene, curve: Curve, height: int = 60) -> RenderableType:
    """All of it, in about ``height`` lines; ``curve``: a run's loss by round."""
    parts: list[RenderableType] = [head(scene)]
    found = findings(scene, max(3, height // 6))
    if scene.rows:
        parts.append(grid(scene, curve, max(5, height - 10 - 2 * len(found))))
    return Group(*parts, *found)


def head(scene: Scene) -> RenderableType:
    """Title, how far it is, and what to know first."""
    from ..watch.scene import WORDS

    parts: list[RenderableType] = [Text.from_markup(f"[bold]{escape(scene.title)}[/]  {escape(scene.question)}")]
    if scene.total:
        said = ", ".join(f"{scene.counts[state]} {WORDS[state]}" for state in WORDS if scene.counts[state])
        left = "" if scene.over or math.isnan(scene.left) else f"; about {duration(scene.left)} left"
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=scene.total, completed=scene.done, width=30),
                    f"{scene.done / scene.total:.0%} of {scene.total} rounds; {said}{left}")
        parts.append(bar)
    if scene.note:
        parts.append(Text(scene.note, style="cyan"))
    return Group(*parts)


def grid(scene: Scene, curve: Curve, most: int) -> RenderableType:
    """A row an arm: its seeds' states, its loss over the rounds, its end, its distance to the IID twin."""
    order = sorted(scene.rows, key=lambda row: (not row.live, row.role == "twin"))
    shown = [row for row in scene.rows if row in order[:most]]
    curves = {row.key: means(curve(run.run) for run in row.runs) for row in shown}
    low, high = span(curves.values())
    table = Table(box=SIMPLE, pad_edge=False)
    scale = "" if math.isnan(low) else f"loss, {low:.2f} to {high:.2f}"
    for name, side in (("arm", "left"), ("seeds", "left"), ("rounds", "right"), (scale, "left"), ("now", "right"),
                       ("to twin", "right")):
        table.add_column(name, justify=side, no_wrap=name != "arm")  # type: ignore[arg-type]
    for row in shown:
        stage = f"{row.stage}: " if row.stage not in ("", "main", "tuning") else ""
        reached = min(run.round for run in row.runs), max(run.round for run in row.runs)
        table.add_row(Text(stage + row.arm, style="" if row.role == "run" else "dim"), seeds(row.runs),
                      str(reached[1]) if reached[0] == reached[1] else f"{reached[0]}-{reached[1]}",
                      sparkline(curves[row.key], low, high), told(average(run.loss for run in row.runs)),
                      told(average(run.gap for run in row.runs), "+.3f"))
    hidden = [row for row in scene.rows if row not in shown]
    if not hidden:
        return table
    states = {state: sum(run.state == state for row in hidden for run in row.runs) for state in MARKS}
    rest = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    return Group(table, Text(f"and {len(hidden)} more rows: {rest}", style="dim"))


def seeds(runs: Iterable[Seen]) -> Text:
    """A mark a seed."""
    text = Text()
    for run in runs:
        text.append(*MARKS[run.state])
    return text


def findings(scene: Scene, most: int) -> list[RenderableType]:
    """The gravest, and what failed."""
    parts: list[RenderableType] = []
    for each in scene.findings[:most]:
        colour = "bold red" if each["grade"] == "confirmed" else "yellow"
        where = f"{each['arm']}, and in {len(each['also'])} more" if each["also"] else each["arm"]
        parts.append(Text.from_markup(f"[{colour}]{each['failure']}[/] [bold]{escape(where)}[/]: {escape(each['sentence'])}"))
    if len(scene.findings) > most:
        parts.append(Text(f"and {len(scene.findings) - most} more findings; `fedrift watch --web` has them all", style="dim"))
    failed = [(row, run) for row in scene.rows for run in row.runs if run.state == "failed"]
    for row, run in failed[:most]:
        reason = run.why.splitlines()[0] if run.why else "no reason was left"
        parts.append(Text(f"failed {run.run[:6]} {row.arm}, seed {run.seed}: {reason}", style="red"))
    return parts


def means(curves: Iterable[dict[int, float]]) -> list[float]:
    """The mean by round over the runs that have begun."""
    begun = [curve for curve in curves if curve]
    rounds = sorted(set.intersection(*(set(curve) for curve in begun))) if begun else []
    return [sum(curve[round] for curve in begun) / len(begun) for round in rounds]


def span(curves: Iterable[list[float]]) -> tuple[float, float]:
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
    step = max(1, math.ceil(len(values) / WIDE))
    picked = values[::-1][::step][::-1]

    def block(value: float) -> str:
        if not math.isfinite(value) or value > high + 1e-9:
            return "×"
        return BLOCKS[min(len(BLOCKS) - 1, int((value - low) / (high - low or 1.0) * len(BLOCKS)))]

    return "".join(map(block, picked))


def average(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def told(value: float, form: str = ".3f") -> str:
    return "" if math.isnan(value) else format(value, form)


def plain(scene: Scene) -> dict[str, Any]:
    """The same for scripts."""
    from ..watch.served import state

    return {key: value for key, value in state(scene, (), 0.0, exact=True).items() if key not in ("every", "suggested", "words")}
