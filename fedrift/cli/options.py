"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..config.runtime import Runtime
    from ..storage.index import UnreadableRun

ExperimentFile = Annotated[Path, typer.Argument(help="The experiment's YAML file.", metavar="EXPERIMENT.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to it: `partition.severity=0.5`, `algorithm=FedProx`, `algorithm.mu=0.1`.", metavar="[a.b=c]..."),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="The folder that holds the runs.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="FEDRIFT_DATA", help="Local corpora by name: DATA/CORPUS/train.parquet, test.parquet ..."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Processor threads; torch's own choice if not said.")]
ClientsPerPass = Annotated[
    int | None,
    typer.Option(
        "--clients-per-pass",
        min=0,
        max=100_000,
        help="Clients in one forward pass; chosen by memory if not said, 0: try one at a time beside "
        "that and keep the faster. Changes rounding only.",
    ),
]
Dtype = Annotated[str, typer.Option("--dtype", help="What the frozen base computes in: auto, float32 or bfloat16.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile every block first: a minute, then faster steps.")]
CheckDevice = Annotated[
    bool | None,
    typer.Option(
        "--check-device/--no-check-device", help="Compute a step again on the CPU and compare, first; on Apple's GPU if not said."
    ),
]
Tf32 = Annotated[bool, typer.Option("--tf32", help="Coarser, faster float32 products on NVIDIA GPUs.")]
Deterministic = Annotated[
    bool, typer.Option("--deterministic/--no-deterministic", help="On a GPU: kernels that give the same bits twice, where there are any.")
]
SaveUpdates = Annotated[
    bool, typer.Option("--save-updates", help="Keep what the clients send in every round, for `fedrift fork`; adapters are small.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for scripts: numbers with all digits; NaN is null, infinities are 1e999 and -1e999.")
]
RunNames = Annotated[list[str], typer.Argument(help="Ids of runs (their first letters do), or folders.", metavar="RUN...")]

Fresh = Annotated[
    bool, typer.Option("--fresh", help="Run anew what is stored already; the old folders are moved into `replaced` beside the runs.")
]

DEFAULT_RUNS_DIR = Path("runs")
VERBOSE: ContextVar[bool] = ContextVar("verbose", default=False)  # whether tracebacks are printed


def print_unreadable(unreadable: Iterable[UnreadableRun]) -> None:
    """Print a line for each run that cannot be read."""
    for each in unreadable:
        typer.echo(f"run {each.id} cannot be read: {each.reason}", err=True)


def reject_nan(value: float | None) -> float | None:
    """Refuse NaN, which stands in no range and which ranges let through."""
    if value is not None and value != value:
        raise typer.BadParameter("nan is no number")
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
    """Where and with what to compute; what takes long says so on the screen."""
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
    """A value as JSON on one line, as the option ``--json`` promises it."""
    from ..storage.jsonl import to_json

    typer.echo(to_json(value))
