"""``fedrift``: the commands, and how mistakes are told."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup, TyperOption

from .. import __version__
from ..core.errors import UserError
from . import adapters, conformance, deploy, diagnose, inspect, partition, run, study
from .options import VERBOSE


class CommandGroup(TyperGroup):
    """The commands, each with the option ``--verbose``."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None and all(param.name != "verbose" for param in command.params):
            command.params.append(
                TyperOption(
                    param_decls=["--verbose"],
                    is_flag=True,
                    expose_value=False,
                    default=False,
                    help="Print tracebacks of errors.",
                    callback=lambda ctx, param, value: VERBOSE.set(VERBOSE.get() or bool(value)),
                )
            )
        return command


app = typer.Typer(
    cls=CommandGroup,
    name="fedrift",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="""When, how and why does federated fine-tuning of language models break under non-IID data?

`fedrift demo` shows the whole way in a few minutes. An experiment is a YAML file
(`experiments/*.yaml`); any key can be changed on the command line, e.g.
`fedrift run experiments/demo.yaml algorithm=Scaffold partition.severity=0.5`.

A run that was stopped goes on where it was when the same command is given again.""",
)


def print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"fedrift {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    version: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print tracebacks of errors.")] = False,
) -> None:
    VERBOSE.set(verbose)


for name, command in (
    (None, run.run),
    (None, run.demo),
    (None, run.validate),
    ("list", inspect.list_command),
    (None, inspect.show),
    (None, inspect.report),
    (None, run.profile),
    (None, deploy.deploy),
    (None, diagnose.diagnose),
    ("fork", run.fork),
    ("find-boundary", diagnose.find_boundary),
    ("compare-clustering", study.compare_clustering),
    (None, study.study),
    ("query", study.query),
    (None, study.compare),
    (None, inspect.export),
    ("import", inspect.import_study),
    ("monitor", inspect.monitor),
    ("conformance", conformance.conformance),
    ("aggregate-adapters", adapters.aggregate_adapters),
    (None, inspect.models),
    ("datasets", inspect.datasets),
    (None, inspect.doctor),
):
    app.command(name)(command)
app.add_typer(partition.app)


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2, an error of fedrift's own one message and exit code 1, a
    signal that stops it 128 and its number."""
    with catch_signals() as caught:
        try:
            run_app()
        finally:
            if caught:
                sys.exit(128 + caught[0])


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Stop at SIGTERM and SIGHUP as at ctrl-C, with the same word; the signal that came is in the list then.

    Those that come after it are ignored, so that the stop is a clean one. A signal that somebody ignores or handles already stays
    theirs (``nohup``).
    """
    caught: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        if not caught:
            caught.append(number)
            raise KeyboardInterrupt

    every = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    ours = [number for number in every if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield caught
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def run_app() -> None:
    try:
        app()
    except Exception as error:
        if VERBOSE.get():
            traceback.print_exception(error)
        typer.secho("fedrift: ", fg="red", bold=True, nl=False, err=True)
        if isinstance(error, UserError):
            typer.echo(str(error), err=True)
            sys.exit(2)
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        if not VERBOSE.get():
            for line in ("This was not foreseen; --verbose prints the traceback.", *getattr(error, "__notes__", ())):
                typer.echo(line.partition("\n")[0], err=True)
        sys.exit(1)
