"""The command that aggregates adapters that PEFT saved: aggregate-adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Json, print_json

if TYPE_CHECKING:
    from ..adapters import AggregatedAdapter

Folders = Annotated[
    list[Path], typer.Argument(help="The clients' adapters, each a folder that PEFT's `save_pretrained` wrote.", metavar="FOLDER...")
]
Method = Annotated[
    Literal["fedavg", "ffa", "flora", "fedex", "flexlora"],
    typer.Option(
        "--method",
        help="`fedavg`: the means of A and of B, which lose a part of the clients' updates. `ffa`: the mean of B under one frozen A. "
        "`flexlora`: the best adapter of the same rank. `fedex`: the means and what they lose. `flora`: all factors stacked.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        "--weights", help="The weight of each client, in the order of the folders: `--weights 120,80,40`. Default: equal weights."
    ),
]
Output = Annotated[Path | None, typer.Option("--output", help="The folder to write. Default: only the errors are printed.")]


def aggregate_adapters(
    folders: Folders, method: Method = "fedavg", weights: Weights = "", output: Output = None, as_json: Json = False
) -> None:
    """Aggregate LoRA adapters of several clients into one that PEFT loads, and print the aggregation error.

    A LoRA update is the product B A. The product of the clients' mean B and mean A is not the mean of their products. The aggregation
    error is the distance between the two, as a share of the mean of the products.

    `fedavg`, `ffa` and `flexlora` keep the rank. `fedex` and `flora` are exact and write an adapter of (number of clients) times the rank;
    merge it into the base model (`merge_and_unload`) before the next round.

    `fedrift aggregate-adapters client0 client1 client2 --method fedex --weights 120,80,40 --output mean`
    """
    from ..adapters import aggregate_adapters as aggregate

    result = aggregate(folders, method, parse_weights(weights), output)
    if as_json:
        print_json(
            {
                "method": result.method,
                "weights": list(result.weights),
                "rank": result.rank,
                "error": result.error,
                "error_by_module": result.error_by_module,
                "remaining_error": result.remaining_error,
                "folder": str(result.folder) if result.folder else None,
            }
        )
    else:
        print_result(result)


def parse_weights(text: str) -> list[float] | None:
    """Return the numbers of a list such as ``120,80``; None if there are none."""
    if not text.strip():
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 120,80,40", param_hint="--weights") from None


def print_result(result: AggregatedAdapter) -> None:
    """Print the error per module and over all, and where the adapter is."""
    from rich.console import Console

    from .tables import print_table

    screen, columns = Console(highlight=False), ("module", "aggregation error")
    errors = {**result.error_by_module, "all modules": result.error}
    rows = [(module.removeprefix("base_model.model."), f"{100 * error:.2f} %") for module, error in errors.items()]
    print_table(screen, columns, rows, columns[1:])
    own = "is exact" if result.is_exact else f"differs from the mean of the clients' updates by {100 * result.remaining_error:.2f} %"
    screen.print(
        f"Separate means of A and B lose {100 * result.error:.2f} %. The adapter by {result.method}, of rank {result.rank}, {own}.",
        soft_wrap=True,
    )
    screen.print(f"Written to {result.folder}" if result.folder else "Nothing was written: name a folder with --output.", soft_wrap=True)
