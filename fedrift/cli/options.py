"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..runtime import Runtime
    from ..store.shelf import Unreadable

File = Annotated[Path, typer.Argument(help="The experiment's YAML file.", metavar="EXPERIMENT.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(
    help="Changes to it: `partition.severity=0.5`, `algorithm=FedProx`, `algorithm.mu=0.1`.", metavar="[a.b=c]...")]
Root = Annotated[Path, typer.Option("--runs", help="The folder that holds the runs.")]
Data = Annotated[Path | None, typer.Option(
    "--data", envvar="FEDRIFT_DATA", help="Local corpora by name: DATA/CORPUS/train.parquet, test.parquet ...")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(
    "--threads", min=1, max=1024, help="Processor threads; torch's own choice if not said.")]
Micro = Annotated[int | None, typer.Option(
    "--micro", min=0, max=100_000, help="Clients in one forward pass; chosen by memory if not said, 0: try one at a time beside "
    "that and keep the faster. Changes rounding only.")]
Dtype = Annotated[str, typer.Option("--dtype", help="What the frozen base computes in: auto, float32 or bfloat16.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile every block first: a minute, then faster steps.")]
Canary = Annotated[bool | None, typer.Option(
    "--canary/--no-canary", help="Compute a step again on the CPU and compare, first; on Apple's GPU if not said.")]
Tf32 = Annotated[bool, typer.Option("--tf32", help="Coarser, faster float32 products on NVIDIA GPUs.")]
Deterministic = Annotated[bool, typer.Option(
    "--deterministic/--no-deterministic", help="On a GPU: kernels that give the same bits twice, where there are any.")]
KeepUpdates = Annotated[bool, typer.Option(
    "--keep-updates", help="Keep what the clients send in every round, for `fedrift replay`; adapters are small.")]
Json = Annotated[bool, typer.Option(
    "--json", help="Print JSON, for scripts: numbers with all digits; NaN is null, infinities are 1e999 and -1e999.")]
Names = Annotated[list[str], typer.Argument(help="Ids of runs (their first letters do), or folders.", metavar="RUN...")]

Fresh = Annotated[bool, typer.Option(
    "--fresh", help="Run anew what is stored already; the old folders are moved into `replaced` beside the runs.")]

ROOT = Path("runs")
VERBOSE: ContextVar[bool] = ContextVar("verbose", default=False)  # whether tracebacks are printed


def tell_unreadable(bad: Iterable[Unreadable]) -> None:
    """Print a line for each run that cannot be read."""
    for each in bad:
        typer.echo(f"run {each.id} cannot be read: {each.reason}", err=True)


def check_number(value: float | None) -> float | None:
    """Refuse NaN, which stands in no range and which ranges let through."""
    if value is not None and value != value:
        raise typer.BadParameter("nan is no number")
    return value


def runtime(root: Path, data: Path | None = None, device: str = "auto", threads: int | None = None,
            micro: int | None = None, dtype: str = "auto", compiled: bool = False, canary: bool | None = None,
            tf32: bool = False, deterministic: bool = True, keep_updates: bool = False) -> Runtime:
    """Where and with what to compute; what takes long says so on the screen."""
    from typing import get_args

    from ..errors import unknown
    from ..runtime import Dtype as Dtypes
    from ..runtime import Runtime

    if dtype not in get_args(Dtypes):
        raise unknown("--dtype", dtype, get_args(Dtypes))
    return Runtime(root=root, data=data, device=device, threads=threads, micro=micro, compiled=compiled, canary=canary,
                   tf32=tf32, deterministic=deterministic, keep_updates=keep_updates,
                   dtype=dtype,  # type: ignore[arg-type]
                   say=lambda message: typer.echo(message, err=True))


def print_json(value: object) -> None:
    """A value as JSON on one line, as the option ``--json`` promises it."""
    from ..store.lines import write_value

    typer.echo(write_value(value))
