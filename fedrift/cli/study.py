"""The commands ``study``, ``query``, ``compare`` and ``compare-clustering``, which work on several runs."""

from __future__ import annotations

import math
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    DEFAULT_RUNS_DIR,
    RUN_HELP,
    VERBOSE,
    DataDir,
    Device,
    Dtype,
    ExperimentFile,
    Fresh,
    Json,
    Overrides,
    RunsDir,
    Threads,
    check_overrides,
    find_study_file,
    make_runtime,
    print_json,
    print_unreadable,
)

if TYPE_CHECKING:
    import pandas as pd

    from ..engine.cache import ResourceCache
    from ..storage import Run
    from ..studies import Study

StudyFile = Annotated[
    Path,
    typer.Argument(
        help="The YAML file of the study, or the name of a ready one, such as small.", metavar="STUDY.yaml", callback=find_study_file
    ),
]
StudyOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="The executor, e.g. `executor=processes executor.num_workers=4`, and overrides of the study, e.g. `seeds=3`, "
        "`base.training.num_rounds=10`.",
        metavar="[a.b=c]...",
        callback=check_overrides,
    ),
]
StudyLogTo = Annotated[
    list[str] | None,
    typer.Option(
        "--log-to", help="Also log the metrics of every run to tensorboard, mlflow, wandb or trackio. The option may be repeated."
    ),
]
MAX_NUMBER_WIDTH = 24  # columns of the terminal
HiddenStates = Annotated[
    bool,
    typer.Option("--hidden-states", help="Also compare the hidden states of the final models, layer by layer; this loads both models."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only list the runs, their ids, confounded effects and training tokens, and train a few rounds to estimate the time.",
    ),
]
MeasureSpeed = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure",
        help="With --dry-run, train a few rounds to estimate how long the study takes on this machine. --no-measure trains nothing and "
        "gives no time.",
    ),
]


