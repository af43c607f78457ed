"""The commands ``run``, ``validate``, ``estimate``, ``fork`` and ``profile``, which work on single experiments."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .deploy import split_backend_override
from .options import (
    DEFAULT_RUNS_DIR,
    CheckDevice,
    ClientsPerPass,
    Compile,
    DataDir,
    Deterministic,
    Device,
    Dtype,
    ExperimentFile,
    Fresh,
    Json,
    Overrides,
    RunsDir,
    SaveUpdates,
    Tf32,
    Threads,
    check_overrides,
    make_runtime,
    print_json,
)

if TYPE_CHECKING:
    from ..config.runtime import Runtime
    from ..config.schema import ExperimentConfig
    from ..engine.callbacks import Progress, ProgressCallback
    from ..flower.config import FlowerConfig
    from ..storage import Run
    from ..storage.loggers import Loggers

Measure = Annotated[bool, typer.Option("--measure", help="Also run three rounds in a temporary folder, to estimate the time.")]
LogTo = Annotated[
    list[str] | None,
    typer.Option("--log-to", help="Also log the metrics to tensorboard, mlflow, wandb or trackio. The option may be repeated."),
]
IidBaseline = Annotated[
    bool, typer.Option("--iid-baseline/--no-iid-baseline", help="Also run the matched IID baseline, and compare the two.")
]


def run(
    file: ExperimentFile,
    overrides: Overrides = None,
    iid_baseline: IidBaseline = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    clients_per_pass: ClientsPerPass = None,
    dtype: Dtype = "auto",
    compiled: Compile = False,
    check_device: CheckDevice = None,
    tf32: Tf32 = False,
    deterministic: Deterministic = True,
    log_to: LogTo = None,
    save_updates: SaveUpdates = False,
    fresh: Fresh = False,
) -> None:
    """Run an experiment, or resume it if it was interrupted.

    `fedrift run experiments/demo.yaml algorithm=Scaffold partition.severity=0.5 seed=3 --iid-baseline`

    `fedrift run my.yaml --save-updates` stores the clients' updates, so that `fedrift fork` can fork the run at any round.

    `fedrift run my.yaml backend=flower` runs the experiment over Flower's simulation; `fedrift deploy` uses real machines.

    The command writes configuration, records, checkpoint and final model to `runs/<id>/`, and prints the verdict. A finished
    run is only printed; `--fresh` runs it again. `fedrift monitor` shows the progress in another terminal.
    """
    from ..api import load_config
    from ..config.schema import iid_baseline as make_iid_baseline

    experiment_overrides, backend, flower_config = split_backend_override(overrides)
    experiment = load_config(file, experiment_overrides)
    experiments = [experiment, make_iid_baseline(experiment)] if iid_baseline else [experiment]
    runtime = make_runtime(
        runs_dir, data_dir, device, threads, clients_per_pass, dtype, compiled, check_device, tf32, deterministic, save_updates
    )
    runs = run_experiments(experiments, runtime, flower_config if backend == "flower" else None, log_to or (), fresh)
    from .console import print_summary, print_verdicts

    if iid_baseline:
        print_verdicts([(runs[0], runs[1])])
    else:
        from .run_list import find_stored_baseline

        print_summary(runs[0], find_stored_baseline(runs[0]))


def validate(file: ExperimentFile, overrides: Overrides = None, data_dir: DataDir = None) -> None:
    """Check an experiment without running it.

    `fedrift validate my.yaml partition.severity=0.5`

    The command prints the full experiment with all defaults, its id, and what was not checked. A dataset in a local file or folder of
    at most 100 MB is read and partitioned, so that errors in it show up. Named datasets, those of the model hub, and the weights of
    the model are not read. The command writes no files except its cache of token counts.
    """
    from ..api import load_config
    from ..config.loader import dump_yaml
    from .validation import check_experiment

    experiment = load_config(file, overrides or ())
    unchecked = check_experiment(experiment, data_dir)
    typer.echo(dump_yaml(experiment.to_dict()).rstrip())
    typer.echo(f"# valid; the id is {experiment.id} before the content of the dataset is known")
    typer.echo(f"# not checked: {'; '.join(unchecked)}")


def run_experiments(
    experiments: list[ExperimentConfig],
    runtime: Runtime,
    flower_config: FlowerConfig | None = None,
    loggers: Iterable[str] = (),
    fresh: bool = False,
) -> list[Run]:
    """Run experiments one after another under one progress bar; shared resources are loaded once.

    Args:
        experiments: The experiments to run.
        runtime: Where and with what to compute.
        flower_config: The settings of Flower; None runs the clients in this process.
        loggers: Names of loggers that receive the metrics of every round.
        fresh: Whether to move stored runs aside and run them again.

    Returns:
        The runs, in the order of the experiments.

    Raises:
        UserError: If an experiment cannot be run, or if Flower or a logger is not installed.
    """
    from ..storage.loggers import create_backends, open_loggers

    create_backends(loggers, runtime.runs_dir)  # report a missing logger before anything is loaded
    from ..engine.cache import ResourceCache
    from ..engine.run import archive_stored_run, run_experiment
    from .console import RunProgressBar

    if flower_config:
        from ..flower import require_flower

        require_flower(simulation=True)
        from ..flower.launch import simulate

        def run_experiment(experiment: ExperimentConfig, cache: ResourceCache, on_progress: ProgressCallback) -> Run:  # type: ignore[misc]
            return simulate(experiment, cache, flower_config, on_progress)

    cache, runs = ResourceCache(runtime), []
    try:
        with RunProgressBar(sum(experiment.training.num_rounds for experiment in experiments)) as bar:
            for experiment in experiments:
                if fresh:
                    archive_stored_run(experiment, cache)
                with open_loggers(loggers, runtime.runs_dir) as backends:
                    runs.append(
                        run_experiment(experiment, cache, chain_callbacks(bar.callback_for(experiment.name), backends, runtime.runs_dir))
                    )
                    backends.push(runs[-1])
                bar.advance(experiment.training.num_rounds)
    except KeyboardInterrupt:
        typer.echo("stopped; repeat the same command to resume", err=True)
        raise
    return runs


def chain_callbacks(on_progress: ProgressCallback, loggers: Loggers, runs_dir: Path) -> ProgressCallback:
    """Return a callback that passes every round to ``on_progress`` and then sends its metrics to the loggers."""
    from ..storage import Run

    def on_round(progress: Progress) -> None:
        on_progress(progress)
        loggers.push(Run(runs_dir, progress.run_id))

    return on_round


# fork

if TYPE_CHECKING:
    from ..studies.fork_report import ForkReport

MAX_DOMAIN_COLUMNS = 6  # domains that fit into the table

ForkedRunName = Annotated[
    str, typer.Argument(help="A run with stored updates: its id (a unique prefix is enough), a tag or its run directory.", metavar="RUN")
]
ForkOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="The changes of the fork: `exclude_clients=3`, `algorithm.aggregator=Median`, `training.client_optimizer.lr=0.1`, "
        "`training.max_grad_norm=0.5`.",
        metavar="[a.b=c]...",
        callback=check_overrides,
    ),
]
FromRound = Annotated[
    int, typer.Option("--from-round", min=1, max=1_000_000, help="The first round to compute again; the earlier rounds are copied.")
]


def fork(
    name: ForkedRunName,
    from_round: FromRound,
    overrides: ForkOverrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Fork a run: repeat it from one round on with a single change, to test what caused a failure.

    `fedrift run my.yaml --save-updates`, then `fedrift fork 5c35 --from-round 7 exclude_clients=3`

    `fedrift fork 5c35 --from-round 7 "algorithm.aggregator={type: NormClippedMean, max_norm: 0.5}"`

    `exclude_clients=3` (or `3,4`) ignores the updates of these clients from that round on, or up to round 9 with
    `exclude_until=9`. Any key of `algorithm` and `training` can be changed too, e.g.
    `algorithm.server_optimizer={type: Adam, lr: 0.01}`.

    If a change affects only the server, the first round uses the recorded updates of the clients. All other rounds are trained
    again. The fork has the data type and the other numeric options of the run. Without a change, it reproduces the run bit for bit.

    The command prints the difference to the origin round by round. The fork is stored in the runs directory, where `show`,
    `report`, `compare` and `diagnose` can use it.
    """
    from ..diagnosis.across_seeds import to_json_value
    from ..engine.fork import ForkedRun
    from ..storage import Run, find_run, list_runs
    from ..studies.fork_report import make_fork_config, report_fork

    origin = find_run(runs_dir, name)
    experiment = make_fork_config(origin, from_round, overrides or ())
    forked_run = ForkedRun.from_config(Run(origin.root, experiment.id), experiment)
    assert forked_run is not None
    numeric_options = origin.environment.get("engine", {})  # the options that differ from NUMERIC_DEFAULTS
    runtime = make_runtime(
        origin.root,
        data_dir,
        device,
        threads,
        dtype=numeric_options.get("dtype", "float32"),
        compiled=numeric_options.get("compiled", False),
        tf32=numeric_options.get("tf32", False),
        deterministic=numeric_options.get("deterministic", True),
    )
    run_experiments([experiment], runtime)
    fork_report = report_fork(forked_run, list_runs(origin.root))
    forked_run.run.write_json("fork", to_json_value(fork_report.to_json()))
    if as_json:
        print_json(fork_report.to_json())
    else:
        print_fork(fork_report)


