"""Commands that show or move existing results: list, show, report, models, datasets, doctor, export, import and monitor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DEFAULT_RUNS_DIR, VERBOSE, DataDir, Json, RunName, RunsDir, print_json, print_unreadable, reject_nan


def list_command(runs_dir: RunsDir = DEFAULT_RUNS_DIR, as_json: Json = False) -> None:
    """List all runs, oldest first: status, perplexity, loss, gap to the IID baseline, and the settings in which the runs differ.

    `fedrift list` prints the settings that all runs share once above the table, and one line per run. The gap is empty if the
    matched IID baseline is not stored. Tags come from `fedrift tag`.

    `fedrift list --json` prints each run's whole experiment too. The command writes no files.
    """
    from rich.console import Console

    from ..storage import list_runs, list_unreadable, try_read_each
    from .console import run_title
    from .run_list import add_gaps, print_list, read_listed_run

    readable, unreadable = try_read_each(list_runs(runs_dir), read_listed_run)
    listed = add_gaps(row for _, row in readable)
    unreadable += list_unreadable(runs_dir)
    if as_json:
        print_json(
            [
                {
                    "id": row.run.id,
                    "status": row.run.status,
                    "name": run_title(row.run),
                    **row.labels,
                    "loss": row.final_loss,
                    "gap_to_iid": row.gap_to_iid,
                    "experiment": row.config,
                }
                for row in listed
            ]
            + [{"id": each.id, "status": "unreadable", "reason": each.reason} for each in unreadable]
        )
        return
    if not (listed or unreadable):
        typer.echo(f"no runs in {runs_dir.resolve()}; `fedrift demo` creates seven")
        return
    if listed:
        print_list(Console(highlight=False, markup=False), listed)
    print_unreadable(unreadable)


def show(name: RunName, runs_dir: RunsDir = DEFAULT_RUNS_DIR, as_json: Json = False) -> None:
    """Show one run: its verdict, compared with the matched IID baseline if that is stored, the loss of each domain and its events.

    `fedrift show 5c35` prints a summary. `fedrift show 5c35 --json` prints the experiment, every record and every event.

    The command writes no files.
    """
    from rich.console import Console

    from ..report.format import format_number
    from ..storage import find_run
    from ..storage.index import read_labels
    from .console import print_summary
    from .run_list import find_stored_baseline
    from .tables import print_table

    run = find_run(runs_dir, name)
    trajectory = run.trajectory()
    if as_json:
        print_json(
            {
                "id": run.id,
                "status": run.status,
                **read_labels(run),
                "experiment": run.config,
                "records": trajectory.to_frame(),
                "events": run.events(),
            }
        )
        return
    print_summary(run, find_stored_baseline(run))
    labels = read_labels(run)
    if labels["tags"]:
        typer.echo(f"tags: {', '.join(labels['tags'])}")
    if labels["note"]:
        typer.echo(f"note: {labels['note']}")
    domains = trajectory.domains_of("loss") if trajectory.has_curve("loss") else ()
    if domains:
        losses = {domain or "all": trajectory.curve("loss", domain)[trajectory.observed_mask("loss", domain)] for domain in ("", *domains)}
        rows = [(name, *map(format_number, (loss[0], loss.min(), loss[-1]))) for name, loss in losses.items()]
        numbers = ("round 0", "lowest", "last")
        print_table(Console(highlight=False), ("domain", *numbers), rows, numbers, "loss in nats per token")
    console = Console(highlight=False, markup=False)
    for event in run.events():
        if event["kind"] != "warning":  # the summary above has the warnings
            console.print(f"round {event['round']}: {event['kind']}: {event['message']}")
    if run.status == "failed":
        failure = run.read_json("failed", dict)
        typer.echo(f"failed after round {failure['round']}: {failure['message']}")
        if VERBOSE.get():
            typer.echo(failure.get("traceback", "no traceback was stored"))


def report(
    names: Annotated[
        list[str],
        typer.Argument(
            help="The name or YAML file of a study, or any number of runs: ids, tags or run directories.", metavar="STUDY | RUN..."
        ),
    ],
    html: Annotated[bool, typer.Option("--html", help="Write the study as one HTML page; this is the default.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write the study as a PDF paper, with its figures as SVG files.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Write the study's tables as LaTeX (booktabs).")] = False,
    output: Annotated[Path, typer.Option("--output", help="The folder to write, or an .html file for a report on runs.")] = Path("report"),
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write the report of a study, or one HTML page that compares runs with their IID baselines.

    `fedrift report small --html --pdf --latex --output small-report` reports on a study.

    `fedrift report 5c35 77e0` reports on two runs, and on their IID baselines if these were run.

    The command writes to the `--output` folder and prints the paths. Pages are self-contained and load nothing from the network.
    A study may be empty, unfinished or failed; the report then says so.
    """
    from ..core.errors import UserError
    from ..storage import Run, find_runs, list_runs, list_unreadable, try_read_each
    from ..studies import list_studies

    if len(names) == 1 and is_study_name(names[0], runs_dir):
        for path in write_study(names[0], output, runs_dir, html or not (pdf or latex), pdf, latex):
            typer.echo(path.resolve())
        return
    if pdf or latex:
        studies = list_studies(runs_dir)
        known = f"the studies are {', '.join(studies)}" if studies else f"{runs_dir.resolve()} contains no study"
        raise UserError(f"--pdf and --latex need a study, and {' '.join(names)!r} is none ({known}). Runs only have an HTML page")
    from ..report import write_report
    from .console import run_view
    from .run_list import find_iid_baselines

    stored = {run.id: run for run in list_runs(runs_dir)}
    chosen, unreadable_names = find_runs(runs_dir, names)
    readable, unreadable = try_read_each(chosen, Run.trajectory)
    baseline_ids = find_iid_baselines({run_id: run.config for run_id, run in stored.items()} | {run.id: run.config for run, _ in readable})
    baseline_of = {run.id: stored.get(baseline_ids.get(run.id, "")) for run, _ in readable}
    baselines, unreadable_baselines = try_read_each([baseline for baseline in baseline_of.values() if baseline], Run.trajectory)
    print_unreadable(dict.fromkeys([*unreadable_names, *unreadable, *unreadable_baselines, *list_unreadable(runs_dir)]))
    if not readable:
        raise UserError("none of these runs can be read; `fedrift list` shows the readable ones")
    readable_ids = {run.id for run, _ in baselines}
    pairs = [(run, baseline if (baseline := baseline_of[run.id]) and baseline.id in readable_ids else None) for run, _ in readable]
    page = write_report([run_view(run, baseline) for run, baseline in pairs], output)
    typer.echo(page.resolve())


