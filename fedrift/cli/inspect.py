"""Commands that look at what there is: list, show, report, models, datasets, export, import, monitor; and doctor."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DEFAULT_RUNS_DIR, VERBOSE, DataDir, Json, RunsDir, print_json, print_unreadable, reject_nan


def list_command(runs_dir: RunsDir = DEFAULT_RUNS_DIR, as_json: Json = False) -> None:
    """List the runs, the oldest first."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ..storage import list_runs, list_unreadable, read_each
    from ..storage.run import Run
    from .console import run_title

    def row(run: Run) -> tuple[str, ...]:
        said, reached = run.config, int(run.trajectory().rounds.max(initial=0))
        return (
            run.id,
            run_title(run),
            said["dataset"]["name"],
            said["model"],
            str(said["seed"]),
            f"{reached}/{said['training']['num_rounds']}",
            run.status,
        )

    found, bad = read_each(list_runs(runs_dir), row)
    bad += list_unreadable(runs_dir)
    if as_json:
        print_json(
            [{"id": run.id, "status": run.status, "name": run_title(run), "experiment": run.config} for run, _ in found]
            + [{"id": each.id, "status": "unreadable", "reason": each.reason} for each in bad]
        )
        return
    if not (found or bad):
        typer.echo(f"no runs in {runs_dir.resolve()}; `fedrift demo` makes six")
        return
    table = Table(box=SIMPLE)
    for name in ("id", "run", "dataset", "model", "seed", "rounds", "status"):
        table.add_column(name, no_wrap=name in ("id", "run", "status"))
    for _, cells in found:
        table.add_row(*cells)
    if found:
        Console().print(table)
    print_unreadable(bad)


