"""The command that says where a round's time and memory go: profile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ROOT, Compiled, Data, Deterministic, Device, Dtype, File, Json, Micro, Overrides, Tf32, Threads, runtime

if TYPE_CHECKING:
    from rich.console import Console

    from ..profile import Profile

Rounds = Annotated[int, typer.Option("--rounds", min=1, max=1_000_000, help="Rounds that are measured, after one to warm up.")]
SHOWN = 0.005  # of a run; what takes less is summed up on the screen
BUSY = 0.8  # of the threads at work; below, something else may have had the processor
Out = Annotated[Path | None, typer.Option("--out", help="Also write the figures to this file, as JSON.")]
Trace = Annotated[Path | None, typer.Option(
    "--trace", help="Write one whole round of training as a Chrome trace to this file (chrome://tracing, ui.perfetto.dev).")]


def profile(file: File, overrides: Overrides = None, rounds: Rounds = 2, data: Data = None, device: Device = "auto",
            threads: Threads = None, micro: Micro = None, dtype: Dtype = "auto", compiled: Compiled = False, tf32: Tf32 = False,
            deterministic: Deterministic = True, as_json: Json = False, out: Out = None, trace: Trace = None) -> None:
    """Say where a round's time and memory go, and what would make the run cheaper.

    `fedrift profile experiments/demo.yaml plan.batch=8 --threads 1`

    It computes a few rounds of the experiment as they are, in a folder that is thrown away, then one of them again
    under torch's profiler: seconds by phase, by kind of operation, FLOPs beside the machine's own matrix products,
    bytes by what they are. What it says is of this machine as it is now: profile on an idle one. `--trace round.json` keeps
    every operation of a round for a viewer.
    """
    from ..errors import UserError
    from ..experiment import load_experiment

    for path in (out, trace):
        if path is not None and not path.resolve().parent.is_dir():
            raise UserError(f"there is no folder {path.resolve().parent} to write {path.name} in: make it first")
    experiment = load_experiment(file, overrides or ())
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler would tell on the screen that it starts
    from rich.console import Console

    from ..profile import profiled
    from ..stock import Stock
    from ..store.lines import write_value

    stock = Stock(runtime(ROOT, data, device, threads, micro, dtype, compiled, None, tf32, deterministic))
    with Console(stderr=True).status("loading") as status:
        seen = profiled(experiment, stock, rounds, trace, say=lambda told: say(status, told))
    text = write_value(seen.said(), 2)
    if out is not None:
        out.write_text(text + "\n")
    if as_json:
        typer.echo(text)
    else:
        on_screen(Console(highlight=False), seen)
    for path in (out, trace):
        if path is not None:
            typer.echo(path.resolve(), err=True)


def say(status: Any, told: str) -> None:
    """On a terminal a line that changes, elsewhere a line each."""
    if status.console.is_terminal:
        status.update(told)
    else:
        status.console.print(told)


def on_screen(screen: Console, seen: Profile) -> None:
    machine, compute, passes = seen.machine, seen.compute, seen.passes
    screen.print(f"[bold]{seen.experiment}[/]  on {machine['device']}, {machine['threads']} thread(s), {machine['dtype']}")
    screen.print(f"{compute['tokens_per_second']:,.0f} tokens a second in training; {compute['flops_per_token'] / 1e6:,.1f} "
                 f"MFLOP a token, {compute['gflops']:,.1f} GFLOP/s, {compute['share_of_peak']:.0%} of what a large matrix "
                 f"product reaches here ({machine['gemm_peak_gflops']:,.0f})")
    if machine["device"] == "cpu" and machine["threads_at_work"] < BUSY * machine["threads"]:
        screen.print(f"[yellow]Of the {machine['threads']} thread(s) {machine['threads_at_work']:.2f} were at work: where other "
                     "programs run, seconds are longer than they need be, and the share of peak lower.[/]")
    rows = [(phase["name"], f"{phase['seconds']:.3f}", f"{phase['times']:,} x", f"{phase['total']:,.1f}", f"{phase['share']:.1%}")
            for per in ("run", "round") for phase in seen.phases if phase["per"] == per and phase["share"] >= SHOWN]
    small = [phase for phase in seen.phases if phase["share"] < SHOWN]
    rows.append((f"{len(small)} smaller", "", "", f"{sum(phase['total'] for phase in small):,.1f}",
                 f"{sum(phase['share'] for phase in small):.1%}"))
    table(screen, "A run", ("", "seconds each", "times", "seconds", "share"), rows)
    training = seen.training
    part = f" (the first {training['steps']} steps)" if training["steps"] else ""
    table(screen, f"Inside training{part}", ("", "seconds", "share"),
          [(kind, f"{seconds:.3f}", f"{training['shares'][kind]:.1%}") for kind, seconds in training["seconds"].items()])
    screen.print(f"[dim]under the profiler it took {training['slower_under_the_profiler']:.2f}x the time[/]")
    held = seen.memory["bytes"]
    total = sum(each for each in held.values() if each == each)
    table(screen, "Memory", ("", "MB", "share"),
          [(name, f"{size / 1e6:,.1f}", f"{size / total:.1%}") for name, size in held.items() if size])
    screen.print(f"resident at most {seen.memory['resident_peak'] / 1e6:,.0f} MB" + (
        f", on the device {seen.memory['device_peak'] / 1e6:,.0f} MB" if seen.memory["device_peak"] else ""))
    screen.print(f"{passes['micro']} clients in a pass: {passes['why']}")
    screen.print("; ".join(f"{trial['clients']} x batch {trial['batch']}: {trial['tokens_per_second']:,.0f} tokens/s"
                           for trial in passes["trials"]))
    screen.print(f"a client sends {seen.traffic['up'] / 1e3:,.1f} kB a round and receives {seen.traffic['down'] / 1e3:,.1f} kB\n")
    for hint in seen.hints:
        screen.print(f"- {hint}")


def table(screen: Console, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=SIMPLE)
    for column in columns:
        made.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    screen.print(made)


COMMANDS = [profile]
