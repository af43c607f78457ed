"""Commands that manage stored runs: tag, note, delete and drop-state. Curves of runs are exported in ``export_curves``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DEFAULT_RUNS_DIR, RunName, RunNames, RunsDir

if TYPE_CHECKING:
    from ..storage import Run


def tag(
    name: RunName,
    tags: Annotated[list[str] | None, typer.Argument(help="Tags to add, each one word.", metavar="[TAG]...")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="A tag to remove. The option may be repeated.")] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Add tags to a run, or remove them, and print all its tags.

    `fedrift tag 5c35 baseline paper`

    `fedrift tag 5c35 --remove paper`

    Tags appear in `fedrift list`. A tag that only one run has names this run in every command: `fedrift show baseline`. Tags are
    stored in `labels.json` of the run and change neither its id nor its results.
    """
    from ..storage import find_run
    from ..storage.index import add_tags

    run = find_run(runs_dir, name)
    typer.echo(f"run {run.id[:6]}: {', '.join(add_tags(run, tags or (), remove or ())) or 'no tags'}")


def note(
    name: RunName,
    text: Annotated[str, typer.Argument(help='The note; "" removes it.', metavar="TEXT")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Store a note on a run, which `fedrift show` prints. It replaces an earlier note.

    `fedrift note 5c35 "the learning rate of the paper"`
    """
    from ..storage import find_run
    from ..storage.index import write_note

    run = find_run(runs_dir, name)
    write_note(run, text)
    typer.echo(f"run {run.id[:6]}: {'note stored' if text else 'note removed'}")


def delete(
    names: RunNames,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also delete runs that a study or a fork needs.")] = False,
    permanently: Annotated[
        bool, typer.Option("--permanently", help="Remove the files instead of moving them; this cannot be undone.")
    ] = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Delete runs: move their folders to `deleted/` in the runs directory, or remove them with `--permanently`.

    `fedrift delete 5c35 77e0`

    The command lists the runs and asks first. A run that a stored study lists, or from which another run forks, is refused unless
    `--force` is given. To restore a run, move its folder back and remove the number at the end of its name.
    """
    from ..core.errors import UserError
    from ..storage import Run, find_runs
    from ..storage.index import count_bytes, delete_run
    from .console import run_title

    readable, unreadable = find_runs(runs_dir, names)
    runs = [*readable, *(Run(Path(runs_dir), each.id) for each in unreadable)]
    if not force and (reasons := describe_dependents(runs)):
        raise UserError("\n".join([*reasons, "Nothing was deleted; --force deletes these runs too"]))
    for run in runs:
        title = run_title(run) if run in readable else "unreadable"
        typer.echo(f"{run.id[:6]}  {title}  {run.status}  {count_bytes(run.folder) / 1e6:,.1f} MB")
    question = "Remove these runs? This cannot be undone" if permanently else f"Move these runs to {Path(runs_dir) / 'deleted'}?"
    if not yes and not typer.confirm(question):
        typer.echo("nothing was deleted")
        raise typer.Exit(1)
    for run in runs:
        target = delete_run(run, permanently)
        typer.echo(f"run {run.id[:6]}: {f'now in {target}' if target else 'removed'}")


def describe_dependents(runs: Sequence[Run]) -> list[str]:
    """Return one line for each of the runs that a stored study or another run needs, and for each study that cannot be read."""
    from ..core.errors import UserError
    from ..storage import list_runs
    from ..studies import find_study, list_studies

    ids, lines = {run.id for run in runs}, []
    for root in dict.fromkeys(Path(run.root) for run in runs):
        for name in list_studies(root):
            try:
                needed = {entry.run for entry in find_study(root, name).read()["runs"]}
            except UserError as error:
                lines.append(f"the study {name} may need the runs, but it cannot be read: {error}")
                continue
            lines += [f"run {run_id[:6]} belongs to the study {name}" for run_id in sorted(ids & needed)]
        for run in list_runs(root):
            fork = run.config.get("fork")
            if fork and fork["run"] in ids and run.id not in ids:
                lines.append(f"run {fork['run'][:6]} is the origin of the fork {run.id[:6]}")
    return lines


def drop_state(names: RunNames, runs_dir: RunsDir = DEFAULT_RUNS_DIR) -> None:
    """Free the disk space of a finished run's state: its checkpoint, client states and stored updates.

    `fedrift drop-state 5c35`

    Records, models, findings and reports stay as they are. The run can no longer be forked, and `fedrift run` still finds it
    finished. The command prints the freed bytes. It refuses a run that is not finished, because such a run needs its state.
    """
    from ..storage.index import drop_state as drop_run_state
    from ..storage.index import find_run

    runs = [find_run(runs_dir, name) for name in names]
    total = 0
    for run in runs:
        sizes = drop_run_state(run)
        total += sum(sizes.values())
        parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        typer.echo(f"run {run.id[:6]}: {sum(sizes.values()):,} bytes freed{f' ({parts})' if parts else ''}")
    if len(runs) > 1:
        typer.echo(f"{total:,} bytes freed in total")


# Export of curves


def parse_metric(text: str) -> tuple[str, str]:
    """Split ``loss@sports`` into the metric and the domain, which is "" for the whole federation."""
    metric, _, domain = text.partition("@")
    return metric, domain


def export_curves(run: Run, baseline: Run | None, metrics: Iterable[str], csv: Path | None, figure: Path | None) -> list[Path]:
    """Write curves of a run as a CSV table, as a figure, or both.

    Args:
        run: The run.
        baseline: Its IID baseline, which the figure shows as a dashed line; None if it is not stored.
        metrics: Curves as ``metric`` or ``metric@domain``; ``metric@*`` selects all domains. Empty: all records in the table, and
            the loss in the figure.
        csv: The .csv file to write, or None.
        figure: The .svg or .png file to write, or None.

    Returns:
        The written files.

    Raises:
        UserError: The run has no such metric or domain, or a file cannot be written.
    """
    from ..core.errors import UserError, unknown_name_error
    from ..storage.files import explain_write_errors

    trajectory, curves = run.trajectory(), []
    for text in metrics:
        metric, domain = parse_metric(text)
        if metric not in trajectory.metrics:
            raise unknown_name_error(f"metric of run {run.id[:6]}", metric, trajectory.metrics)
        domains = list(trajectory.domains_of(metric)) if domain == "*" else [domain]
        for each in domains:
            if each and each not in trajectory.domains_of(metric):
                raise unknown_name_error(f"domain of the metric {metric}", each, list(trajectory.domains_of(metric)))
            curves.append((metric, each))
    written = []
    if csv is not None:
        if csv.suffix != ".csv":
            raise UserError(f"a table is written as .csv, not as {csv.name!r}; change the file name")
        frame = trajectory.to_frame()
        if curves:
            frame = frame[[pair in curves for pair in zip(frame.metric, frame.domain, strict=True)]]
        with explain_write_errors(csv, 0):
            frame.to_csv(csv, index=False, lineterminator="\n")
        written.append(csv)
    if figure is not None:
        write_figure(run, baseline, curves or [("loss", "")], figure)
        written.append(figure)
    return written


def write_figure(run: Run, baseline: Run | None, curves: Sequence[tuple[str, str]], path: Path) -> None:
    """Draw curves of the federation against the round; the IID baseline is dashed.

    Raises:
        UserError: A metric has only values of single clients, or the file is neither .svg nor .png.
    """
    from ..core.errors import UserError
    from ..report.data import curve_rows
    from ..report.figures import curves_figure, save_figure
    from .console import run_title, run_view

    view, rows, names = run_view(run, baseline), [], []
    for metric, domain in curves:
        name = f"{metric}@{domain}" if domain else metric
        found = curve_rows([view], metric, domain)
        if not found:
            raise UserError(f"run {run.id[:6]} has no curve {name} of the whole federation; `--csv` writes values of single clients")
        rows += [{**row, "run": name} for row in found]
        names.append(name)
    is_loss = all(metric.partition(".")[0] == "loss" for metric, _ in curves)
    title = f"{run_title(run)}, run {run.id[:6]}" + (" (loss in nats per token)" if is_loss else "")
    save_figure(curves_figure(rows, names, title, is_loss), path)
