"""The command that judges runs: diagnose."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import ROOT, Data, Device, Json, Names, Root, Threads, print_json, runtime, tell_unreadable

if TYPE_CHECKING:
    from ..diagnose import Judgement
    from ..diagnose.cases import Group

FailOn = Annotated[Literal["suspected", "confirmed"] | None, typer.Option(
    "--fail-on", help="Exit with 1 if anything is found of this grade or a graver one.")]
Twins = Annotated[bool, typer.Option("--twin", help="Run the IID twins that are not there yet.")]


def diagnose(names: Names, twin: Twins = False, fail_on: FailOn = None, root: Root = ROOT, as_json: Json = False,
             data: Data = None, device: Device = "auto", threads: Threads = None) -> None:
    """Say what broke, since when, for whom, and whether the skew did it.

    Runs that differ only in their seed are judged together. Each is held against its IID twin; a pooled run, everybody alone,
    FedSGD, other learning rates and other numbers of local steps are used where they are among the runs. One or two seeds raise a
    suspicion; three can confirm one.

    `fedrift diagnose 5c35 77e0 a01b --twin --fail-on confirmed`
    """
    from ..diagnose import diagnose as judge
    from ..diagnose.cases import sort_groups
    from ..diagnose.telling import plain
    from ..errors import UserError
    from ..store import find_runs, list_runs, list_unreadable
    from .screen import title

    chosen, faulty = find_runs(root, names)
    groups, bad = sort_groups(chosen, list_runs(root))
    if twin and run_twins(groups, root, data, device, threads):
        groups, bad = sort_groups(chosen, list_runs(root))
    tell_unreadable(dict.fromkeys([*faulty, *bad, *list_unreadable(root)]))
    if not groups:
        raise UserError("none of these runs can be read")
    every = []
    for group in groups:
        judgements = judge(group.cases)
        every += judgements
        said = {"runs": [run.id for run in group.runs], "twins": [each.id if each else None for each in group.twins],
                "thresholds": dict(thresholds()), "judgements": plain(judgements)}
        for run in group.runs:
            run.write_json("findings", said)
        if as_json:
            print_json({**said, "judgements": [asdict(judgement) for judgement in judgements]})
        else:
            on_screen(group, f"{title(group.runs[0])}", judgements)
    grave = {"suspected": ("suspected", "confirmed"), "confirmed": ("confirmed",)}
    if fail_on and any(judgement.grade in grave[fail_on] for judgement in every):
        raise typer.Exit(1)


def run_twins(groups: list[Group], root: Path, data: Path | None, device: str, threads: int | None) -> int:
    """Run the twins that are missing; how many that were."""
    from ..experiment import parse_stored
    from ..experiment import twin as iid
    from .running import carry_out_all

    lone = [run.experiment for group in groups for run, twin in zip(group.runs, group.twins, strict=True) if twin is None]
    asked = [parse_stored(said) for said in lone]
    wanted = [iid(experiment) for experiment in asked if experiment.partition.severity > 0]
    if wanted:
        carry_out_all(wanted, runtime(root, data, device, threads))
    return len(wanted)


def thresholds() -> dict[str, str]:
    """Which thresholds judged."""
    from ..detectors.finding import read_limits

    limits = read_limits()
    return {"version": str(limits["version"]), "date": str(limits["date"])}


def on_screen(group: Group, name: str, judgements: list[Judgement]) -> None:
    """What was found first, then what was looked for in vain, then what was not measured."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    screen = Console(highlight=False)
    seeds = ", ".join(str(run.experiment["seed"]) for run in group.runs)
    twins = sum(twin is not None for twin in group.twins)
    screen.print(f"[bold]{name}[/]  seeds {seeds}; {twins} of {len(group.runs)} with an IID twin")
    found = [judgement for judgement in judgements if judgement.grade in ("suspected", "confirmed")]
    if found:
        table = Table(box=SIMPLE)
        for column in ("failure", "grade", "since", "clients", "where", "strength"):
            table.add_column(column, justify="right" if column in ("since", "strength") else "left")
        for each in found:
            since = "" if each.since is None else str(each.since)
            table.add_row(each.failure, each.grade, since, few(each.clients), few(each.where), f"{each.strength:.1f}x")
        screen.print(table)
        for each in found:
            screen.print(f"[bold]{each.failure}[/]: {each.sentence}\n")
    else:
        screen.print("Nothing found. One look is no certificate: effects smaller than these would have been missed.")
    silent = [judgement for judgement in judgements if judgement.grade == "none"]
    if silent:
        screen.print("Looked for and not found, with the smallest effect that would have been called:")
        for each in silent:
            screen.print(f"  {each.failure} ({each.detectable:.3g} {each.unit})")
    missing = [judgement for judgement in judgements if judgement.grade == "not measured"]
    if missing:
        screen.print("Not measured:")
        for each in missing:
            screen.print(f"  {each.failure}: needs {each.needs}")
    if not twins:
        screen.print("Without IID twins nothing can be laid on the skew; `--twin` runs them.")


def few(names: tuple[int, ...] | tuple[str, ...]) -> str:
    """The first of many."""
    return ", ".join(map(str, names[:4])) + (" ..." if len(names) > 4 else "")


COMMANDS = [diagnose]
