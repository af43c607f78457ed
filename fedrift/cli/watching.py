"""The command that looks on: watch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ROOT, Json, Root, check_number, print_json

if TYPE_CHECKING:
    from ..watch import Watcher

Name = Annotated[str, typer.Argument(help="A study's name or its YAML file, or a folder of runs; all runs if not said.",
                                     metavar="[STUDY]", show_default=False)]
Web = Annotated[bool, typer.Option("--web", help="In the browser: a page on this machine, for this machine only.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="With --web; 0 takes any free one.")]
Host = Annotated[str, typer.Option("--host", help="With --web: where to listen; others than 127.0.0.1 let the network read.")]
Every = Annotated[float, typer.Option("--every", min=0.2, max=3600, callback=check_number, help="Seconds between two looks.")]
Once = Annotated[bool, typer.Option("--once", help="Look once and end.")]


def watch(name: Name = "", web: Web = False, port: Port = 8770, host: Host = "127.0.0.1", every: Every = 2.0, once: Once = False,
          root: Root = ROOT, as_json: Json = False) -> None:
    """Look on while runs go on in other processes: losses, findings, how far the grid is. It only reads.

    `fedrift watch small` beside `fedrift study studies/small.yaml`, or `fedrift watch small --web`

    On the terminal it ends when nothing is left to run; ctrl-C ends it at any time and stops no run.
    """
    from ..watch import target

    watcher = target(root, name)
    if as_json:
        from .board import plain

        print_json(plain(watcher.look()))
    elif web:
        serve(watcher, host, port, every)
    else:
        show(watcher, every, once)


def serve(watcher: Watcher, host: str, port: int, every: float) -> None:
    """The page, until ctrl-C."""
    from ..watch.server import Server

    with Server(watcher, host, port, every) as server:
        typer.echo(f"{server.address}  (ctrl-C ends it; the runs go on)")
        if host not in ("127.0.0.1", "localhost", "::1"):
            typer.echo(f"who reaches {host} can read these runs; `ssh -L {port}:127.0.0.1:{port}` keeps them to you", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended; the runs go on", err=True)


def show(watcher: Watcher, every: float, once: bool) -> None:
    """The terminal, until all is done or ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    from .board import board

    screen = Console(highlight=False)
    scene = watcher.look()
    if once or scene.over or not screen.is_terminal:
        screen.print(board(scene, watcher.curve, max(screen.height, 40)))
        return
    try:
        with Live(board(scene, watcher.curve, screen.height), console=screen, auto_refresh=False) as live:
            while not scene.over:
                time.sleep(every)
                scene = watcher.look()
                live.update(board(scene, watcher.curve, screen.height), refresh=True)
    except KeyboardInterrupt:
        typer.echo("ended; the runs go on", err=True)


COMMANDS = [watch]