def print_fork(fork_report: ForkReport) -> None:
    """Print the differences by round, their summary, and the findings in the fork and in its origin."""
    from rich.console import Console

    from ..report.format import format_number, format_signed
    from .tables import print_table

    console = Console(highlight=False)
    console.print(f"[bold]Run {fork_report.origin[:6]} from round {fork_report.round} on[/], {fork_report.change}", markup=True)
    domains = sorted({domain for row in fork_report.rounds for domain in row.domains})
    shown = domains if len(domains) <= MAX_DOMAIN_COLUMNS else []
    columns = ("round", "distance", "origin", "fork", "all", *shown)
    rows = [
        (
            str(row.round),
            format_number(row.distance),
            format_number(row.origin),
            format_number(row.fork),
            format_signed(row.difference),
            *(format_signed(row.domains[domain]) for domain in shown),
        )
        for row in fork_report.rounds
    ]
    print_table(console, columns, rows, columns, "Loss of the fork minus the origin (nats per token)")
    first_round = (
        f"Round {fork_report.round} used the clients' recorded updates."
        if fork_report.has_reused_updates
        else f"The change affects the clients, so round {fork_report.round} was trained again too."
    )
    console.print(f"{fork_report.sentence} {first_round}\n")
    reference = (
        f"the IID baseline {fork_report.baseline[:6]}"
        if fork_report.baseline
        else "no IID baseline (`fedrift diagnose --iid-baseline` runs it)"
    )
    heading = "Findings in the fork and in the origin" if fork_report.findings else "The detectors find nothing in the fork or the origin"
    console.print(f"{heading}, compared with {reference}{':' if fork_report.findings else '.'}")
    for change in fork_report.findings:
        console.print(f"  {change.sentence}")
    console.print(f"[dim]fork {fork_report.fork}[/]")


