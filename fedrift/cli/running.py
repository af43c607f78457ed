"""Commands that compute: run, demo, validate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .deploying import apart
from .options import (
    ROOT,
    Canary,
    Compiled,
    Data,
    Deterministic,
    Device,
    Dtype,
    File,
    Fresh,
    KeepUpdates,
    Micro,
    Overrides,
    Root,
    Tf32,
    Threads,
    runtime,
)

if TYPE_CHECKING:
    from ..experiment import Experiment
    from ..flower.terms import Terms
    from ..run import Progress, Watch
    from ..runtime import Runtime
    from ..sinks import Feeds
    from ..store import Run

Sinks = Annotated[list[str] | None, typer.Option(
    "--sink", help="Also send its numbers to tensorboard, mlflow, wandb or trackio; may be given more than once.")]
Twin = Annotated[bool, typer.Option("--twin/--no-twin", help="Run its IID twin too, and compare.")]


def run(file: File, overrides: Overrides = None, twin: Twin = False, root: Root = ROOT, data: Data = None,
        device: Device = "auto", threads: Threads = None, micro: Micro = None, dtype: Dtype = "auto",
        compiled: Compiled = False, canary: Canary = None, tf32: Tf32 = False, deterministic: Deterministic = True,
        sink: Sinks = None, keep_updates: KeepUpdates = False, fresh: Fresh = False) -> None:
    """Run an experiment, or go on with it; a finished one is only shown, unless `--fresh` asks to run it anew.

    `fedrift run experiments/demo.yaml algorithm=Scaffold partition.severity=0.5 seed=3 --twin`

    `fleet=flower` runs the same experiment over Flower's simulation; `fedrift deploy` over real machines.

    `--sink tensorboard` lets it be watched there too; `fedrift watch` needs nothing.

    `--keep-updates` records what clients send, so that `fedrift replay` can fork the run at any round.
    """
    from ..experiment import load_experiment
    from ..experiment import twin as iid

    rest, fleet, terms = apart(overrides)
    experiment = load_experiment(file, rest)
    wanted = [experiment, iid(experiment)] if twin else [experiment]
    where = runtime(root, data, device, threads, micro, dtype, compiled, canary, tf32, deterministic,
                    keep_updates)
    runs = carry_out_all(wanted, where, terms if fleet == "flower" else None, sink or (), fresh)
    from .screen import summary, verdicts

    if twin:
        verdicts([(runs[0], runs[1])])
    else:
        summary(runs[0])


def demo(out: Annotated[Path, typer.Option("--out", help="Where the HTML page goes.")] = Path("demo-report"),
         root: Root = ROOT, data: Data = None, threads: Threads = None, fresh: Fresh = False) -> None:
    """The whole way: FedAvg, FedProx and SCAFFOLD on BBC News, one topic a client, each beside its IID twin."""
    from .. import algorithms
    from ..experiment import edit, load_experiment
    from ..experiment import twin as iid

    base = load_experiment(experiments() / "demo.yaml")
    skewed = [edit(base, {"algorithm": algorithm})
              for algorithm in (algorithms.FedAvg(), algorithms.FedProx(mu=0.1), algorithms.Scaffold())]
    typer.echo("BBC News on the language model `pocket`: one topic a client, and the same documents dealt IID.")
    runs = carry_out_all([one for each in skewed for one in (each, iid(each))], runtime(root, data, "cpu", threads), fresh=fresh)
    from ..report import write_report
    from .screen import exhibit, verdicts

    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    verdicts(pairs)
    page = write_report([exhibit(run, twin) for run, twin in pairs], out)
    typer.echo(f"runs   {root.resolve()}\nreport {page.resolve()}")


def validate(file: File, overrides: Overrides = None) -> None:
    """Check an experiment without running it; prints it whole, with all defaults, and its id.

    Where the corpus is a file on this machine, it is read and dealt.
    """
    from ..config import dump_yaml
    from ..experiment import load_experiment
    from .deals import check_file

    experiment = load_experiment(file, overrides or ())
    check_file(experiment.corpus, experiment.model, experiment.partition, experiment.seed)
    typer.echo(dump_yaml(experiment.written()).rstrip())
    typer.echo(f"# valid; id {experiment.id} before the corpus's content is known")


def carry_out_all(experiments: list[Experiment], where: Runtime, terms: Terms | None = None,
                  sinks: Iterable[str] = (), fresh: bool = False) -> list[Run]:
    """Each in turn, under one progress bar; what they share is loaded once. ``terms``: over Flower, on these. ``sinks``: by
    name, each fed as rounds come. ``fresh``: stored runs are moved aside and run anew."""
    from ..sinks import fed, ready

    ready(sinks, where.root)  # what is missing is told before anything is loaded
    from ..run import carry_out, replace_stored
    from ..stock import Stock
    from .screen import Bar

    if terms:
        from ..flower import wanted

        wanted(simulated=True)
        from ..flower.launch import simulate

        def carry_out(experiment: Experiment, stock: Stock, watch: Watch) -> Run:  # type: ignore[misc]
            return simulate(experiment, stock, terms, watch)
    stock, runs = Stock(where), []
    try:
        with Bar(sum(experiment.plan.rounds for experiment in experiments)) as bar:
            for experiment in experiments:
                if fresh:
                    replace_stored(experiment, stock)
                with fed(sinks, where.root) as feeds:
                    runs.append(carry_out(experiment, stock, both(bar.of(experiment.name), feeds, where.root)))
                    feeds.look(runs[-1])
                bar.over(experiment.plan.rounds)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise
    return runs


def both(watch: Watch, feeds: Feeds, root: Path) -> Watch:
    """The bar and the sinks are told of every round."""
    from ..store import Run

    def tell(told: Progress) -> None:
        watch(told)
        feeds.look(Run(root, told.run))

    return tell


def experiments() -> Path:
    """The experiments that come with fedrift: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


COMMANDS = [run, demo, validate]
