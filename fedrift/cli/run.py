"""Commands that compute: run, demo, validate, fork, profile."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
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

LogTo = Annotated[
    list[str] | None,
    typer.Option("--log-to", help="Also send its numbers to tensorboard, mlflow, wandb or trackio; may be given more than once."),
]
IidBaseline = Annotated[bool, typer.Option("--iid-baseline/--no-iid-baseline", help="Run its IID baseline too, and compare.")]


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
    """Run an experiment, or go on with it; a finished one is only shown, unless `--fresh` asks to run it anew.

    `fedrift run experiments/demo.yaml algorithm=Scaffold partition.severity=0.5 seed=3 --iid-baseline`

    `backend=flower` runs the same experiment over Flower's simulation; `fedrift deploy` over real machines.

    `--log-to tensorboard` lets it be watched there too; `fedrift monitor` needs nothing.

    `--save-updates` records what clients send, so that `fedrift fork` can fork the run at any round.
    """
    from ..config.schema import iid_baseline as iid
    from ..config.schema import load_config

    rest, fleet, terms = split_backend_override(overrides)
    experiment = load_config(file, rest)
    wanted = [experiment, iid(experiment)] if iid_baseline else [experiment]
    where = make_runtime(
        runs_dir, data_dir, device, threads, clients_per_pass, dtype, compiled, check_device, tf32, deterministic, save_updates
    )
    runs = run_experiments(wanted, where, terms if fleet == "flower" else None, log_to or (), fresh)
    from .console import print_summary, print_verdicts

    if iid_baseline:
        print_verdicts([(runs[0], runs[1])])
    else:
        print_summary(runs[0])


def demo(
    output_dir: Annotated[Path, typer.Option("--output", help="Where the HTML page goes.")] = Path("demo-report"),
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    data_dir: DataDir = None,
    threads: Threads = None,
    fresh: Fresh = False,
) -> None:
    """The whole way: FedAvg, FedProx and SCAFFOLD on BBC News, one topic a client, each beside its IID baseline."""
    from .. import algorithms
    from ..config.schema import edit_config, load_config
    from ..config.schema import iid_baseline as iid

    base = load_config(example_experiments_dir() / "demo.yaml")
    skewed = [
        edit_config(base, {"algorithm": algorithm})
        for algorithm in (algorithms.FedAvg(), algorithms.FedProx(mu=0.1), algorithms.Scaffold())
    ]
    typer.echo("BBC News on the language model `pocket`: one topic a client, and the same documents dealt IID.")
    runs = run_experiments(
        [one for each in skewed for one in (each, iid(each))], make_runtime(runs_dir, data_dir, "cpu", threads), fresh=fresh
    )
    from ..report import write_report
    from .console import print_verdicts, run_view

    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    print_verdicts(pairs)
    page = write_report([run_view(run, twin) for run, twin in pairs], output_dir)
    typer.echo(f"runs   {runs_dir.resolve()}\nreport {page.resolve()}")


def validate(file: ExperimentFile, overrides: Overrides = None) -> None:
    """Check an experiment without running it; prints it whole, with all defaults, and its id.

    Where the corpus is a file on this machine, it is read and dealt.
    """
    from ..config.loader import dump_yaml
    from ..config.schema import load_config
    from .partition_data import check_local_dataset

    experiment = load_config(file, overrides or ())
    check_local_dataset(experiment.dataset, experiment.model, experiment.partition, experiment.seed)
    typer.echo(dump_yaml(experiment.to_dict()).rstrip())
    typer.echo(f"# valid; id {experiment.id} before the corpus's content is known")


def run_experiments(
    experiments: list[ExperimentConfig],
    runtime: Runtime,
    flower_config: FlowerConfig | None = None,
    loggers: Iterable[str] = (),
    fresh: bool = False,
) -> list[Run]:
    """Each in turn, under one progress bar; what they share is loaded once. ``flower_config``: over Flower, on these terms.
    ``loggers``: by name, each fed as rounds come. ``fresh``: stored runs are moved aside and run anew."""
    from ..storage.loggers import create_backends, open_loggers

    create_backends(loggers, runtime.runs_dir)  # what is missing is told before anything is loaded
    from ..engine.cache import ResourceCache
    from ..engine.run import move_stored_run_aside, run_experiment
    from .console import RunProgressBar

    if flower_config:
        from ..flower import require_flower

        require_flower(simulation=True)
        from ..flower.launch import simulate

        def run_experiment(experiment: ExperimentConfig, stock: ResourceCache, watch: ProgressCallback) -> Run:  # type: ignore[misc]
            return simulate(experiment, stock, flower_config, watch)

    stock, runs = ResourceCache(runtime), []
    try:
        with RunProgressBar(sum(experiment.training.num_rounds for experiment in experiments)) as bar:
            for experiment in experiments:
                if fresh:
                    move_stored_run_aside(experiment, stock)
                with open_loggers(loggers, runtime.runs_dir) as feeds:
                    runs.append(
                        run_experiment(experiment, stock, chain_callbacks(bar.callback_for(experiment.name), feeds, runtime.runs_dir))
                    )
                    feeds.push(runs[-1])
                bar.advance(experiment.training.num_rounds)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise
    return runs


def chain_callbacks(on_progress: ProgressCallback, loggers: Loggers, runs_dir: Path) -> ProgressCallback:
    """The bar and the sinks are told of every round."""
    from ..storage import Run

    def tell(told: Progress) -> None:
        on_progress(told)
        loggers.push(Run(runs_dir, told.run_id))

    return tell


def example_experiments_dir() -> Path:
    """The experiments that come with fedrift: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


