"""Assemble the ``fedrift`` command from its subcommands and turn exceptions into messages and exit codes."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import unwrap
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup, TyperOption
from typer.models import ArgumentInfo

from .. import __version__
from ..core.errors import UserError
from . import adapters, conformance, dataset, demo, deploy, diagnose, inspect, manage, partition, run, study
from .options import VERBOSE

PATH_ERRNOS = {getattr(errno, name) for name in "EACCES EPERM EROFS ENOENT ENOTDIR EISDIR EEXIST ENAMETOOLONG".split()}  # of a path
NOISY_LIBRARIES = r"(transformers|peft|torch|torchao|bitsandbytes|huggingface_hub|datasets|tokenizers)\b"


class CommandGroup(TyperGroup):
    """A command group that adds the option ``--verbose`` to every subcommand."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the subcommand, with the option ``--verbose`` added if it lacks one."""
        command = super().get_command(ctx, cmd_name)
        for each in (command, *getattr(command, "commands", {}).values()):
            if each is not None:
                restore_argument_help(each)
        if command is not None and all(param.name != "verbose" for param in command.params):
            command.params.append(
                TyperOption(
                    param_decls=["--verbose"],
                    is_flag=True,
                    expose_value=False,
                    default=False,
                    help="Print the full traceback when a command fails.",
                    callback=lambda ctx, param, value: VERBOSE.set(VERBOSE.get() or bool(value)),
                )
            )
        return command


def restore_argument_help(command: Any) -> None:
    """Set the help texts of a command's arguments, which Typer 0.20 loses when it is used with Click 8.5."""
    arguments = [param for param in command.params if param.param_type_name == "argument" and not getattr(param, "help", None)]
    if arguments and command.callback is not None:
        hints = get_type_hints(unwrap(command.callback), include_extras=True)
        for param in arguments:
            infos = [info for info in getattr(hints.get(param.name), "__metadata__", ()) if isinstance(info, ArgumentInfo)]
            param.help = infos[0].help if infos else None


app = typer.Typer(
    cls=CommandGroup,
    name="fedrift",
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,  # click names similar commands itself
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="""When, how and why does federated fine-tuning of language models break under non-IID data?

Start with `fedrift demo`, which shows federated fine-tuning break under style skew, and what repairs it.

An experiment is a YAML file: `experiments/` has examples, and `fedrift init` writes one for your own data. Overrides on the
command line change any key: `fedrift run experiments/demo.yaml algorithm=Scaffold partition.severity=0.5`.

Results are written to `runs/<id>/`. To resume an interrupted run, repeat the same command.""",
)


def print_version(is_requested: bool) -> None:
    """Print the version and exit if ``--version`` was given."""
    if is_requested:
        typer.echo(f"fedrift {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    version: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the full traceback when a command fails.")] = False,
) -> None:
    """Store the options that precede the subcommand."""
    VERBOSE.set(verbose)


for name, command in (
    (None, run.run),
    (None, demo.demo),
    (None, dataset.init),
    (None, run.validate),
    (None, run.estimate),
    ("list", inspect.list_command),
    (None, inspect.show),
    (None, manage.tag),
    (None, manage.note),
    (None, manage.delete),
    ("drop-state", manage.drop_state),
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
app.add_typer(dataset.app)


def main() -> None:
    """Run the command line and exit with its exit code.

    The exit code is 2 after a user error and 1 after an unexpected error; both print one message. It is 128 plus the signal
    number if SIGTERM or SIGHUP stopped the command.
    """
    with catch_signals() as caught:
        try:
            run_app()
        finally:
            if caught:
                sys.exit(128 + caught[0])


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Turn the first SIGTERM or SIGHUP into a KeyboardInterrupt, as ctrl-C does.

    Later signals are ignored, so that the command can shut down cleanly. Signals that are already ignored or handled stay as
    they are, because ``nohup`` relies on that.

    Returns:
        A list that holds the number of the signal once it has arrived, and is empty before.
    """
    caught: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        if not caught:
            caught.append(number)
            raise KeyboardInterrupt

    stop_signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    unhandled = [number for number in stop_signals if signal.getsignal(number) == signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, interrupt)
    try:
        yield caught
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


def silence_libraries() -> None:
    """Hide deprecation warnings of libraries, on which a user cannot act; ``python -W`` and PYTHONWARNINGS show them again."""
    if not sys.warnoptions:
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=NOISY_LIBRARIES)


def run_app() -> None:
    """Run the Typer app, print each error as one message and exit with its exit code."""
    silence_libraries()
    try:
        app()
    except Exception as error:
        if VERBOSE.get():
            traceback.print_exception(error)
        typer.secho("fedrift: ", fg="red", bold=True, nl=False, err=True)
        if isinstance(error, UserError):
            typer.echo(str(error), err=True)
            sys.exit(2)
        if isinstance(error, OSError) and error.errno in PATH_ERRNOS and isinstance(error.filename, str):
            typer.echo(f"cannot read or write {error.filename}: {error.strerror}. Change its permissions, or choose another path", err=True)
            sys.exit(2)
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        if not VERBOSE.get():
            for line in ("This is an unexpected error; --verbose prints the traceback.", *getattr(error, "__notes__", ())):
                typer.echo(line.partition("\n")[0], err=True)
        sys.exit(1)