def show(
    name: Annotated[str, typer.Argument(help="A run's id (its first letters do), or its folder.", metavar="RUN")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Show one run: verdict, losses by domain, events; `--json` gives the experiment and every record."""
    from rich.console import Console
    from rich.table import Table

    from ..storage import find_run
    from .console import format_number, print_summary

    run = find_run(runs_dir, name)
    trajectory = run.trajectory()
    if as_json:
        print_json({"id": run.id, "status": run.status, "experiment": run.config, "records": trajectory.to_frame(), "events": run.events()})
        return
    print_summary(run)
    domains = trajectory.domains_of("loss") if trajectory.has_curve("loss") else ()
    if domains:
        table = Table(title="loss in nats per token")
        for column in ("domain", "start", "lowest", "end"):
            table.add_column(column, justify="left" if column == "domain" else "right")
        for domain in ("", *domains):
            loss = trajectory.curve("loss", domain)[trajectory.observed_mask("loss", domain)]
            table.add_row(domain or "all", format_number(loss[0]), format_number(loss.min()), format_number(loss[-1]))
        Console().print(table)
    for event in run.events():
        typer.echo(f"round {event['round']}: {event['kind']}: {event['message']}")
    if run.status == "failed":
        why = run.read_json("failed")
        typer.echo(f"failed after round {why['round']}: {why['message']}")
        if VERBOSE.get():
            typer.echo(why.get("traceback", "no traceback was stored"))


def report(
    names: Annotated[list[str], typer.Argument(help="A study's name or YAML file; or ids of runs, or folders.", metavar="STUDY | RUN...")],
    html: Annotated[bool, typer.Option("--html", help="A study as one page; what is made if nothing is asked.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="A study as a paper, and its figures as SVG.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="A study's tables as LaTeX (booktabs).")] = False,
    output: Annotated[Path, typer.Option("--output", help="A folder, or an .html file.")] = Path("report"),
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write a study's report, or one self-contained HTML page about some runs, each beside its IID baseline if that was run too.

    `fedrift report small --html --pdf --latex --output small-report`, or `fedrift report 5c35 77e0`

    A study may be empty, unfinished or failed: the report says so. Nothing is fetched from anywhere.
    """
    from ..core.errors import UserError
    from ..storage import Run, find_runs, list_runs, list_unreadable, read_each
    from ..studies import list_studies

    if len(names) == 1 and is_study_name(names[0], runs_dir):
        for path in write_study(names[0], output, runs_dir, html or not (pdf or latex), pdf, latex):
            typer.echo(path.resolve())
        return
    if pdf or latex:
        known = f"; there are {', '.join(list_studies(runs_dir))}" if list_studies(runs_dir) else f"; {runs_dir.resolve()} holds none"
        raise UserError(f"--pdf and --latex are of a study, and {' '.join(names)!r} names none{known}. Runs have an HTML page")
    from ..report import write_report
    from .console import run_view

    twins = {iid_baseline_key(run.config): run for run in list_runs(runs_dir) if is_iid(run.config) and "fork" not in run.config}
    chosen, faulty = find_runs(runs_dir, names)
    runs, bad = read_each(chosen, Run.trajectory)
    others = {run.id: None if is_iid(run.config) else twins.get(iid_baseline_key(run.config)) for run, _ in runs}
    baselines, missing = read_each([twin for twin in others.values() if twin], Run.trajectory)
    print_unreadable(dict.fromkeys([*faulty, *bad, *missing, *list_unreadable(runs_dir)]))
    if not runs:
        raise UserError("none of these runs can be read")
    readable = {run.id for run, _ in baselines}
    pairs = [(run, twin if (twin := others[run.id]) and twin.id in readable else None) for run, _ in runs]
    page = write_report([run_view(run, twin) for run, twin in pairs], output)
    typer.echo(page.resolve())


def is_study_name(name: str, runs_dir: Path) -> bool:
    from ..studies import list_studies

    return name in list_studies(runs_dir) or name.endswith((".yaml", ".yml")) or (Path(name) / "study.json").is_file()


def write_study(name: str, output: Path, runs_dir: Path, html: bool, pdf: bool, latex: bool) -> list[Path]:
    """Write a study's report, telling what is being made; the files to look at."""
    from rich.console import Console

    from ..report.study_report import write_study_report
    from ..studies import find_study

    with Console(stderr=True).status("reading") as status:
        made = write_study_report(find_study(runs_dir, name), output, html=html, pdf=pdf, latex=latex, on_progress=status.update)
    return [path for path in made if path.suffix in (".html", ".pdf") or path.name == "all.tex"]


def iid_baseline_key(stored_config: dict) -> str:  # type: ignore[type-arg]
    """The stored experiment as its IID baseline would be stored, to find that by."""
    kept = {key: value for key, value in stored_config.items() if key not in ("id", "partition_table", "fork")}
    return json.dumps({**kept, "partition": {**kept["partition"], "severity": 0.0}}, sort_keys=True)


def is_iid(stored_config: dict) -> bool:  # type: ignore[type-arg]
    return bool(stored_config["partition"].get("severity") == 0)  # and so is a fork of such a run


# Commands that tell what there is: models, corpora, doctor.


def models(as_json: Json = False) -> None:
    """The models by name; any hub id and any folder with a causal language model will do too.

    `files`: here, on this machine, or where they are fetched from. `memory`: what training adapters takes, about, with 512
    tokens in a pass and the weights in float32 (`docs/models.md` has the formula, and what was measured).
    """
    from ..core.errors import default_cache_dir
    from ..models.presets import PRESETS, is_available

    every = [(preset, is_available(preset, default_cache_dir())) for preset in PRESETS.values()]
    if as_json:
        print_json([{**vars(preset), "here": here, "training_memory": preset.training_memory()} for preset, here in every])
        return
    fetched = {"pip": "package index", "hub": "model hub"}
    print_table(
        "name",
        "files",
        "parameters",
        "memory",
        "license",
        "what it is",
        rows=[
            (
                preset.name,
                "here" if here else fetched[preset.origin],
                f"{preset.num_parameters / 1e6:,.1f} M",
                f"{preset.training_memory() / 1e9:.1f} GB",
                preset.license_id,
                preset.description,
            )
            for preset, here in every
        ],
    )


def datasets(data_dir: DataDir = None, as_json: Json = False) -> None:
    """The corpora by name; any Parquet, CSV or JSONL file, folder of texts or hub data set will do too."""
    from ..data import list_datasets as listings

    found = listings(data_dir)
    if as_json:
        print_json([listing._asdict() for listing in found])
        return
    print_table(
        "name",
        "documents",
        "comes from",
        "what it is",
        rows=[
            (listing.name, f"{listing.num_documents:,}" if listing.num_documents else "", listing.origin, listing.description)
            for listing in found
        ],
    )


def doctor() -> None:
    """Check this machine: versions, device, memory, caches, and whether the embedded model works."""
    import platform
    import shutil
    from importlib.metadata import version
    from time import perf_counter

    import psutil
    import torch

    from .. import __version__
    from ..config.runtime import Runtime
    from ..engine.cache import ResourceCache
    from ..models.trainable import Lora

    where = Runtime(device="cpu")
    typer.echo(f"fedrift {__version__}, Python {platform.python_version()}, {platform.platform()}")
    typer.echo(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "datasets")))
    typer.echo(
        f"device {Runtime().resolve_device()}, {torch.get_num_threads()} threads, "
        f"{psutil.virtual_memory().available / 2**30:.1f} GiB memory free"
    )
    home = next(folder for folder in (where.cache_dir, *where.cache_dir.parents) if folder.exists())
    typer.echo(f"cache {where.cache_dir}, {shutil.disk_usage(home).free / 2**30:.1f} GiB disk free")
    begun = perf_counter()
    model = ResourceCache(where).get_stacked_model("pocket", Lora())
    tokens = torch.arange(512).view(4, 2, 64)
    params = model.init_params().take(torch.zeros(4, dtype=torch.long))
    with torch.no_grad():
        loss = model(params, {"tokens": tokens, "keep": torch.ones_like(tokens, dtype=torch.bool)})
    typer.echo(
        f"pocket loads and computes ({perf_counter() - begun:.1f} s)"
        if loss.isfinite().all()
        else "pocket gives non-finite losses on this machine: do not trust its results"
    )
    if not loss.isfinite().all():
        raise typer.Exit(1)