# The command that forks a run.

if TYPE_CHECKING:
    from ..diagnosis.fork import ForkReport

MAX_DOMAIN_COLUMNS = 6  # domains that a table has room for

ForkedRunName = Annotated[
    str, typer.Argument(help="A run that kept its updates: its id (its first letters do), or its folder.", metavar="RUN")
]
ForkOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="What to change: `exclude_clients=3`, `algorithm.aggregator=Median`, `training.client_optimizer.lr=0.1`, "
        "`training.max_grad_norm=0.5`.",
        metavar="[a.b=c]...",
    ),
]
FromRound = Annotated[
    int, typer.Option("--from-round", min=1, max=1_000_000, help="The first round that may differ; those before are the run's.")
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
    """Fork a run at a round with something changed, and show where the two part: causes, not correlations.

    `fedrift run my.yaml --save-updates`, and then `fedrift fork 5c35 --from-round 7 exclude_clients=3`

    `exclude_clients=3` (or `3,4`): what they send counts for nothing from that round on; up to `exclude_until=9`, if that is
    said. Anything of `algorithm` and `training` can be changed too: `algorithm.server_optimizer={type: Adam, lr: 0.01}` (another
    server optimiser), `algorithm.aggregator={type: NormClippedMean, max_norm: 0.5}` (changes no longer than that). A change on
    the server's side takes the clients' recorded updates in the first round; what comes after is trained anew. With nothing
    changed it is the same run, bit for bit.

    The fork is a run like any other, for `show`, `report`, `compare` and `diagnose`.
    """
    from ..diagnosis.across_seeds import to_json_value
    from ..diagnosis.fork import make_fork_config, report_fork
    from ..storage import Run, find_run, list_runs
    from ..storage.fork import ForkedRun

    origin = find_run(runs_dir, name)
    experiment = make_fork_config(origin, from_round, overrides or ())
    parting = ForkedRun.from_config(Run(origin.root, experiment.id), experiment)
    assert parting is not None
    run_experiments([experiment], make_runtime(origin.root, data_dir, device, threads))
    said = report_fork(parting, list_runs(origin.root))
    parting.run.write_json("fork", to_json_value(said.to_json()))
    if as_json:
        print_json(said.to_json())
    else:
        print_fork(said)


def print_fork(fork_report: ForkReport) -> None:
    """The table of rounds, the sentence, and what the detectors say of both."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from .console import format_number, format_signed

    screen = Console(highlight=False)
    screen.print(f"[bold]Run {fork_report.origin[:6]} from round {fork_report.round} on[/], {fork_report.change}", markup=True)
    names = sorted({domain for row in fork_report.rounds for domain in row.domains})
    shown = names if len(names) <= MAX_DOMAIN_COLUMNS else []
    table = Table(title="Fork less origin: loss in nats per token", box=SIMPLE)
    for column in ("round", "apart", "origin", "fork", "all", *shown):
        table.add_column(column, justify="right")
    for row in fork_report.rounds:
        table.add_row(
            str(row.round),
            format_number(row.distance),
            format_number(row.origin),
            format_number(row.fork),
            format_signed(row.difference),
            *(format_signed(row.domains[domain]) for domain in shown),
        )
    screen.print(table)
    round = (
        f"Round {fork_report.round} took the clients' recorded updates."
        if fork_report.has_reused_updates
        else f"The change touches what clients do, so round {fork_report.round} was trained anew too."
    )
    screen.print(f"{fork_report.sentence} {round}\n")
    held = (
        f"the IID baseline {fork_report.baseline[:6]}"
        if fork_report.baseline
        else "no IID baseline (`fedrift diagnose --iid-baseline` runs it)"
    )
    found = "Detectors on both" if fork_report.findings else "The detectors find nothing in either"
    screen.print(f"{found}, held against {held}{':' if fork_report.findings else '.'}")
    for each in fork_report.findings:
        screen.print(f"  {each.sentence}")
    screen.print(f"[dim]fork {fork_report.fork}[/]")


# The command that says where a round's time and memory go: profile.

if TYPE_CHECKING:
    from rich.console import Console

    from ..profiling import Profile

ProfiledRounds = Annotated[int, typer.Option("--rounds", min=1, max=1_000_000, help="Rounds that are measured, after one to warm up.")]
MIN_SHARE_SHOWN = 0.005  # of a run; what takes less is summed up on the screen
MIN_BUSY_SHARE = 0.8  # of the threads at work; below, something else may have had the processor
ProfileOutput = Annotated[Path | None, typer.Option("--output", help="Also write the figures to this file, as JSON.")]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", help="Write one whole round of training as a Chrome trace to this file (chrome://tracing, ui.perfetto.dev)."),
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
    """Say where a round's time and memory go, and what would make the run cheaper.

    `fedrift profile experiments/demo.yaml training.batch_size=8 --threads 1`

    It computes a few rounds of the experiment as they are, in a folder that is thrown away, then one of them again
    under torch's profiler: seconds by phase, by kind of operation, FLOPs beside the machine's own matrix products,
    bytes by what they are. What it says is of this machine as it is now: profile on an idle one. `--trace round.json` keeps
    every operation of a round for a viewer.
    """
    from ..config.schema import load_config
    from ..core.errors import UserError

    for path in (output, trace):
        if path is not None and not path.resolve().parent.is_dir():
            raise UserError(f"there is no folder {path.resolve().parent} to write {path.name} in: make it first")
    experiment = load_config(file, overrides or ())
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler would tell on the screen that it starts
    from rich.console import Console

    from ..engine.cache import ResourceCache
    from ..profiling import profile_run
    from ..storage.jsonl import to_json

    stock = ResourceCache(
        make_runtime(DEFAULT_RUNS_DIR, data_dir, device, threads, clients_per_pass, dtype, compiled, None, tf32, deterministic)
    )
    with Console(stderr=True).status("loading") as status:
        seen = profile_run(experiment, stock, rounds, trace, on_message=lambda told: show_status(status, told))
    text = to_json(seen.to_dict(), 2)
    if output is not None:
        output.write_text(text + "\n")
    if as_json:
        typer.echo(text)
    else:
        print_profile(Console(highlight=False), seen)
    for path in (output, trace):
        if path is not None:
            typer.echo(path.resolve(), err=True)


def show_status(status: Any, message: str) -> None:
    """On a terminal a line that changes, elsewhere a line each."""
    if status.console.is_terminal:
        status.update(message)
    else:
        status.console.print(message)


def print_profile(screen: Console, result: Profile) -> None:
    machine, compute, passes = result.machine, result.compute, result.passes
    screen.print(f"[bold]{result.experiment}[/]  on {machine['device']}, {machine['threads']} thread(s), {machine['dtype']}")
    screen.print(
        f"{compute['tokens_per_second']:,.0f} tokens a second in training; {compute['flops_per_token'] / 1e6:,.1f} "
        f"MFLOP a token, {compute['gflops']:,.1f} GFLOP/s, {compute['share_of_peak']:.0%} of what a large matrix "
        f"product reaches here ({machine['gemm_peak_gflops']:,.0f})"
    )
    if machine["device"] == "cpu" and machine["threads_at_work"] < MIN_BUSY_SHARE * machine["threads"]:
        screen.print(
            f"[yellow]Of the {machine['threads']} thread(s) {machine['threads_at_work']:.2f} were at work: where other "
            "programs run, seconds are longer than they need be, and the share of peak lower.[/]"
        )
    rows = [
        (phase["name"], f"{phase['seconds']:.3f}", f"{phase['times']:,} x", f"{phase['total']:,.1f}", f"{phase['share']:.1%}")
        for per in ("run", "round")
        for phase in result.phases
        if phase["per"] == per and phase["share"] >= MIN_SHARE_SHOWN
    ]
    small = [phase for phase in result.phases if phase["share"] < MIN_SHARE_SHOWN]
    rows.append(
        (f"{len(small)} smaller", "", "", f"{sum(phase['total'] for phase in small):,.1f}", f"{sum(phase['share'] for phase in small):.1%}")
    )
    print_profile_table(screen, "A run", ("", "seconds each", "times", "seconds", "share"), rows)
    training = result.training
    part = f" (the first {training['steps']} steps)" if training["steps"] else ""
    print_profile_table(
        screen,
        f"Inside training{part}",
        ("", "seconds", "share"),
        [(kind, f"{seconds:.3f}", f"{training['shares'][kind]:.1%}") for kind, seconds in training["seconds"].items()],
    )
    screen.print(f"[dim]under the profiler it took {training['slower_under_the_profiler']:.2f}x the time[/]")
    held = result.memory["bytes"]
    total = sum(each for each in held.values() if each == each)
    print_profile_table(
        screen, "Memory", ("", "MB", "share"), [(name, f"{size / 1e6:,.1f}", f"{size / total:.1%}") for name, size in held.items() if size]
    )
    screen.print(
        f"resident at most {result.memory['resident_peak'] / 1e6:,.0f} MB"
        + (f", on the device {result.memory['device_peak'] / 1e6:,.0f} MB" if result.memory["device_peak"] else "")
    )
    screen.print(f"{passes['clients_per_pass']} clients in a pass: {passes['why']}")
    screen.print(
        "; ".join(f"{trial['clients']} x batch {trial['batch']}: {trial['tokens_per_second']:,.0f} tokens/s" for trial in passes["trials"])
    )
    screen.print(f"a client sends {result.traffic['up'] / 1e3:,.1f} kB a round and receives {result.traffic['down'] / 1e3:,.1f} kB\n")
    for hint in result.hints:
        screen.print(f"- {hint}")


def print_profile_table(screen: Console, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=SIMPLE)
    for column in columns:
        made.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    screen.print(made)