# profile

if TYPE_CHECKING:
    from rich.console import Console

    from ..profiling import Profile

ProfiledRounds = Annotated[
    int, typer.Option("--rounds", min=1, max=1_000_000, help="The number of rounds to measure after one warm-up round.")
]
MIN_SHARE_SHOWN = 0.005  # share of a run; smaller phases are summed up in one line
MIN_BUSY_SHARE = 0.8  # share of the threads; below it, other programs may have used the processor
ProfileOutput = Annotated[Path | None, typer.Option("--output", help="Also write the measurements to this JSON file.")]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace", help="Write a Chrome trace of one round of training to this file; chrome://tracing and ui.perfetto.dev show it."
    ),
]


def profile(
    file: ExperimentFile,
    overrides: Overrides = None,
    rounds: ProfiledRounds = 2,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    clients_per_pass: ClientsPerPass = None,
    dtype: Dtype = "auto",
    compiled: Compile = False,
    tf32: Tf32 = False,
    deterministic: Deterministic = True,
    as_json: Json = False,
    output: ProfileOutput = None,
    trace: Trace = None,
) -> None:
    """Measure where a round spends time and memory, and suggest how to make the run cheaper.

    `fedrift profile experiments/demo.yaml training.batch_size=8 --threads 1`

    `fedrift profile my.yaml --trace round.json` also writes every operation of one round to a trace file.

    The command runs a few rounds in a temporary folder, then repeats one of them under torch's profiler. It prints the time of
    each phase and of each kind of operation, the FLOPs relative to the machine's peak, the memory by purpose, and the traffic of
    a client. Only `--output` and `--trace` write files. Results hold for this machine as it is now, so use an idle machine.
    """
    # torch reads this when it is imported; without it, its profiler prints when it starts and stops
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from ..api import load_config
    from ..core.errors import UserError

    for path in (output, trace):
        if path is not None and not path.resolve().parent.is_dir():
            raise UserError(f"cannot write {path.name}: the folder {path.resolve().parent} does not exist; create it first")
    experiment = load_config(file, overrides or ())
    from rich.console import Console

    from ..engine.cache import ResourceCache
    from ..profiling import profile_run
    from ..storage.jsonl import to_json

    cache = ResourceCache(
        make_runtime(DEFAULT_RUNS_DIR, data_dir, device, threads, clients_per_pass, dtype, compiled, None, tf32, deterministic)
    )
    with Console(stderr=True).status("loading") as status:
        result = profile_run(experiment, cache, rounds, trace, on_message=lambda message: show_status(status, message))
    text = to_json(result.to_dict(), 2)
    if output is not None:
        output.write_text(text + "\n")
    if as_json:
        typer.echo(text)
    else:
        print_profile(Console(highlight=False), result)
    for path in (output, trace):
        if path is not None:
            typer.echo(path.resolve(), err=True)


