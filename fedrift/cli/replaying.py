"""The command that forks a run: replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import ROOT, Data, Device, Json, Root, Threads, print_json, runtime

if TYPE_CHECKING:
    from ..replay import Told

COLUMNS = 6  # domains that a table has room for

Name = Annotated[str, typer.Argument(
    help="A run that kept its updates: its id (its first letters do), or its folder.", metavar="RUN")]
Changes = Annotated[list[str] | None, typer.Argument(
    help="What to change: `drop_client=3`, `algorithm.aggregate=Median`, `plan.optimizer.lr=0.1`, `plan.clip=0.5`.",
    metavar="[a.b=c]...")]
FromRound = Annotated[int, typer.Option(
    "--from-round", min=1, max=1_000_000, help="The first round that may differ; those before are the run's.")]


def replay(name: Name, from_round: FromRound, changes: Changes = None, root: Root = ROOT, as_json: Json = False,
           data: Data = None, device: Device = "auto", threads: Threads = None) -> None:
    """Fork a run at a round with something changed, and show where the two part: causes, not correlations.

    `fedrift run my.yaml --keep-updates`, and then `fedrift replay 5c35 --from-round 7 drop_client=3`

    `drop_client=3` (or `3,4`): what they send counts for nothing from that round on; up to `drop_until=9`, if that is said.
    Anything of `algorithm` and `plan` can be changed too: `algorithm.server={is: Adam, lr: 0.01}` (another server optimiser),
    `algorithm.aggregate={is: Clipped, length: 0.5}` (changes no longer than that). A change on the server's side takes the
    clients' recorded updates in the first round; what comes after is trained anew. With nothing changed it is the same run,
    bit for bit.

    The fork is a run like any other, for `show`, `report`, `compare` and `diagnose`.
    """
    from ..diagnose.telling import cleaned
    from ..recording import Parting
    from ..replay import forked, told
    from ..store import Run, find_run, list_runs
    from .running import carry_out_all

    origin = find_run(root, name)
    experiment = forked(origin, from_round, changes or ())
    parting = Parting.of(Run(origin.root, experiment.id), experiment)
    assert parting is not None
    carry_out_all([experiment], runtime(origin.root, data, device, threads))
    said = told(parting, list_runs(origin.root))
    parting.run.write_json("replay", cleaned(said.plain()))
    if as_json:
        print_json(said.plain())
    else:
        on_screen(said)


def on_screen(said: Told) -> None:
    """The table of rounds, the sentence, and what the detectors say of both."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from .screen import number, signed

    screen = Console(highlight=False)
    screen.print(f"[bold]Run {said.origin[:6]} from round {said.round} on[/], {said.said}", markup=True)
    names = sorted({domain for row in said.rounds for domain in row.domains})
    shown = names if len(names) <= COLUMNS else []
    table = Table(title="Fork less origin: loss in nats per token", box=SIMPLE)
    for column in ("round", "apart", "origin", "fork", "all", *shown):
        table.add_column(column, justify="right")
    for row in said.rounds:
        table.add_row(str(row.round), number(row.distance), number(row.origin), number(row.fork), signed(row.difference),
                      *(signed(row.domains[domain]) for domain in shown))
    screen.print(table)
    round = (f"Round {said.round} took the clients' recorded updates." if said.reused else
             f"The change touches what clients do, so round {said.round} was trained anew too.")
    screen.print(f"{said.sentence} {round}\n")
    held = f"the IID twin {said.twin[:6]}" if said.twin else "no IID twin (`fedrift diagnose --twin` runs it)"
    found = "Detectors on both" if said.findings else "The detectors find nothing in either"
    screen.print(f"{found}, held against {held}{':' if said.findings else '.'}")
    for each in said.findings:
        screen.print(f"  {each.sentence}")
    screen.print(f"[dim]fork {said.fork}[/]")


COMMANDS = [replay]
