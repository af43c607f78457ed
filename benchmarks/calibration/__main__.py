"""The command that tests the detectors: run ``python -m benchmarks.calibration`` in the root of the repository."""

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
        help="The cases to run. `analytic`: quadratics, adapters and random hidden states (about three minutes). `synthetic`: a tiny "
        "language model on a synthetic language (about ten minutes). `lm`: `pocket` on news (longer).",
    ),
]
Output = Annotated[Path | None, typer.Option("--output", help="The folder for calibration-COLLECTION.json.")]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown-file", help="The Markdown file to write from all calibrations in the --output folder.")
]
RunsDir = Annotated[
    Path | None,
    typer.Option(
        "--keep",
        help="The folder that stores the runs of language models, so that a calibration can be resumed; by default the cache folder.",
    ),
]


def calibrate(
    collection: Collection = "analytic",
    quick: Annotated[bool, typer.Option("--quick", help="Use five seeds of healthy runs instead of twenty.")] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Only measure false alarms, on the seeds that may be used to set thresholds.")
    ] = False,
    output_dir: Output = None,
    markdown_file: MarkdownFile = None,
    runs_dir: RunsDir = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Test the detectors: measure false alarms on healthy runs, and recall and lead on runs with injected failures.

    `python -m benchmarks.calibration --collection synthetic --output results`

    The command prints both tables and writes calibration-COLLECTION.json to the `--output` folder. The exit code is 1 if an
    injected failure is missed, or if a failure is confirmed that was not injected.
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

    null_runs, failures = load_collection(collection, runs_dir, threads)
    seeds = (TUNING_SEEDS if tune else REPORT_SEEDS)[: GROUP_SIZE if quick else None]
    injected = [] if tune else failures
    with progress_bar(len(null_runs) * len(seeds) + len(injected) * GROUP_SIZE) as on_message:
        alarms = count_false_alarms(null_runs, seeds, on_message)
        recalls = measure_recall(injected, on_message=on_message)
    results = to_dict(collection, alarms, recalls)
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / f"calibration-{collection}.json").write_text(json.dumps(to_json_value(results), indent=1) + "\n")
        if markdown_file is not None:
            markdown_file.write_text(render_page(load_calibrations(output_dir)))
    if as_json:
        print_json(results)
    else:
        typer.echo(render_page([to_json_value(results)]))
    if any(recall.grade != "confirmed" or recall.off_target for recall in recalls):
        raise typer.Exit(1)


def load_collection(collection: str, runs_dir: Path | None, threads: int | None) -> tuple[NullRuns, tuple[InjectedFailure, ...]]:
    """Return the healthy runs and the injected failures of a collection."""
    if collection == "analytic":
        from benchmarks.calibration.analytic_failures import INJECTED_FAILURES, NULL_RUNS

        return NULL_RUNS, INJECTED_FAILURES
    from benchmarks.calibration.lm_failures import make_failures, make_null_runs
    from benchmarks.calibration.testbeds import TESTBEDS
    from fedrift.config.runtime import Runtime
    from fedrift.engine.cache import ResourceCache

    runtime = Runtime(device="cpu", threads=threads, on_message=lambda message: typer.echo(message, err=True))
    testbed = TESTBEDS[collection](ResourceCache(runtime), runs_dir or runtime.cache_dir / "calibration" / "runs")
    return make_null_runs(testbed), make_failures(testbed)


def progress_bar(num_cases: int) -> Any:
    """Return a context manager that yields a function; each call shows its message and advances the progress bar by one."""
    from contextlib import contextmanager

    from fedrift.cli.console import RunProgressBar

    @contextmanager
    def show_progress() -> Any:
        with RunProgressBar(num_cases) as bar:

            def on_message(message: str) -> None:
                bar.callback_for(message)
                bar.advance(1)

            yield on_message

    return show_progress()


if __name__ == "__main__":
    typer.run(calibrate)