def is_study_name(name: str, runs_dir: Path) -> bool:
    """Return whether a name is a stored study, a YAML file or the directory of a study."""
    from ..studies import list_studies

    return name in list_studies(runs_dir) or name.endswith((".yaml", ".yml")) or (Path(name) / "study.json").is_file()


def write_study(name: str, output: Path, runs_dir: Path, html: bool, pdf: bool, latex: bool) -> list[Path]:
    """Write the report of a study with a progress line; return its main files: pages, PDFs and `all.tex`."""
    from rich.console import Console

    from ..report.study_report import write_study_report
    from ..studies import find_study

    with Console(stderr=True).status("reading") as status:
        paths = write_study_report(find_study(runs_dir, name), output, html=html, pdf=pdf, latex=latex, on_progress=status.update)
    return [path for path in paths if path.suffix in (".html", ".pdf") or path.name == "all.tex"]


# models, datasets and doctor


def models(as_json: Json = False) -> None:
    """List the named models. The key `model` also takes a Hugging Face model id or a folder with a causal language model.

    `fedrift models` prints a table. `fedrift models --json` prints all fields. The command writes no files.

    The column `files` shows whether the files are on this machine or where they are downloaded from. The column `memory` is an
    estimate for training adapters with 512 tokens per forward pass and float32 weights; `docs/models.md` gives the formula.
    """
    from rich.console import Console

    from ..core.errors import default_cache_dir
    from ..models.presets import PRESETS, is_available
    from .tables import print_table

    presets = [(preset, is_available(preset, default_cache_dir())) for preset in PRESETS.values()]
    if as_json:
        print_json([{**vars(preset), "is_local": is_local, "training_memory": preset.training_memory()} for preset, is_local in presets])
        return
    sources = {"pip": "package index", "hub": "model hub"}
    rows = [
        (
            preset.name,
            "on this machine" if is_local else sources[preset.origin],
            f"{preset.num_parameters / 1e6:,.1f} M",
            f"{preset.training_memory() / 1e9:.1f} GB",
            preset.license_id,
            preset.description,
        )
        for preset, is_local in presets
    ]
    columns = ("name", "files", "parameters", "memory", "license", "description")
    print_table(Console(highlight=False), columns, rows, ("parameters", "memory"))


