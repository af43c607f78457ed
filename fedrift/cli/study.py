"""Commands about many runs: study, query, compare, compare-clustering."""

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
    VERBOSE,
    DataDir,
    Device,
    ExperimentFile,
    Fresh,
    Json,
    Overrides,
    RunsDir,
    Threads,
    make_runtime,
    print_json,
    print_unreadable,
)

if TYPE_CHECKING:
    from ..engine.cache import ResourceCache
    from ..storage import Run
    from ..studies import Study

StudyFile = Annotated[Path, typer.Argument(help="The study's YAML file.", metavar="STUDY.yaml")]
StudyOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="`executor=processes`, `executor.num_workers=4`, and changes to the study: `seeds=3`, `base.training.num_rounds=10`.",
        metavar="[a.b=c]...",
    ),
]
StudyLogTo = Annotated[
    list[str] | None,
    typer.Option("--log-to", help="Also send every run's numbers to tensorboard, mlflow, wandb or trackio; may be given more than once."),
]
HiddenStates = Annotated[bool, typer.Option("--states", help="Also how alike their final models' hidden states are, by layer.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list the runs, their ids, what is confounded, and the cost.")]
MeasureSpeed = Annotated[bool, typer.Option("--probe/--no-probe", help="With --dry-run: measure this machine's speed in a few rounds.")]