def show_status(status: Any, message: str) -> None:
    """Show a message in the status line of a terminal, or print it as a line elsewhere."""
    if status.console.is_terminal:
        status.update(message)
    else:
        status.console.print(message)


def print_profile(screen: Console, result: Profile) -> None:
    """Print the measurements of a profile and the hints that follow from them."""
    from .tables import print_table

    machine, compute, passes = result.machine, result.compute, result.passes
    screen.print(f"[bold]{result.experiment}[/]  on {machine['device']}, {machine['threads']} thread(s), {machine['dtype']}")
    screen.print(
        f"{compute['tokens_per_second']:,.0f} training tokens per second; {compute['flops_per_token'] / 1e6:,.1f} "
        f"MFLOP per token, {compute['gflops']:,.1f} GFLOP/s, {100 * compute['share_of_peak']:.0f} % of the speed of a large matrix "
        f"product on this machine ({machine['gemm_peak_gflops']:,.0f} GFLOP/s)"
    )
    if machine["device"] == "cpu" and machine["busy_threads"] < MIN_BUSY_SHARE * machine["threads"]:
        screen.print(
            f"[yellow]Only {machine['busy_threads']:.2f} of {machine['threads']} thread(s) were busy. If other programs run, "
            "the measured times are too long and the share of the peak is too low.[/]"
        )
    rows = [
        (phase["name"], f"{phase['seconds']:.3f}", f"{phase['times']:,} x", f"{phase['total']:,.1f}", f"{100 * phase['share']:.1f} %")
        for per in ("run", "round")
        for phase in result.phases
        if phase["per"] == per and phase["share"] >= MIN_SHARE_SHOWN
    ]
    minor = [phase for phase in result.phases if phase["share"] < MIN_SHARE_SHOWN]
    total, share = (sum(phase[key] for phase in minor) for key in ("total", "share"))
    rows.append((f"{len(minor)} smaller", "", "", f"{total:,.1f}", f"{100 * share:.1f} %"))
    columns = ("", "seconds each", "times", "seconds", "share")
    print_table(screen, columns, rows, columns[1:], "Whole run")
    training = result.training
    scope = f" (the first {training['steps']} steps)" if training["steps"] else ""
    kinds = [(kind, f"{seconds:.3f}", f"{100 * training['shares'][kind]:.1f} %") for kind, seconds in training["seconds"].items()]
    print_table(screen, ("", "seconds", "share"), kinds, ("seconds", "share"), f"Inside training{scope}")
    screen.print(f"[dim]With the profiler, training took {training['profiler_slowdown']:.2f} times as long.[/]")
    memory = result.memory["bytes"]
    total = sum(value for value in memory.values() if value == value)
    sizes = [(name, f"{size / 1e6:,.1f}", f"{100 * size / total:.1f} %") for name, size in memory.items() if size]
    print_table(screen, ("", "MB", "share"), sizes, ("MB", "share"), "Memory")
    screen.print(
        f"peak resident memory {result.memory['resident_peak'] / 1e6:,.0f} MB"
        + (f", peak device memory {result.memory['device_peak'] / 1e6:,.0f} MB" if result.memory["device_peak"] else "")
    )
    screen.print(f"{passes['clients_per_pass']} clients per forward pass: {passes['reason']}")
    screen.print(
        "; ".join(f"{trial['clients']} x batch {trial['batch']}: {trial['tokens_per_second']:,.0f} tokens/s" for trial in passes["trials"])
    )
    screen.print(f"each client sends {result.traffic['up'] / 1e3:,.1f} kB per round and receives {result.traffic['down'] / 1e3:,.1f} kB\n")
    for hint in result.hints:
        screen.print(f"- {hint}")


