"""Commands that carry studies and models elsewhere: export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ROOT, Root


def export(name: Annotated[str, typer.Argument(help="A study's name or YAML file; with --hf a run.", metavar="STUDY|RUN")],
           out: Annotated[Path | None, typer.Option("--out", help="The file; with --hf the folder.")] = None,
           hf: Annotated[bool, typer.Option("--hf", help="The models of a run, each with a model card.")] = False,
           root: Root = ROOT) -> None:
    """Write a study as one file, from which tables and reports are the same elsewhere; without states and weights.

    `fedrift export first --out first.zip`, and there `fedrift import first.zip`

    `fedrift export 5c35 --hf --out adapters` writes a run's models instead: the federation's, each cluster's, each client's where
    clients have their own. `peft` reads them, and the folder can be uploaded as it is.
    """
    if hf:
        from ..models.presets import PRESETS
        from ..report.card import export_models
        from ..store import find_run

        run = find_run(root, name)
        model, base = run.experiment["model"], PRESETS.get(run.experiment["model"])
        hub = base.hub if base else "" if Path(model).exists() else model
        folders = export_models(run, out or Path(f"{run.id}-models"), hub, base.licence.lower() if base else "")
        for folder in folders:
            typer.echo(folder.resolve())
        return
    from ..study import find_study, pack

    book = find_study(root, name)
    path = pack(book, out or Path(f"{book.name}.zip"))
    typer.echo(f"{path.resolve()} ({path.stat().st_size / 1e6:.1f} MB)")


def take_in(archive: Annotated[Path, typer.Argument(help="A file of `fedrift export STUDY`.", metavar="STUDY.zip")],
            root: Root = ROOT) -> None:
    """Take in a study that `fedrift export` wrote elsewhere; runs that are here already stay as they are."""
    from ..study import unpack

    book = unpack(archive, root)
    count = len({entry.run for entry in book.read()["runs"]})
    typer.echo(f"study {book.name}, {count} runs in {root.resolve()}; `fedrift report {book.name}` shows it")


take_in.__name__ = "import"  # the command's name, which is no name in Python


COMMANDS = [export, take_in]
