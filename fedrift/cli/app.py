"""``fedrift``: the commands, and how mistakes are told."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import UserError
from . import (
    bounding,
    calibrating,
    dealing,
    deploying,
    diagnosing,
    judging,
    looking,
    mitigating,
    profiling,
    replaying,
    running,
    sharing,
    studying,
    telling,
    watching,
)

app = typer.Typer(
    name="fedrift", no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="""When, how and why does federated fine-tuning of language models break under non-IID data?

`fedrift demo` shows the whole way in a few minutes. An experiment is a YAML file
(`experiments/*.yaml`); any key can be changed on the command line, e.g.
`fedrift run experiments/demo.yaml algorithm=Scaffold partition.severity=0.5`.

A run that was stopped goes on where it was when the same command is given again.""")


def version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedrift {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


for room in (running, looking, profiling, deploying, diagnosing, replaying, calibrating, bounding, mitigating, studying, sharing,
             watching, judging, telling):
    for command in room.COMMANDS:
        app.command()(command)
app.add_typer(dealing.app)


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.secho("fedrift: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        sys.exit(2)