# estimate


def estimate(
    file: ExperimentFile,
    overrides: Overrides = None,
    measure: Measure = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    clients_per_pass: ClientsPerPass = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Estimate the memory and disk space of a run before it starts; with `--measure` also its time.

    `fedrift estimate my.yaml --measure`

    `fedrift estimate my.yaml model=smollm2-135m training.batch_size=8`

    The command loads the model, but not the data, unless `--measure` is given. Sizes of weights and states are exact. The size of
    the activations is the estimate from which a run chooses how many clients train in one pass. `fedrift profile` measures a round
    in detail. The command stores no run.
    """
    from rich.console import Console

    from ..api import load_config
    from ..engine.cache import ResourceCache
    from ..engine.estimate import estimate_run
    from .tables import format_duration, print_table

    experiment = load_config(file, overrides or ())
    cache = ResourceCache(make_runtime(DEFAULT_RUNS_DIR, data_dir, device, threads, clients_per_pass, dtype))
    result, seconds = estimate_run(experiment, cache), float("nan")
    if measure:
        from ..studies.plan import measure_speed

        with Console(stderr=True).status("measuring the speed of three rounds"):
            seconds = measure_speed(experiment, cache).estimate_seconds(experiment)
    if as_json:
        print_json({**asdict(result), "memory": result.memory, "seconds": seconds})
        return
    console = Console(highlight=False, markup=False)
    updates = f"one round of stored updates (--save-updates; {experiment.training.num_rounds} rounds)"
    rows = [
        ("base weights, shared by all clients", result.weights),
        ("server state", result.server_state),
        (f"states of {experiment.partition.num_clients} clients", result.client_states),
        (f"parameters, gradients, moments of {result.clients_per_pass} clients, updates of a cohort", result.cohort),
        (f"activations of a forward pass with {result.clients_per_pass} clients", result.activations),
        ("memory in total, without data, evaluation and libraries", result.memory),
        ("checkpoint on disk", result.checkpoint),
        (updates, result.updates_per_round),
    ]
    console.print(f"{experiment.name}: {result.trained_params:,} trained parameters, {result.tokens:,} training tokens")
    print_table(console, ("", "MB"), [(name, f"{size / 1e6:,.1f}") for name, size in rows], numbers=("MB",))
    if measure:
        console.print(f"time: about {format_duration(seconds)}, estimated from three rounds on this machine as it is now")
    else:
        console.print("time: not measured; --measure runs three rounds")