def study(
    file: StudyFile,
    overrides: StudyOverrides = None,
    dry_run: DryRun = False,
    measure_speed: MeasureSpeed = True,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    dtype: Dtype = "auto",
    log_to: StudyLogTo = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run a study: all conditions of its factors over all seeds, each run with its IID baseline.

    `fedrift study studies/small.yaml --dry-run` lists the runs and estimates the time.

    `fedrift study studies/small.yaml executor=processes` runs the study on several CPU cores.

    A study with a `tuning` section first tunes hyperparameters. To resume an interrupted study, repeat the same command.
    Finished runs of other studies are reused, unless `--fresh` is given.

    Executors: `local` (one run after another), `processes` (parallel on this machine), `stacked` (several runs in shared forward
    passes), `ray` and `slurm`. Several machines can run the same study if they share the runs directory; each run is computed once.

    The command stores runs in `runs/<id>/` and the study in `runs/studies/NAME/`. It prints mean metrics and the verdict on each
    hypothesis. The exit code is 1 if a run failed.
    """
    from ..config.loader import Registry, apply_overrides, parse_value
    from ..engine.cache import ResourceCache
    from ..storage.loggers import create_backends
    from ..studies import executors, load_study
    from ..studies.executors import Executor

    arguments = list(overrides or ())
    executor_overrides = [text for text in arguments if text.split("=")[0].split(".")[0] == "executor"]
    study_config = load_study(file, [text for text in arguments if text not in executor_overrides])
    names_by_lowercase = {name.lower(): name for name in executors.__all__}
    executor_config: dict[str, Any] = apply_overrides({"executor": "Local"}, executor_overrides)
    choice = {"type": executor_config["executor"]} if isinstance(executor_config["executor"], str) else executor_config["executor"]
    if isinstance(choice, dict):
        kind = choice.get("type", "Local")
        choice = {**choice, "type": names_by_lowercase.get(kind.lower(), kind) if isinstance(kind, str) else kind}
    executor = parse_value(Executor, choice, Registry({Executor: executors}), "executor")
    cache = ResourceCache(make_runtime(runs_dir, data_dir, device, threads, dtype=dtype))
    if dry_run:
        preview_study(study_config, cache, measure_speed, as_json)
    else:
        create_backends(log_to or (), runs_dir)  # report a missing logger before anything is run
        run_and_summarize(study_config, cache, executor, as_json, log_to or (), fresh)


def preview_study(study: Study, cache: ResourceCache, measure_speed: bool, as_json: bool) -> None:
    """Print the runs of a study, confounded effects and the estimated cost, without running it."""
    from rich.console import Console

    from ..engine.build import config_warnings
    from ..studies.plan import build_manifest_content, estimate_cost
    from ..studies.run import preview_study
    from .tables import format_duration, print_table

    plan, ids_final = preview_study(study, cache)
    manifest, cost = build_manifest_content(study, plan, ids_final), estimate_cost(plan.configs.values(), cache, measure_speed)
    warnings = Counter(warning for experiment in plan.configs.values() for warning in config_warnings(experiment))
    if as_json:
        print_json(
            {
                "study": manifest["study"],
                "designs": manifest["designs"],
                "tuning_results": manifest["tuning_results"],
                "ids_final": ids_final,
                "runs": [vars(entry) for entry in plan.entries],
                "cost": vars(cost),
                "warnings": [{"warning": warning, "runs": runs} for warning, runs in warnings.items()],
            }
        )
        return
    console = Console(highlight=False)
    rows: dict[tuple[str, str, str], list[Any]] = {}
    for entry in plan.entries:
        settings = f" [{', '.join(f'{k}={v}' for k, v in entry.settings.items())}]" if entry.settings else ""
        rows.setdefault((entry.stage, entry.role, entry.condition + settings), []).append(entry)
    cells = []
    for key, entries in rows.items():
        ids = list(dict.fromkeys(entry.run[:6] for entry in entries))
        seeds = ", ".join(map(str, dict.fromkeys(entry.seed for entry in entries)))
        cells.append((*key, seeds, " ".join(ids[:6]) + (f" and {len(ids) - 6} more" if len(ids) > 6 else "")))
    print_table(console, ("stage", "role", "condition", "seeds", "ids"), cells)
    for stage, design in manifest["designs"].items():
        note = "; these main effects are confounded with part of an interaction:" if design["aliases"] else ""
        console.print(f"{stage}: {design['cells']} conditions{note}")
        for alias in design["aliases"]:
            console.print(f"  {alias['factor']}: {100 * alias['share']:.0f} % confounded with {' x '.join(alias['pair'])}")
    if not ids_final:
        console.print("tuning is not done: the ids of tuned runs will change when it chooses their settings")
    print_choices(manifest["tuning_results"])
    for warning, runs in warnings.items():
        typer.echo(f"warning, {runs} of {cost.num_runs} runs: {warning}")
    speed = "" if math.isnan(cost.tokens_per_second) else f" at {cost.tokens_per_second:,.0f} tokens per second, measured on this machine"
    time = "" if math.isnan(cost.seconds) else f": about {format_duration(cost.seconds)} if run one after another"
    console.print(f"{cost.num_runs} runs, {cost.num_finished} of them finished; {cost.tokens:,.0f} training tokens{time}{speed}")


def run_and_summarize(
    study: Study, cache: ResourceCache, executor: Any, as_json: bool, loggers: Sequence[str] = (), fresh: bool = False
) -> None:
    """Run a study and print its results; exit with code 1 if a run failed."""
    from rich.console import Console

    from ..storage.loggers import log_finished_runs
    from ..studies import evaluate_study_hypotheses
    from ..studies.run import run_study
    from .console import StudyProgressBar

    with StudyProgressBar(cache.runtime.runs_dir) as progress:
        try:
            manifest = run_study(study, cache, executor, log_finished_runs(progress.start, loggers, cache.runtime.runs_dir), fresh)
        except KeyboardInterrupt:
            typer.echo("stopped; repeat the same command to resume", err=True)
            raise
    frame, verdicts = evaluate_study_hypotheses(manifest)
    failed = frame[frame.status == "failed"]
    if VERBOSE.get():
        for run in failed.run:
            print_traceback(manifest.get_run(run))
    if as_json:
        print_json(frame)
        raise typer.Exit(1 if len(failed) else 0)
    print_choices(manifest.read()["tuning_results"])
    runs = frame[frame.role == "run"]
    print_means(runs.groupby(["stage", "condition"], sort=False)[list(study.metrics)].mean(numeric_only=True).reset_index())
    console = Console(highlight=False, markup=False)
    for verdict in verdicts:
        console.print(verdict.sentence)
    for row in failed.to_dict("records"):
        typer.echo(f"failed {str(row['run'])[:6]} {row['condition']}, seed {row['seed']}: {str(row['failure']).splitlines()[0]}")
    typer.echo(
        f"{len(frame)} runs: {(frame.status == 'finished').sum()} finished, {len(failed)} failed, "
        f"{int(frame.diverged.sum())} diverged. The table shows means over seeds."
    )
    typer.echo(f"{manifest.folder}; `fedrift report {manifest.name}{runs_dir_option(cache)} --html --pdf` writes the report")
    if len(failed):
        raise typer.Exit(1)


def print_traceback(run: Run) -> None:
    """Print the stored traceback of a failed run, if there is one."""
    if (run.folder / "failed.json").exists():
        typer.echo(f"run {run.id}:\n{run.read_json('failed', dict).get('traceback', '')}", err=True)


def runs_dir_option(cache: ResourceCache) -> str:
    """Return the option ``--runs-dir`` with its value, or "" if the runs are in the default folder."""
    return "" if cache.runtime.runs_dir == DEFAULT_RUNS_DIR else f" --runs-dir {cache.runtime.runs_dir}"


def print_choices(tuned: list[dict[str, Any]]) -> None:
    """Print the settings that tuning chose, and which of them lie at the edge of the tuning grid."""
    for choice in tuned:
        settings = (
            ", ".join(f"{path}={value}" for path, value in choice["settings"].items()) or "no setting, because no trial had a finite score"
        )
        edge = f"; at the edge of the grid: {', '.join(choice['at_search_boundary'])}" if choice["at_search_boundary"] else ""
        typer.echo(f"tuned {choice['group']}: {settings}{edge} ({len(choice['trials'])} trials)")


def print_means(means: pd.DataFrame) -> None:
    """Print the means of the metrics of every condition; the stage is a column if there are several."""
    from rich.console import Console

    from .tables import print_table

    if not len(means):
        typer.echo("no runs")
        return
    metrics = [name for name in means.columns if name not in ("stage", "condition")]
    keys = ["stage", "condition"] if means.stage.nunique() > 1 else ["condition"]
    rows = [
        [*(str(row[key]) for key in keys), *("" if math.isnan(row[name]) else f"{row[name]:.3f}" for name in metrics)]
        for row in means.to_dict("records")
    ]
    print_table(Console(highlight=False), [*keys, *metrics], rows, metrics, num_key_columns=len(keys))


MAX_ROWS = 200  # of a query's result


def query(
    query: Annotated[str, typer.Argument(help="An SQL query over the tables `runs`, `records` and `findings`.")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Query all runs with SQL, in DuckDB's dialect.

    `fedrift query "SELECT algorithm, avg(final_loss) FROM runs GROUP BY ALL"`

    `fedrift query "DESCRIBE runs"` lists the columns of a table.

    `runs` has one row per run and one column per key of the experiment; write keys in double quotes: `"partition.severity"`.
    `records(run, round, metric, domain, client, value)` has one row per measured value. `findings` has the results of
    `fedrift diagnose`. The query is one statement that reads: SELECT, FROM, WITH, PIVOT, DESCRIBE, SUMMARIZE or SHOW. The command prints
    the result and writes no files.
    """
    from rich.console import Console

    from ..storage import list_unreadable, query_frame, query_rows
    from .tables import print_table

    result = query_rows(runs_dir, query) if as_json else query_frame(runs_dir, query)
    print_unreadable(list_unreadable(runs_dir))
    if isinstance(result, list):
        print_json(result)
        return
    printed = result.to_string(index=False, max_rows=MAX_ROWS)
    console = Console(highlight=False)
    if max(map(len, printed.splitlines())) <= console.width:
        typer.echo(printed)
    else:
        rows = [[format_cell(value) for value in row] for row in result.head(MAX_ROWS).itertuples(index=False)]
        print_table(console, list(result.columns), rows, list(result.select_dtypes("number").columns))
        if len(result) > MAX_ROWS:
            typer.echo(f"{len(result) - MAX_ROWS:,} more rows; --json prints all")


def format_cell(value: Any) -> str:
    """Format a value of a query's result; a missing one is empty."""
    return "" if value is None or value != value else f"{value:.6g}" if isinstance(value, float) else str(value)


def compare(
    first: Annotated[str, typer.Argument(help=RUN_HELP, metavar="A")],
    second: Annotated[str, typer.Argument(help="Another run.", metavar="B")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    hidden_states: HiddenStates = False,
    show_all: Annotated[bool, typer.Option("--all", help="Also print the metrics that are equal in both runs.")] = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare two runs: the settings in which they differ, and their metrics at the rounds that both have, grouped by kind.

    `fedrift compare 5c35 77e0`

    `fedrift compare 5c35 77e0 --hidden-states` also compares the hidden states of both final models, layer by layer. If one of the runs
    has `algorithm=Centralized`, this shows how federated training changes the representation.

    The command prints tables and writes no files.
    """
    from dataclasses import asdict

    from rich.console import Console

    from ..storage import find_run
    from ..studies.run_comparison import compare_configs, compare_metrics
    from .tables import print_config_differences, print_metric_differences, print_table

    a, b = find_run(runs_dir, first), find_run(runs_dir, second)
    config_differences, metric_differences, similarity = compare_configs(a, b), compare_metrics(a, b), {}
    if hidden_states:
        from ..engine.cache import ResourceCache
        from ..engine.model_similarity import measure_similarity

        similarity = measure_similarity(a, b, ResourceCache(make_runtime(runs_dir, data_dir, device, threads)))
    if as_json:
        print_json(
            {
                "config": {path: list(pair) for path, pair in config_differences.items()},
                "metrics": [asdict(difference) for difference in metric_differences],
                **({"hidden_states": similarity} if similarity else {}),
            }
        )
        return
    console = Console(highlight=False)
    print_config_differences(console, a.id[:6], b.id[:6], config_differences)
    print_metric_differences(console, metric_differences, show_all)
    if similarity:
        names = ("layer", "CKA A, B", "CKA A, 0", "CKA B, 0", "cosine A, B", "cosine A, 0", "cosine B, 0")
        rows = [
            (layer or "mean", *(f"{value:.4f}" for pairs in measures.values() for value in pairs.values()))
            for layer, measures in similarity.items()
        ]
        print_table(
            console, names, rows, names[1:], "Similarity of the hidden states of the final models A and B and the pretrained model 0"
        )


# compare-clustering

if TYPE_CHECKING:
    from ..engine.cache import ResourceCache
    from ..report.comparison import ReportPart
    from ..studies import Study, StudyManifest

Seeds = Annotated[int, typer.Option("--seeds", min=1, max=1000, help="The number of paired seeds, starting at --seed-offset.")]
SeedOffset = Annotated[int, typer.Option("--seed-offset", min=0, max=2**53 - 1001, help="The first seed.")]
Conditions = Annotated[
    str, typer.Option("--conditions", help="The conditions to run, e.g. `text,random,oracle`; `all` also selects the optional ones.")
]
Clusters = Annotated[
    int | None, typer.Option("--clusters", min=1, max=100_000, help="The number of clusters; by default it is estimated from the texts.")
]
IfcaRestarts = Annotated[
    int, typer.Option("--ifca-restarts", min=1, max=1000, help="The number of IFCA initializations per seed, whose tokens all count.")
]
RandomRepeats = Annotated[int, typer.Option("--random-repeats", min=1, max=1000, help="The number of random clusterings per seed.")]
Encoder = Annotated[str, typer.Option("--encoder", help="The text embedding: wordllama, minilm, states, hashing or lsa.")]
Workers = Annotated[
    int, typer.Option("--workers", min=1, max=1024, help="The number of runs in parallel; each uses one process with one thread.")
]
ComparisonOutput = Annotated[Path | None, typer.Option("--output", help="Also write the tables to this .md, .html or .json file.")]
PartitionMap = Annotated[bool, typer.Option("--map", help="Run all kinds of skew and severities instead, to map where clustering helps.")]
ListRuns = Annotated[bool, typer.Option("--dry-run", help="Only list the runs and their cost.")]


def compare_clustering(
    file: ExperimentFile,
    overrides: Overrides = None,
    partition_map: PartitionMap = False,
    seeds: Seeds = 6,
    seed_offset: SeedOffset = 0,
    conditions: Conditions = "",
    encoder: Encoder = "wordllama",
    clusters: Clusters = None,
    ifca_restarts: IfcaRestarts = 5,
    random_repeats: RandomRepeats = 1,
    dry_run: ListRuns = False,
    output: ComparisonOutput = None,
    workers: Workers = 1,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    dtype: Dtype = "auto",
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Test whether clustering the clients helps: run all clustering conditions with equal training over paired seeds.

    `fedrift compare-clustering experiments/clustering.yaml --seeds 6 --output table.md`

    `fedrift compare-clustering experiments/clustering.yaml --map --seeds 3` repeats the comparison for topic, style, token and
    quantity skew at several severities.

    Conditions: `unclustered` (FedAvg with one global model), `text` (k-means on text embeddings), `random` (random clusters of the same
    sizes), `oracle` (the true domains), `update` (clusters of the first updates), `ifca` (IFCA), `local-only` (each client trains alone),
    `fine-tuned` and `text+fine-tuned` (personalization: each client fine-tunes the final model of `unclustered` or `text` on its own data),
    `centralized` (training on the data of all clients) and `iid` (the IID baseline). `cfl` (clustered federated learning) and `soft`
    (soft clustering) are optional. Each condition is compared with `random` and `unclustered` by paired tests over seeds. With five
    seeds or fewer, no test can reach p < 0.05.

    The command prints tables and writes them to `--output`. Its runs are stored in the runs directory as a study. To resume an interrupted
    comparison, repeat the same command.
    """
    from ..config.loader import apply_overrides, load_yaml
    from ..engine.cache import ResourceCache
    from ..report.comparison import map_report_parts, report_parts, results_to_json
    from ..studies.comparison import build_comparison
    from ..studies.comparison_results import ClusteringMap, collect_results, summarize_map

    cache = ResourceCache(make_runtime(runs_dir, data_dir, device, threads, dtype=dtype))
    comparison = build_comparison(
        apply_overrides(load_yaml(file), overrides or ()),
        conditions=parse_conditions(conditions),
        seeds=range(seed_offset, seed_offset + seeds),
        encoder=encoder,
        num_clusters=clusters,
        ifca_restarts=ifca_restarts,
        random_repeats=random_repeats,
        cache=cache,
    )
    study = ClusteringMap(comparison).build_study() if partition_map else comparison.build_study()
    if dry_run:
        preview_comparison(study, cache, as_json)
        return
    manifest = run_missing(study, cache, workers, fresh)
    command = "fedrift " + " ".join(shlex.quote(word) for word in sys.argv[1:])
    if partition_map:
        gains, cluster_costs = summarize_map(manifest)
        parts = map_report_parts(gains, cluster_costs)
        results = {"study": study.name, "command": command, "map": gains, "cluster_size": cluster_costs}
    else:
        outcomes = collect_results(manifest)
        parts, results = report_parts(outcomes), results_to_json(outcomes, command)
    print_comparison(parts, results, command, output, as_json)
    if not as_json:
        typer.echo(manifest.folder)


def run_missing(study: Study, cache: ResourceCache, workers: int, fresh: bool = False) -> StudyManifest:
    """Run the missing runs of a study; ``fresh`` runs all of them again."""
    from ..studies.executors import Local, Processes
    from ..studies.run import run_study
    from .console import StudyProgressBar

    with StudyProgressBar(cache.runtime.runs_dir) as progress:
        try:
            return run_study(study, cache, Local() if workers == 1 else Processes(workers), progress.start, fresh)
        except KeyboardInterrupt:
            typer.echo("stopped; repeat the same command to resume", err=True)
            raise


def preview_comparison(study: Study, cache: ResourceCache, as_json: bool) -> None:
    """Print the runs of a clustering comparison and their cost, without running them."""
    from ..studies.plan import estimate_cost
    from ..studies.run import preview_study

    plan, _ = preview_study(study, cache)
    cost = estimate_cost(plan.configs.values(), cache, False)
    if as_json:
        print_json({"study": study.name, "runs": [vars(entry) for entry in plan.entries]})
        return
    ids: dict[str, list[str]] = {}
    for entry in plan.entries:
        ids.setdefault(", ".join(str(level) for level in entry.factors.values() if level is not None), []).append(entry.run[:6])
    for label, run_ids in ids.items():
        typer.echo(f"{label:24} {' '.join(run_ids)}")
    typer.echo(f"study {study.name}: {cost.num_runs} runs, {cost.num_finished} of them finished; {cost.tokens:,.0f} training tokens")


def print_comparison(report_parts: list[ReportPart], results: dict[str, Any], command: str, output: Path | None, as_json: bool) -> None:
    """Print the tables of a clustering comparison, or its JSON, and write them to a file if requested."""
    from rich.console import Console

    from ..report.comparison import render_html, render_markdown
    from ..storage.jsonl import to_json
    from .tables import print_table

    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(
            render_markdown(report_parts, command)
            if output.suffix == ".md"
            else render_html(report_parts, command)
            if output.suffix == ".html"
            else to_json(results, 1) + "\n"
        )
    if as_json:
        print_json(results)
        return
    console = Console(highlight=False, markup=False)
    for part in report_parts:
        console.print(f"\n{part.heading}", style="bold")
        console.print(part.text)
        if part.rows:
            numbers = [name for name, *cells in zip(part.columns, *part.rows, strict=True) if all(is_short_number(cell) for cell in cells)]
            print_table(console, part.columns, part.rows, numbers[1:] if numbers[:1] == list(part.columns[:1]) else numbers)


def is_short_number(cell: str) -> bool:
    """Return whether a cell of a table has no value or a number with its unit, which must not wrap."""
    from ..report.format import DASH

    return cell in ("", DASH) or cell.startswith("n/a") or (len(cell) <= MAX_NUMBER_WIDTH and cell.lstrip("+-−<")[:1].isdigit())


def parse_conditions(text: str) -> list[str]:
    """Parse a comma-separated list of conditions; ``all`` selects every condition."""
    from ..studies.comparison import CONDITIONS

    return list(CONDITIONS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
