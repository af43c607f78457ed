"""Arguments, options and helper functions that several commands share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config.loader.yaml_text import Kind, find_ready, list_ready
from ..core.errors import UserError, closest_match, quote_value

if TYPE_CHECKING:
    from ..config.runtime import Runtime
    from ..storage.index import UnreadableRun


MAX_NAME = 100  # characters of the name of a ready file; a longer one is only a path


def find_experiment_file(path: Path) -> Path:
    """Return an existing file as it is, or the ready experiment of that name; raise UserError for another name without a suffix."""
    return check_named(find_ready(path, "experiments"), "experiments")


def find_study_file(path: Path) -> Path:
    """Return an existing file as it is, or the ready study of that name; raise UserError for another name without a suffix."""
    return check_named(find_ready(path, "studies"), "studies")


def check_named(path: Path, kind: Kind) -> Path:
    """Return a path; raise UserError if it is a bare name that is neither a file nor a ready experiment or study."""
    if os.path.exists(path) or path.suffix or len(path.parts) != 1 or len(path.name) > MAX_NAME:
        return path
    names = list_ready(kind)
    match = closest_match(path.name, names)
    raise UserError(
        f"{quote_value(str(path))} is neither a file nor one of the ready {kind}, which are {', '.join(names)}"
        f"{f'; did you mean {match!r}?' if match else '. Give the path of a YAML file'}"
    )


def check_overrides(overrides: list[str] | None) -> list[str] | None:
    """Return the overrides of a command; raise UserError if one of them replaces another."""
    from ..config.loader import check_no_override_is_lost

    # Several exclude_clients of a fork exclude all of these clients.
    check_no_override_is_lost(text for text in overrides or () if text.partition("=")[0].strip() != "exclude_clients")
    return overrides


ExperimentFile = Annotated[
    Path,
    typer.Argument(
        help="The YAML file of the experiment, or the name of a ready one, such as demo.",
        metavar="EXPERIMENT.yaml",
        callback=find_experiment_file,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Overrides of the experiment's keys, e.g. `partition.severity=0.5`, `algorithm=FedProx`, `algorithm.mu=0.1`.",
        metavar="[a.b=c]...",
        callback=check_overrides,
    ),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="The runs directory, which contains one folder per run.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="FEDRIFT_DATA",
        help="The folder of local datasets, one subfolder per dataset: DATA_DIR/NAME/train.parquet, test.parquet ...",
    ),
]
Device = Annotated[str, typer.Option("--device", help="The device that computes: auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="The number of CPU threads; by default torch chooses it.")]
ClientsPerPass = Annotated[
    int | None,
    typer.Option(
        "--clients-per-pass",
        min=0,
        max=100_000,
        help="The number of clients that train in one forward pass; by default the available memory decides. The value 0 times a "
        "step with the number that fits into memory and a step with one client, and uses the faster. Results differ only by rounding.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="The precision of the passes through the frozen base model: auto, float32, bfloat16, or fastest, which times a training step "
        "in both and uses bfloat16 if it is at least 1.3 times as fast.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile every transformer block with torch.compile first: this takes about a minute and makes steps faster."
    ),
]
CheckDevice = Annotated[
    bool | None,
    typer.Option(
        "--check-device/--no-check-device",
        help="Compute one training step on the device and on the CPU first, and compare them. By default only Apple GPUs are checked.",
    ),
]
Tf32 = Annotated[bool, typer.Option("--tf32", help="Use TF32 for float32 matrix products on NVIDIA GPUs: faster and less precise.")]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic/--no-deterministic", help="On a GPU, use kernels that reproduce results bit for bit, where such kernels exist."
    ),
]
SaveUpdates = Annotated[
    bool, typer.Option("--save-updates", help="Store the updates that clients send in every round; `fedrift fork` needs them.")
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON for scripts. Numbers have all their digits; NaN becomes null, infinities become 1e999 and -1e999."
    ),
]
RUN_HELP = "A run id (a unique prefix is enough), a tag or a run directory."
RunName = Annotated[str, typer.Argument(help=RUN_HELP, metavar="RUN")]
RunNames = Annotated[
    list[str], typer.Argument(help="Runs, each by its id (a unique prefix is enough), a tag or its run directory.", metavar="RUN...")
]

Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Run again even if a finished run is stored. The old run directory moves to `replaced/` in the runs directory."
    ),
]

DEFAULT_RUNS_DIR = Path("runs")
VERBOSE: ContextVar[bool] = ContextVar("verbose", default=False)  # whether errors print their traceback


def print_unreadable(unreadable: Iterable[UnreadableRun]) -> None:
    """Print one line on stderr for each run that cannot be read."""
    for each in unreadable:
        typer.echo(f"run {each.id} cannot be read: {each.reason}", err=True)


def reject_nan(value: float | None) -> float | None:
    """Reject NaN in an option callback, because Click's range checks accept it."""
    if value is not None and value != value:
        raise typer.BadParameter("nan is not allowed; give a finite number")
    return value


def make_runtime(
    runs_dir: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    clients_per_pass: int | None = None,
    dtype: str = "auto",
    compiled: bool = False,
    check_device: bool | None = None,
    tf32: bool = False,
    deterministic: bool = True,
    save_updates: bool = False,
) -> Runtime:
    """Build the Runtime from command-line options; its progress messages go to stderr.

    Raises:
        UserError: If ``dtype`` is not a known data type.
    """
    from typing import get_args

    from ..config.runtime import Dtype as Dtypes
    from ..config.runtime import Runtime
    from ..core.errors import unknown_name_error

    if dtype not in get_args(Dtypes):
        raise unknown_name_error("--dtype", dtype, get_args(Dtypes))
    return Runtime(
        runs_dir=runs_dir,
        data_dir=data_dir,
        device=device,
        threads=threads,
        clients_per_pass=clients_per_pass,
        compiled=compiled,
        check_device=check_device,
        tf32=tf32,
        deterministic=deterministic,
        save_updates=save_updates,
        dtype=dtype,  # type: ignore[arg-type]
        on_message=lambda message: typer.echo(message, err=True),
    )


def print_json(value: object) -> None:
    """Print a value as JSON on one line, in the format that the help of ``--json`` describes."""
    from ..storage.jsonl import to_json

    typer.echo(to_json(value))