def datasets(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the named datasets. The key `dataset` also takes a file, a folder of texts or a Hugging Face dataset.

    `fedrift datasets --data-dir DATA` lists local datasets in DATA too. Files may be Parquet, CSV or JSONL.

    The command writes no files.
    """
    from rich.console import Console

    from ..data import list_datasets
    from .tables import print_table

    listings = list_datasets(data_dir)
    if as_json:
        print_json([listing._asdict() for listing in listings])
        return
    rows = [
        (listing.name, f"{listing.num_documents:,}" if listing.num_documents else "", listing.origin, listing.description)
        for listing in listings
    ]
    print_table(Console(highlight=False), ("name", "documents", "origin", "description"), rows, ("documents",))


def doctor() -> None:
    """Check this machine: versions, device, memory, caches, and whether the built-in model works.

    Run `fedrift doctor` after the installation. The exit code is 1 if the built-in model `pocket` computes non-finite losses.
    """
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

    runtime = Runtime(device="cpu")
    typer.echo(f"fedrift {__version__}, Python {platform.python_version()}, {platform.platform()}")
    typer.echo(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "datasets")))
    typer.echo(
        f"device {Runtime().resolve_device()}, {torch.get_num_threads()} threads, "
        f"{psutil.virtual_memory().available / 2**30:.1f} GiB memory free"
    )
    existing = next(folder for folder in (runtime.cache_dir, *runtime.cache_dir.parents) if folder.exists())
    typer.echo(f"cache {runtime.cache_dir}, {shutil.disk_usage(existing).free / 2**30:.1f} GiB disk free")
    started = perf_counter()
    model = ResourceCache(runtime).get_stacked_model("pocket", Lora())
    tokens = torch.arange(512).view(4, 2, 64)
    params = model.init_params().take(torch.zeros(4, dtype=torch.long))
    with torch.no_grad():
        loss = model(params, {"tokens": tokens, "loss_mask": torch.ones_like(tokens, dtype=torch.bool)})
    typer.echo(
        f"pocket loads and computes ({perf_counter() - started:.1f} s)"
        if loss.isfinite().all()
        else "pocket computes non-finite losses on this machine: do not use results from it"
    )
    if not loss.isfinite().all():
        raise typer.Exit(1)


# export and import


def export(
    name: Annotated[str, typer.Argument(help="The name or YAML file of a study; with an option below, a run.", metavar="STUDY|RUN")],
    output: Annotated[Path | None, typer.Option("--output", help="The file to write; with --hf, the folder.")] = None,
    hf: Annotated[bool, typer.Option("--hf", help="Export the models of a run, each with a model card.")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the curves of a run to this .csv file.")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Draw curves of a run to this .svg or .png file.")] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="A curve, as `loss` or `loss@DOMAIN`; `loss@*` selects all domains. The option may be repeated. By default the table "
            "has all records and the figure shows the loss.",
            metavar="METRIC[@DOMAIN]",
        ),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Round the values in the archive of a study to single precision, except whole numbers.")
    ] = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Export a study as one archive, the trained models of a run, or its curves as a table or a figure.

    `fedrift export drift --output drift.zip` writes a study without checkpoints and weights. On another machine,
    `fedrift import drift.zip` restores it, and `fedrift report` produces the same tables and reports. With `--compact` the archive
    is smaller, and values are exact to seven digits.

    `fedrift export 5c35 --hf --output adapters` writes the models of a run: the global model, or each cluster's model, and each
    client's personalized model if there are any. `peft` loads them, and the folder can be uploaded to Hugging Face unchanged.

    `fedrift export 5c35 --csv run.csv` writes every record: round, metric, domain, client (-1: the federation) and value.

    `fedrift export 5c35 --figure loss.svg --metric loss --metric loss@sports` draws two curves, and the matched IID baseline dashed
    if it is stored.
    """
    from ..core.errors import UserError

    if compact and (csv or figure or metrics or hf):
        raise UserError("--compact rounds the archive of a study and excludes --hf, --csv, --figure and --metric")
    if csv or figure or metrics:
        from ..storage import find_run
        from .manage import export_curves
        from .run_list import find_stored_baseline

        if hf or output:
            raise UserError("--csv, --figure and --metric name their own files and exclude --hf and --output")
        if not (csv or figure):
            raise UserError("--metric needs a file: add --csv FILE.csv, --figure FILE.svg or --figure FILE.png")
        run = find_run(runs_dir, name)
        for path in export_curves(run, find_stored_baseline(run), metrics or (), csv, figure):
            typer.echo(path.resolve())
        return
    if hf:
        from ..models.presets import PRESETS
        from ..report.model_card import export_models
        from ..storage import find_run

        run = find_run(runs_dir, name)
        model, preset = run.config["model"], PRESETS.get(run.config["model"])
        hub = preset.hub_id if preset else "" if Path(model).exists() else model
        folders = export_models(run, output or Path(f"{run.id}-models"), hub, preset.license_id.lower() if preset else "")
        for folder in folders:
            typer.echo(folder.resolve())
        return
    from ..studies import export_study, find_study

    manifest = find_study(runs_dir, name)
    path = export_study(manifest, output or Path(f"{manifest.name}.zip"), compact)
    typer.echo(f"{path.resolve()} ({path.stat().st_size / 1e6:.1f} MB)")


def import_study(
    archive: Annotated[Path, typer.Argument(help="An archive that `fedrift export STUDY` wrote.", metavar="STUDY.zip")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Import a study that `fedrift export` wrote on another machine.

    `fedrift import drift.zip`, then `fedrift report drift`

    The command adds the study and its runs to the runs directory. Runs that are already stored there stay unchanged; other results
    of a finished run are refused.
    """
    from ..studies import import_study

    manifest = import_study(archive, runs_dir)
    ids = {entry.run for entry in manifest.read()["runs"]}
    missing = sum(manifest.get_status(id) == "missing" for id in ids)
    absent = f", of which {missing} are not in the archive" if missing else ""
    typer.echo(f"study {manifest.name}, {len(ids)} runs{absent}, in {runs_dir.resolve()}; `fedrift report {manifest.name}` shows it")


# monitor

if TYPE_CHECKING:
    from ..report.monitor import Monitor

MonitorTarget = Annotated[
    str,
    typer.Argument(
        help="The name or YAML file of a study, or a folder of runs; by default all runs in --runs-dir.",
        metavar="[STUDY]",
        show_default=False,
    ),
]
Web = Annotated[bool, typer.Option("--web", help="Serve a page for the browser instead; only this machine can open it.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="The port for --web; 0 selects any free port.")]
Host = Annotated[
    str, typer.Option("--host", help="The address for --web to listen on. Any address but 127.0.0.1 lets the network read the runs.")
]
Interval = Annotated[
    float, typer.Option("--interval", min=0.2, max=3600, callback=reject_nan, help="The number of seconds between two updates.")
]
Once = Annotated[bool, typer.Option("--once", help="Print the state once and exit.")]


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
    """Show the progress, losses and findings of runs that other processes compute.

    `fedrift monitor small` shows the study of `fedrift study studies/small.yaml` in another terminal.

    `fedrift monitor small --web` shows it in the browser.

    The command only reads and writes no files. On the terminal it ends when no run is left. Ctrl-C ends it at any time and does
    not stop the runs.
    """
    from ..report.monitor import open_monitor

    run_monitor = open_monitor(runs_dir, name)
    if as_json:
        from .console import snapshot_to_plain

        print_json(snapshot_to_plain(run_monitor.take_snapshot()))
    elif web:
        serve_web(run_monitor, host, port, interval)
    else:
        show_terminal(run_monitor, interval, once)


def serve_web(run_monitor: Monitor, host: str, port: int, interval: float) -> None:
    """Serve the page until ctrl-C."""
    from ..report.web import MonitorServer

    with MonitorServer(run_monitor, host, port, interval) as server:
        typer.echo(f"{server.address}  (ctrl-C stops the page; the runs continue)")
        if host not in ("127.0.0.1", "localhost", "::1"):
            typer.echo(f"everyone who can reach {host} can read these runs; `ssh -L {port}:127.0.0.1:{port}` keeps them private", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("the monitor has ended; the runs continue", err=True)


def show_terminal(run_monitor: Monitor, interval: float, once: bool) -> None:
    """Update the terminal until no run is left or ctrl-C is pressed."""
    from rich.console import Console
    from rich.live import Live

    from .console import render_dashboard

    console = Console(highlight=False)
    snapshot = run_monitor.take_snapshot()
    if once or snapshot.is_complete or not console.is_terminal:
        console.print(render_dashboard(snapshot, run_monitor.curve, max(console.height, 40)))
        return
    try:
        with Live(render_dashboard(snapshot, run_monitor.curve, console.height), console=console, auto_refresh=False) as live:
            while not snapshot.is_complete:
                time.sleep(interval)
                snapshot = run_monitor.take_snapshot()
                live.update(render_dashboard(snapshot, run_monitor.curve, console.height), refresh=True)
    except KeyboardInterrupt:
        typer.echo("the monitor has ended; the runs continue", err=True)
