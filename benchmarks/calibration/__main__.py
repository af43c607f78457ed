"""The command that judges the detectors: ``python -m benchmarks.calibration``, from the repository root."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedrift.cli.options import Json, Threads, print_json

if TYPE_CHECKING:
    from benchmarks.calibration.analytic_failures import InjectedFailure
    from fedrift.diagnosis.finding import RunEvidence

    NullRuns = dict[str, Callable[[int], RunEvidence]]

Collection = Annotated[
    Literal["analytic", "synthetic", "lm"],
    typer.Option(
        "--collection",
        help="`analytic`: quadratics, adapters, drawn states (about three minutes). `synthetic`: a tiny language "
        "model on a made-up language (about ten). `lm`: `pocket` on news (longer).",
    ),
]
Output = Annotated[Path | None, typer.Option("--output", help="A folder for calibration-COLLECTION.json.")]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown-file", help="A Markdown file to be made of all calibrations in that folder.")
]
RunsDir = Annotated[
    Path | None,
    typer.Option("--keep", help="Where runs of language models are kept, so that a stopped calibration goes on; the cache if not said."),
]


def calibrate(
    collection: Collection = "analytic",
    quick: Annotated[bool, typer.Option("--quick", help="Five seeds of healthy runs in place of twenty.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="Only false alarms, on the seeds that thresholds may be set by.")] = False,
    output_dir: Output = None,
    markdown_file: MarkdownFile = None,
    runs_dir: RunsDir = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Are the detectors right? Runs healthy and planted collections: false alarms with their interval, recall, lead in rounds.

    Exits with 1 if a planted failure is missed, or something is confirmed that was not planted.

    `python -m benchmarks.calibration --collection synthetic --output results`
    """
    from benchmarks.calibration.score import (
        GROUP_SIZE,
        REPORT_SEEDS,
        TUNING_SEEDS,
        count_false_alarms,
        load_calibrations,
        measure_recall,
        render_page,
        to_dict,
    )
    from fedrift.diagnosis.across_seeds import to_json_value

    healthy, plants = load_collection(collection, runs_dir, threads)
    seeds = (TUNING_SEEDS if tune else REPORT_SEEDS)[: GROUP_SIZE if quick else None]
    wanted = [] if tune else plants
    with progress_bar(len(healthy) * len(seeds) + len(wanted) * GROUP_SIZE) as say:
        alarms = count_false_alarms(healthy, seeds, say)
        recalls = measure_recall(wanted, on_message=say)
    numbers = to_dict(collection, alarms, recalls)
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / f"calibration-{collection}.json").write_text(json.dumps(to_json_value(numbers), indent=1) + "\n")
        if markdown_file is not None:
            markdown_file.write_text(render_page(load_calibrations(output_dir)))
    if as_json:
        print_json(numbers)
    else:
        typer.echo(render_page([to_json_value(numbers)]))
    if any(each.grade != "confirmed" or each.off_target for each in recalls):
        raise typer.Exit(1)


def load_collection(collection: str, runs_dir: Path | None, threads: int | None) -> tuple[NullRuns, tuple[InjectedFailure, ...]]:
    """The healthy and the planted cases of a collection."""
    if collection == "analytic":
        from benchmarks.calibration.analytic_failures import INJECTED_FAILURES, NULL_RUNS

        return NULL_RUNS, INJECTED_FAILURES
    from benchmarks.calibration.lm_failures import make_failures, make_null_runs
    from benchmarks.calibration.testbeds import TESTBEDS
    from fedrift.config.runtime import Runtime
    from fedrift.engine.cache import ResourceCache

    runtime = Runtime(device="cpu", threads=threads, on_message=lambda message: typer.echo(message, err=True))
    ground = TESTBEDS[collection](ResourceCache(runtime), runs_dir or runtime.cache_dir / "calibration" / "runs")
    return make_null_runs(ground), make_failures(ground)


def progress_bar(num_cases: int) -> Any:
    """A bar that moves by one with every word."""
    from contextlib import contextmanager

    from fedrift.cli.console import RunProgressBar

    @contextmanager
    def moving() -> Any:
        with RunProgressBar(num_cases) as bar:

            def say(said: str) -> None:
                bar.callback_for(said)
                bar.advance(1)

            yield say

    return moving()


if __name__ == "__main__":
    typer.run(calibrate)