def study(
    file: StudyFile,
    overrides: StudyOverrides = None,
    dry_run: DryRun = False,
    measure_speed: MeasureSpeed = True,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    log_to: StudyLogTo = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run a study, or go on with it: every cell, every seed, each beside its IID baseline; tuned first where it says so.

    `fedrift study studies/small.yaml --dry-run`, then `fedrift study studies/small.yaml executor=processes`

    Stopped at any moment it goes on when the same command is given again. Executors: `local` (one run after another),
    `processes` (several at once on this machine), `ray`, `slurm`. Started on several machines that share the folder of the
    runs, each run is done once. Runs that another study made are not made again, unless `--fresh` asks for it. `--log-to` sends
    a run's numbers there when it is over. The exit code is 1 if a run failed.
    """
    from ..config.loader import Registry, apply_overrides, parse_value
    from ..engine.cache import ResourceCache
    from ..storage.loggers import create_backends
    from ..studies import executors, load_study
    from ..studies.executors import Executor

    said = list(overrides or ())
    where = [text for text in said if text.split("=")[0].split(".")[0] == "executor"]
    asked = load_study(file, [text for text in said if text not in where])
    named = {name.lower(): name for name in executors.__all__}
    place: dict[str, Any] = apply_overrides({"executor": "Local"}, where)
    chosen = {"type": place["executor"]} if isinstance(place["executor"], str) else place["executor"]
    if isinstance(chosen, dict):
        kind = chosen.get("type", "Local")
        chosen = {**chosen, "type": named.get(kind.lower(), kind) if isinstance(kind, str) else kind}
    executor = parse_value(Executor, chosen, Registry({Executor: executors}), "executor")
    stock = ResourceCache(make_runtime(runs_dir, data_dir, device, threads))
    if dry_run:
        preview_study(asked, stock, measure_speed, as_json)
    else:
        create_backends(log_to or (), runs_dir)  # what is missing is told before anything is run
        run_and_summarize(asked, stock, executor, as_json, log_to or (), fresh)


def preview_study(study: Study, stock: ResourceCache, measure_speed: bool, as_json: bool) -> None:
    """What would be run."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ..engine.build import config_caveats
    from ..studies.plan import build_manifest_content, estimate_cost
    from ..studies.run import preview_study

    plan, known = preview_study(study, stock)
    said, price = build_manifest_content(study, plan, known), estimate_cost(plan.configs.values(), stock, measure_speed)
    caveats = Counter(caveat for experiment in plan.configs.values() for caveat in config_caveats(experiment))
    if as_json:
        print_json(
            {
                "study": said["study"],
                "designs": said["designs"],
                "choices": said["choices"],
                "ids_final": known,
                "runs": [vars(entry) for entry in plan.entries],
                "cost": vars(price),
                "caveats": [{"caveat": caveat, "runs": runs} for caveat, runs in caveats.items()],
            }
        )
        return
    screen = Console(highlight=False)
    table = Table(box=SIMPLE)
    for name in ("stage", "role", "condition", "seeds", "ids"):
        table.add_column(name, no_wrap=name in ("stage", "role"), overflow="fold")
    rows: dict[tuple[str, str, str], list[Any]] = {}
    for entry in plan.entries:
        settings = f" [{', '.join(f'{k}={v}' for k, v in entry.settings.items())}]" if entry.settings else ""
        rows.setdefault((entry.stage, entry.role, entry.condition + settings), []).append(entry)
    for (stage, role, arm), entries in rows.items():
        ids = list(dict.fromkeys(entry.run[:6] for entry in entries))
        seeds = ", ".join(map(str, dict.fromkeys(entry.seed for entry in entries)))
        table.add_row(stage, role, arm.replace("[", r"\["), seeds, " ".join(ids[:6]) + (" ..." if len(ids) > 6 else ""))
    screen.print(table)
    for stage, design in said["designs"].items():
        mixed = "; a main effect is read with part of an interaction in it where one exists:" if design["aliases"] else ""
        screen.print(f"{stage}: {design['cells']} cells{mixed}")
        for alias in design["aliases"]:
            screen.print(f"  {alias['factor']}: {alias['share']:.0%} within {' x '.join(alias['pair'])}")
    if not known:
        screen.print("tuning is not done: ids of what is tuned will change with what it chooses")
    print_choices(said["choices"])
    for caveat, runs in caveats.items():
        typer.echo(f"caveat, {runs} of {price.num_runs} runs: {caveat}")
    speed = "" if math.isnan(price.tokens_per_second) else f" at {price.tokens_per_second:,.0f} tokens a second, measured here"
    time = "" if math.isnan(price.seconds) else f": about {format_duration(price.seconds)} one after another"
    screen.print(f"{price.num_runs} runs, {price.num_finished} of them done; {price.tokens:,.0f} tokens to train on{time}{speed}")


def run_and_summarize(
    study: Study, stock: ResourceCache, executor: Any, as_json: bool, loggers: Sequence[str] = (), fresh: bool = False
) -> None:
    """Run it, and tell how it ended; exit code 1 if a run failed."""
    from ..storage.loggers import log_finished_runs
    from ..studies import judge_hypotheses
    from ..studies.run import run_study
    from .console import StudyProgressBar

    with StudyProgressBar() as watching:
        try:
            book = run_study(study, stock, executor, log_finished_runs(watching.start, loggers, stock.runtime.runs_dir), fresh)
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from here", err=True)
            raise
    frame, verdicts = judge_hypotheses(book)
    failed = frame[frame.status == "failed"]
    if VERBOSE.get():
        for run in failed.run:
            print_traceback(book.get_run(run))
    if as_json:
        print_json(frame)
        raise typer.Exit(1 if len(failed) else 0)
    print_choices(book.read()["choices"])
    runs = frame[frame.role == "run"]
    shown = runs.groupby(["stage", "condition"], sort=False)[list(study.metrics)].mean(numeric_only=True)
    typer.echo(shown.to_string(float_format=lambda value: f"{value:.3f}", max_colwidth=60) if len(shown) else "no runs")
    for verdict in verdicts:
        typer.echo(verdict.sentence)
    for row in failed.to_dict("records"):
        typer.echo(f"failed {str(row['run'])[:6]} {row['condition']}, seed {row['seed']}: {str(row['failure']).splitlines()[0]}")
    typer.echo(
        f"{len(frame)} runs: {(frame.status == 'finished').sum()} finished, {len(failed)} failed, "
        f"{int(frame.diverged.sum())} diverged. Above are means over seeds."
    )
    typer.echo(f"{book.folder}; `fedrift report {book.name}{runs_dir_option(stock)} --html --pdf` shows it")
    if len(failed):
        raise typer.Exit(1)


def print_traceback(run: Run) -> None:
    """The traceback that a failed run has stored, if it has."""
    if (run.folder / "failed.json").exists():
        typer.echo(f"run {run.id}:\n{run.read_json('failed').get('traceback', '')}", err=True)


def runs_dir_option(stock: ResourceCache) -> str:
    """The option that names the folder of the runs, where it is not the usual one."""
    return "" if stock.runtime.runs_dir == DEFAULT_RUNS_DIR else f" --runs-dir {stock.runtime.runs_dir}"


def print_choices(tuned: list[dict[str, Any]]) -> None:
    """What tuning chose, and where a wider grid is wanted."""
    for choice in tuned:
        settings = ", ".join(f"{path}={value}" for path, value in choice["settings"].items()) or "nothing: no trial ended well"
        edge = f"; at the edge of the grid: {', '.join(choice['at_grid_edge'])}" if choice["at_grid_edge"] else ""
        typer.echo(f"tuned {choice['group']}: {settings}{edge} ({len(choice['trials'])} trials)")


def query(
    query: Annotated[str, typer.Argument(help="SQL over `runs`, `records` and `findings`.")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Ask all runs a question in SQL (DuckDB's).

    `fedrift query "SELECT algorithm, avg(final_loss) FROM runs GROUP BY ALL"`

    `records(run, round, metric, domain, client, value)` has every number; `runs` one row a run, with a column a path of the
    experiment (`"partition.severity"`, in double quotes); `findings` what detectors left. `DESCRIBE runs` lists columns.
    """
    from ..storage import list_unreadable, query_rows
    from ..storage import query_frame as ask

    answer = query_rows(runs_dir, query) if as_json else ask(runs_dir, query)
    print_unreadable(list_unreadable(runs_dir))
    if isinstance(answer, list):
        print_json(answer)
    else:
        typer.echo(answer.to_string(index=False, max_rows=200))


def compare(
    first: Annotated[str, typer.Argument(help="A run's id (its first letters do), or its folder.", metavar="A")],
    second: Annotated[str, typer.Argument(help="Another.", metavar="B")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    hidden_states: HiddenStates = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """What differs between two runs: in what was asked, and in what came, over the rounds that both have.

    `fedrift compare 5c35 77e0`

    `fedrift compare 5c35 77e0 --states` loads both models too: how alike are their hidden states, layer by layer? Beside the
    run of `algorithm=Centralized` it is what federation makes of the representation.
    """
    from dataclasses import asdict

    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ..storage import find_run
    from ..studies.outcomes import compare_configs, compare_metrics

    a, b = find_run(runs_dir, first), find_run(runs_dir, second)
    differs, found, inside = compare_configs(a, b), compare_metrics(a, b), {}
    if hidden_states:
        from ..engine.cache import ResourceCache
        from ..engine.model_similarity import measure_similarity

        inside = measure_similarity(a, b, ResourceCache(make_runtime(runs_dir, data_dir, device, threads)))
    if as_json:
        print_json(
            {
                "asked": {path: list(pair) for path, pair in differs.items()},
                "came": [asdict(each) for each in found],
                **({"states": inside} if inside else {}),
            }
        )
        return
    screen = Console(highlight=False)
    config = Table(title="asked" if differs else "asked: the same", box=SIMPLE)
    for name in ("", f"A {a.id[:6]}", f"B {b.id[:6]}"):
        config.add_column(name)
    for path, (left, right) in differs.items():
        config.add_row(path, str(left), str(right))
    screen.print(config)
    table = Table(title="came: mean of the last 5 shared evaluations", box=SIMPLE)
    for name in ("metric", "of", "A", "B", "B - A", "largest B - A", "in round"):
        table.add_column(name, justify="left" if name in ("metric", "of") else "right")
    for each in found:
        if each.mean_difference or each.max_difference:
            table.add_row(
                each.metric,
                each.domain,
                f"{each.first:.4g}",
                f"{each.second:.4g}",
                f"{each.mean_difference:+.4f}",
                f"{each.max_difference:+.4f}",
                str(each.max_difference_round),
            )
    screen.print(table)
    if inside:
        table = Table(title="hidden states of the final models, beside each other and the pretrained one (0)", box=SIMPLE)
        for name in ("", "CKA A, B", "A, 0", "B, 0", "cosine A, B", "A, 0", "B, 0"):
            table.add_column(name, justify="right" if name else "left")
        for layer, measures in inside.items():
            table.add_row(layer or "mean", *(f"{value:.4f}" for pairs in measures.values() for value in pairs.values()))
        screen.print(table)
    equal = sum(not (each.mean_difference or each.max_difference) for each in found)
    screen.print(f"{equal} of {len(found)} numbers are the same in both. One seed each: a difference is no effect yet.")


def null_non_finite(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON has no name for as null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}


def format_duration(seconds: float) -> str:
    """``2 h 5 min``, ``3 min 20 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


# The command that compares clusterings: compare-clustering.

if TYPE_CHECKING:
    from ..clustering.comparison_report import ReportPart
    from ..engine.cache import ResourceCache
    from ..studies import Study, StudyManifest

Seeds = Annotated[int, typer.Option("--seeds", min=1, max=1000, help="How many paired seeds, from --seed-offset on.")]
SeedOffset = Annotated[int, typer.Option("--seed-offset", min=0, max=2**53 - 1001, help="The first seed.")]
Conditions = Annotated[
    str, typer.Option("--conditions", help="Some conditions, e.g. `text,random,oracle`; `all` for the optional ones too.")
]
Clusters = Annotated[
    int | None, typer.Option("--clusters", min=1, max=100_000, help="How many clusters; counted from the text if not said.")
]
IfcaRestarts = Annotated[int, typer.Option("--ifca-restarts", min=1, max=1000, help="Starts of IFCA in every seed, all of them paid for.")]
RandomRepeats = Annotated[int, typer.Option("--random-repeats", min=1, max=1000, help="Draws of the random clusters in every seed.")]
Encoder = Annotated[str, typer.Option("--encoder", help="wordllama, minilm, states, hashing or lsa.")]
Workers = Annotated[int, typer.Option("--workers", min=1, max=1024, help="Runs at once, each in a process of one thread.")]
ComparisonOutput = Annotated[Path | None, typer.Option("--output", help="Write the tables here too: .md, .html or .json.")]
RegimeMap = Annotated[bool, typer.Option("--map", help="Over regimes and severities: where can clustering help, where not?")]
ListRuns = Annotated[bool, typer.Option("--dry-run", help="Only list the runs and what they cost.")]


def compare_clustering(
    file: ExperimentFile,
    overrides: Overrides = None,
    regime_map: RegimeMap = False,
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
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Does it help to cluster the clients? All conditions of one experiment, at equal training, over paired seeds.

    `fedrift compare-clustering experiments/clustering.yaml --seeds 6 --output table.md`

    Conditions: vanilla; k-means on text embeddings; random clusters of the same sizes; the true domains; clusters of the first
    updates; IFCA; everybody alone; vanilla and text clusters with local steps; centralised; the IID deal. `cfl` and `soft` are
    there for the asking. Each is compared with random clusters and with vanilla, seed by seed. Five seeds or fewer can
    never reach p < .05. Stopped at any moment it goes on when the same command is given again.

    `fedrift compare-clustering experiments/clustering.yaml --map --seeds 3` goes through topic, style, token and quantity skew
    and severities: what text clusters gain over random ones, beside what the descriptors know of the clients.
    """
    from ..clustering.comparison import build_comparison
    from ..clustering.comparison_report import frame_to_records, map_report_parts, report_parts, results_to_json
    from ..clustering.comparison_results import ClusteringMap, collect_results, summarize_map
    from ..config.loader import load_yaml
    from ..engine.cache import ResourceCache

    stock = ResourceCache(make_runtime(runs_dir, data_dir, device, threads))
    asked = build_comparison(
        load_yaml(file),
        overrides or (),
        conditions=parse_conditions(conditions),
        seeds=range(seed_offset, seed_offset + seeds),
        encoder=encoder,
        num_clusters=clusters,
        ifca_restarts=ifca_restarts,
        random_repeats=random_repeats,
        cache=stock,
    )
    study = ClusteringMap(asked).build_study() if regime_map else asked.build_study()
    if dry_run:
        preview_comparison(study, stock, as_json)
        return
    book = run_missing(study, stock, workers, fresh)
    command = "fedrift " + " ".join(shlex.quote(word) for word in sys.argv[1:])
    if regime_map:
        gains, starved = summarize_map(book)
        told = map_report_parts(gains, starved)
        said = {"study": study.name, "command": command, "map": frame_to_records(gains), "starved": frame_to_records(starved)}
    else:
        came = collect_results(book)
        told, said = report_parts(came), results_to_json(came, command)
    print_comparison(told, said, command, output, as_json)
    if not as_json:
        typer.echo(book.folder)


def run_missing(study: Study, stock: ResourceCache, workers: int, fresh: bool = False) -> StudyManifest:
    """Run what is missing; ``fresh``: everything."""
    from ..studies.executors import Local, Processes
    from ..studies.run import run_study
    from .console import StudyProgressBar

    with StudyProgressBar() as watching:
        try:
            return run_study(study, stock, Local() if workers == 1 else Processes(workers), watching.start, fresh)
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from here", err=True)
            raise


def preview_comparison(study: Study, stock: ResourceCache, as_json: bool) -> None:
    """What would be run."""
    from ..studies.plan import estimate_cost
    from ..studies.run import preview_study

    plan, _ = preview_study(study, stock)
    price = estimate_cost(plan.configs.values(), stock, False)
    if as_json:
        print_json({"study": study.name, "runs": [vars(entry) for entry in plan.entries]})
        return
    ids: dict[str, list[str]] = {}
    for entry in plan.entries:
        ids.setdefault(", ".join(str(level) for level in entry.factors.values() if level is not None), []).append(entry.run[:6])
    for label, every in ids.items():
        typer.echo(f"{label:24} {' '.join(every)}")
    typer.echo(f"study {study.name}: {price.num_runs} runs, {price.num_finished} of them done; {price.tokens:,.0f} tokens to train on")


def print_comparison(report_parts: list[ReportPart], results: dict[str, Any], command: str, output: Path | None, as_json: bool) -> None:
    """The tables on the screen, and in a file."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ..clustering.comparison_report import render_html, render_markdown
    from ..storage.jsonl import to_json

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
    screen = Console(highlight=False, markup=False)
    for part in report_parts:
        screen.print(f"\n{part.heading}", style="bold")
        screen.print(part.text)
        if part.rows:
            table = Table(box=SIMPLE)
            for place, name in enumerate(part.columns):
                table.add_column(name, justify="right" if place else "left")
            for row in part.rows:
                table.add_row(*row)
            screen.print(table)


def parse_conditions(text: str) -> list[str]:
    """The conditions that were asked for."""
    from ..clustering.comparison import CONDITIONS

    return list(CONDITIONS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
