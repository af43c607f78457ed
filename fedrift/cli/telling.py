"""Commands that tell what there is: models, corpora, doctor."""

from __future__ import annotations

import typer

from .options import Data, Json, print_json


def models(as_json: Json = False) -> None:
    """The models by name; any hub id and any folder with a causal language model will do too.

    `files`: here, on this machine, or where they are fetched from. `memory`: what training adapters takes, about, with 512
    tokens in a pass and the weights in float32 (`docs/models.md` has the formula, and what was measured).
    """
    from ..folders import cache_folder
    from ..models.presets import PRESETS, at_hand

    every = [(preset, at_hand(preset, cache_folder())) for preset in PRESETS.values()]
    if as_json:
        print_json([{**vars(preset), "here": here, "training_memory": preset.training_memory()} for preset, here in every])
        return
    fetched = {"pip": "package index", "hub": "model hub"}
    table("name", "files", "parameters", "memory", "licence", "what it is", rows=[
        (preset.name, "here" if here else fetched[preset.origin], f"{preset.parameters / 1e6:,.1f} M",
         f"{preset.training_memory() / 1e9:.1f} GB", preset.licence, preset.description) for preset, here in every])


def corpora(data: Data = None, as_json: Json = False) -> None:
    """The corpora by name; any Parquet, CSV or JSONL file, folder of texts or hub data set will do too."""
    from ..corpus import corpora as listings

    found = listings(data)
    if as_json:
        print_json([listing._asdict() for listing in found])
        return
    table("name", "documents", "comes from", "what it is", rows=[
        (listing.name, f"{listing.documents:,}" if listing.documents else "", listing.origin, listing.description)
        for listing in found])


def doctor() -> None:
    """Check this machine: versions, device, memory, caches, and whether the embedded model works."""
    import platform
    import shutil
    from importlib.metadata import version
    from time import perf_counter

    import psutil
    import torch

    from .. import __version__
    from ..models.tune import Lora
    from ..runtime import Runtime
    from ..stock import Stock

    where = Runtime(device="cpu")
    typer.echo(f"fedrift {__version__}, Python {platform.python_version()}, {platform.platform()}")
    typer.echo(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "datasets")))
    typer.echo(f"device {Runtime().torch_device()}, {torch.get_num_threads()} threads, "
               f"{psutil.virtual_memory().available / 2**30:.1f} GiB memory free")
    home = next(folder for folder in (where.cache, *where.cache.parents) if folder.exists())
    typer.echo(f"cache {where.cache}, {shutil.disk_usage(home).free / 2**30:.1f} GiB disk free")
    begun = perf_counter()
    model = Stock(where).stacked("pocket", Lora())
    tokens = torch.arange(512).view(4, 2, 64)
    params = model.template().rows(torch.zeros(4, dtype=torch.long))
    with torch.no_grad():
        loss = model(params, {"tokens": tokens, "keep": torch.ones_like(tokens, dtype=torch.bool)})
    typer.echo(f"pocket loads and computes ({perf_counter() - begun:.1f} s)" if loss.isfinite().all() else
               "pocket gives non-finite losses on this machine: do not trust its results")
    if not loss.isfinite().all():
        raise typer.Exit(1)


def table(*columns: str, rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=SIMPLE)
    for column in columns:
        drawn.add_column(column, justify="right" if column in ("parameters", "memory", "documents") else "left",
                         no_wrap=column in ("name", "memory"))
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)


COMMANDS = [models, corpora, doctor]