def print_table(*columns: str, rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=SIMPLE)
    for column in columns:
        drawn.add_column(
            column, justify="right" if column in ("parameters", "memory", "documents") else "left", no_wrap=column in ("name", "memory")
        )
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)


# Commands that carry studies and models elsewhere: export, import.


def export(
    name: Annotated[str, typer.Argument(help="A study's name or YAML file; with --hf a run.", metavar="STUDY|RUN")],
    output: Annotated[Path | None, typer.Option("--output", help="The file; with --hf the folder.")] = None,
    hf: Annotated[bool, typer.Option("--hf", help="The models of a run, each with a model card.")] = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write a study as one file, from which tables and reports are the same elsewhere; without states and weights.

    `fedrift export first --output first.zip`, and there `fedrift import first.zip`

    `fedrift export 5c35 --hf --output adapters` writes a run's models instead: the federation's, each cluster's, each client's
    where clients have their own. `peft` reads them, and the folder can be uploaded as it is.
    """
    if hf:
        from ..models.presets import PRESETS
        from ..report.model_card import export_models
        from ..storage import find_run

        run = find_run(runs_dir, name)
        model, base = run.config["model"], PRESETS.get(run.config["model"])
        hub = base.hub_id if base else "" if Path(model).exists() else model
        folders = export_models(run, output or Path(f"{run.id}-models"), hub, base.license_id.lower() if base else "")
        for folder in folders:
            typer.echo(folder.resolve())
        return
    from ..studies import export_study, find_study

    book = find_study(runs_dir, name)
    path = export_study(book, output or Path(f"{book.name}.zip"))
    typer.echo(f"{path.resolve()} ({path.stat().st_size / 1e6:.1f} MB)")


def import_study(
    archive: Annotated[Path, typer.Argument(help="A file of `fedrift export STUDY`.", metavar="STUDY.zip")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Take in a study that `fedrift export` wrote elsewhere; runs that are here already stay as they are."""
    from ..studies import import_study

    book = import_study(archive, runs_dir)
    count = len({entry.run for entry in book.read()["runs"]})
    typer.echo(f"study {book.name}, {count} runs in {runs_dir.resolve()}; `fedrift report {book.name}` shows it")


# The command that looks on: monitor.

if TYPE_CHECKING:
    from ..report.monitor import Monitor

MonitorTarget = Annotated[
    str,
    typer.Argument(
        help="A study's name or its YAML file, or a folder of runs; all runs if not said.", metavar="[STUDY]", show_default=False
    ),
]
Web = Annotated[bool, typer.Option("--web", help="In the browser: a page on this machine, for this machine only.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="With --web; 0 takes any free one.")]
Host = Annotated[str, typer.Option("--host", help="With --web: where to listen; others than 127.0.0.1 let the network read.")]
Interval = Annotated[float, typer.Option("--interval", min=0.2, max=3600, callback=reject_nan, help="Seconds between two looks.")]
Once = Annotated[bool, typer.Option("--once", help="Look once and end.")]


def monitor(
    name: MonitorTarget = "",
    web: Web = False,
    port: Port = 8770,
    host: Host = "127.0.0.1",
    interval: Interval = 2.0,
    once: Once = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Look on while runs go on in other processes: losses, findings, how far the grid is. It only reads.

    `fedrift monitor small` beside `fedrift study studies/small.yaml`, or `fedrift monitor small --web`

    On the terminal it ends when nothing is left to run; ctrl-C ends it at any time and stops no run.
    """
    from ..report.monitor import open_monitor

    watcher = open_monitor(runs_dir, name)
    if as_json:
        from .console import snapshot_to_plain

        print_json(snapshot_to_plain(watcher.take_snapshot()))
    elif web:
        serve_web(watcher, host, port, interval)
    else:
        show_terminal(watcher, interval, once)


def serve_web(run_monitor: Monitor, host: str, port: int, interval: float) -> None:
    """The page, until ctrl-C."""
    from ..report.web import MonitorServer

    with MonitorServer(run_monitor, host, port, interval) as server:
        typer.echo(f"{server.address}  (ctrl-C ends it; the runs go on)")
        if host not in ("127.0.0.1", "localhost", "::1"):
            typer.echo(f"who reaches {host} can read these runs; `ssh -L {port}:127.0.0.1:{port}` keeps them to you", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended; the runs go on", err=True)


def show_terminal(run_monitor: Monitor, interval: float, once: bool) -> None:
    """The terminal, until all is done or ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    from .console import render_dashboard

    screen = Console(highlight=False)
    scene = run_monitor.take_snapshot()
    if once or scene.is_complete or not screen.is_terminal:
        screen.print(render_dashboard(scene, run_monitor.curve, max(screen.height, 40)))
        return
    try:
        with Live(render_dashboard(scene, run_monitor.curve, screen.height), console=screen, auto_refresh=False) as live:
            while not scene.is_complete:
                time.sleep(interval)
                scene = run_monitor.take_snapshot()
                live.update(render_dashboard(scene, run_monitor.curve, screen.height), refresh=True)
    except KeyboardInterrupt:
        typer.echo("ended; the runs go on", err=True)
