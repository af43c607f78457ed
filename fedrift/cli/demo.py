"""`fedrift demo`: federated learning that breaks under style skew, its controls, and what repairs it.

The IID baseline removes the rewriting with the skew. The homogeneous control keeps it: every client writes in all styles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DEFAULT_RUNS_DIR, DataDir, Fresh, RunsDir, Threads, make_runtime

if TYPE_CHECKING:
    from ..config.schema import ExperimentConfig
    from ..storage import Run

IID, CONTROL, BROKEN = "FedAvg, IID baseline", "FedAvg, styles mixed", "FedAvg"
ALGORITHMS = ("FedProx, mu 0.1", "SCAFFOLD")
REPAIRS = ("Server learning rate 0.3", "Clustering by text")
FIGURE_NAME = "perplexity.svg"
REPAIRED_SHARE = 0.5  # a condition repairs the failure if it closes at least this share of the gap in the loss


def demo(
    output_dir: Annotated[Path, typer.Option("--output", help="The folder for the HTML page and the picture.")] = Path("demo-report"),
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    data_dir: DataDir = None,
    threads: Threads = None,
    fresh: Fresh = False,
) -> None:
    """Run the demo: federated fine-tuning breaks when each client has one writing style, and two repairs are tried.

    `fedrift demo` takes a few minutes on two CPU cores and needs neither a GPU nor a model hub.

    `fedrift demo --output my-report` writes the report to another folder.

    The command trains the built-in model `pocket` on BBC News under seven conditions, stores the runs in the runs directory, and prints a
    table of perplexities, one line per condition. It also writes an HTML report and a picture to the `--output` folder.
    """
    from .run import run_experiments

    typer.echo("BBC News on the language model `pocket`: six clients, two per writing style; one client trains per round.")
    conditions = make_conditions()
    stored = run_experiments(list(conditions.values()), make_runtime(runs_dir, data_dir, "cpu", threads), fresh=fresh)
    runs = dict(zip(conditions, stored, strict=True))
    outcomes = {name: summarize_outcome(run) for name, run in runs.items()}
    print_outcomes(outcomes)
    from rich.console import Console

    from ..report import write_report
    from .console import run_view

    for sentence in describe_outcomes(outcomes):
        Console(highlight=False).print(sentence, markup=False)  # breaks lines between words

    views = [run_view(run, runs[IID])._replace(name=name) for name, run in runs.items() if name != IID]
    page = write_report(views, output_dir)
    figure = draw_outcomes(outcomes, output_dir / FIGURE_NAME)
    typer.echo(f"\nruns    {runs_dir.resolve()}\nreport  {page.resolve()}\npicture {figure.resolve()}")


def make_conditions() -> dict[str, ExperimentConfig]:
    """Return the experiments of the demo by the name of their condition, the two controls first."""
    from ..api import load_config
    from ..config.loader.yaml_text import find_ready

    def make(*overrides: str) -> ExperimentConfig:
        return load_config(find_ready(Path("demo"), "experiments"), overrides)

    return {
        IID: make().iid_baseline(),
        CONTROL: make("partition.homogeneous=true"),
        BROKEN: make(),
        ALGORITHMS[0]: make("algorithm={type: FedProx, mu: 0.1}"),
        ALGORITHMS[1]: make("algorithm=Scaffold"),
        REPAIRS[0]: make("algorithm.server_optimizer.lr=0.3"),
        REPAIRS[1]: make("clustering={type: TextClustering, encoder: lsa, num_clusters: 3}"),
    }


@dataclass(frozen=True)
class Outcome:
    """The held-out loss of one condition, in nats per token."""

    curve: list[float]  # on the original text, per evaluation, from round 0 (untrained) on
    final_loss: float  # on the original text, mean of the last five evaluations
    own_loss: float  # on each client's own text, as the client writes it, under the model that it uses; the same mean

    @property
    def final_perplexity(self) -> float:
        """Return the perplexity of the final loss."""
        return perplexity(self.final_loss)


def perplexity(loss: float) -> float:
    """Return e to the power of a loss; infinity where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def summarize_outcome(run: Run) -> Outcome:
    """Read the outcome of a finished run."""
    trajectory = run.trajectory()
    curve, own = trajectory.curve("loss").tolist(), trajectory.client_table("loss").mean(axis=1).tolist()
    last, own_last = curve[1:][-5:], own[1:][-5:]
    return Outcome(curve, sum(last) / len(last), sum(own_last) / len(own_last))


def repaired_share(outcome: Outcome, outcomes: dict[str, Outcome]) -> float:
    """Return the share of the difference in loss between FedAvg and the homogeneous control that a condition repairs; NaN without one."""
    gap = outcomes[BROKEN].final_loss - outcomes[CONTROL].final_loss
    return (outcomes[BROKEN].final_loss - outcome.final_loss) / gap if gap > 0 else math.nan


def describe_share(share: float) -> str:
    """Return the repaired share, in words where a percentage would lie outside 0 to 100; "" if there is nothing to repair."""
    if math.isnan(share):
        return ""
    return "all" if share >= 1 else "none" if share <= 0 else f"{100 * share:.0f} %"


def describe_final_rounds(outcomes: dict[str, Outcome]) -> str:
    """Return the rounds of the last five evaluations, as in ``2 to 6``."""
    last = len(outcomes[BROKEN].curve) - 1
    return f"{max(1, last - 4)} to {last}"


def print_outcomes(outcomes: dict[str, Outcome]) -> None:
    """Print one row per condition: the perplexity in each round as a curve, its worst and final value, and the final value on own text."""
    from rich.console import Console

    from .console import sparkline
    from .tables import print_table

    highest = max(loss for outcome in outcomes.values() for loss in outcome.curve if math.isfinite(loss))
    lowest = min(loss for outcome in outcomes.values() for loss in outcome.curve if math.isfinite(loss))
    console, numbers = Console(highlight=False), ("worst", "final", "repaired", "own text")
    rows = [
        (
            name,
            sparkline(outcome.curve, lowest, highest),
            f"{perplexity(max(outcome.curve[1:])):.0f}",
            f"{outcome.final_perplexity:.1f}",
            describe_share(math.nan if name in (IID, CONTROL, BROKEN) else repaired_share(outcome, outcomes)),
            "" if name in (IID, CONTROL) else f"{perplexity(outcome.own_loss):.1f}",  # the controls have another own text
        )
        for name, outcome in outcomes.items()
    ]
    title = "Perplexity of held-out text; curves from the untrained model, one scale"
    print_table(console, ("condition", "curve", *numbers), rows, numbers, title)
    console.print(
        f"final: of the mean loss over rounds {describe_final_rounds(outcomes)}; styles mixed: the homogeneous control; repaired: the share"
        " of the difference in loss between FedAvg and this control"
    )


def draw_outcomes(outcomes: dict[str, Outcome], path: Path) -> Path:
    """Draw the perplexity of FedAvg, its two controls and the first repair against the round, and return the path of the file."""
    from ..report.data import IID_BASELINE, RUN
    from ..report.figures import curves_figure, save_figure

    names = [IID, CONTROL, BROKEN, REPAIRS[0]]
    rows = [
        {"run": name, "which": IID_BASELINE if name == IID else RUN, "round": round, "value": perplexity(loss)}
        for name in names
        for round, loss in enumerate(outcomes[name].curve)
        if math.isfinite(loss)
    ]
    title = "Perplexity of held-out text, one style per client, one client per round"
    return save_figure(curves_figure(rows, names, title, is_loss=False), path)


def describe_repair(name: str, outcomes: dict[str, Outcome]) -> str:
    """Return how much a condition repairs that repairs at least half of the difference to the homogeneous control."""
    final, baseline = outcomes[name].final_loss, outcomes[IID].final_loss
    if repaired_share(outcomes[name], outcomes) < 1:
        return f"{name} repairs at least half of the difference to the mixed styles."
    where = "below the mixed styles" if final > baseline else "below the mixed styles and the IID baseline"
    return f"{name} repairs all of the difference and ends {where}."


def describe_outcomes(outcomes: dict[str, Outcome]) -> list[str]:
    """Return the results in words: what broke, beside which baseline, what repaired it, and what one seed cannot show."""
    broken, control = outcomes[BROKEN], outcomes[CONTROL]
    untrained, worst = perplexity(broken.curve[0]), perplexity(max(broken.curve[1:]))
    side = "above" if broken.final_loss > broken.curve[0] else "not above"
    sentences = [
        f"One writing style per client, one client per round: over rounds {describe_final_rounds(outcomes)} FedAvg has perplexity "
        f"{broken.final_perplexity:.0f}, {side} the untrained model ({untrained:.0f}). The worst round has {worst:.0f}, the last "
        f"{perplexity(broken.curve[-1]):.0f}.",
        f"The same texts with the styles mixed over all clients: {control.final_perplexity:.0f}. The original texts, partitioned IID: "
        f"{outcomes[IID].final_perplexity:.0f}.",
    ]
    for names, label in ((ALGORITHMS, "other algorithms"), (REPAIRS, "repairs")):
        repaired = [name for name in names if repaired_share(outcomes[name], outcomes) >= REPAIRED_SHARE]
        results = ", ".join(f"{name}: {outcomes[name].final_perplexity:.0f}" for name in names)
        verdict = (
            " ".join(describe_repair(name, outcomes) for name in repaired) or "None repairs half of the difference to the mixed styles."
        )
        sentences.append(f"With {label}: {results}. {verdict}")
    best = min(outcomes, key=lambda name: math.inf if name in (IID, CONTROL) else outcomes[name].own_loss)
    sentences.append(
        f"On each client's own text FedAvg has {perplexity(broken.own_loss):.0f}. The lowest of all algorithms and repairs there is "
        f"{best}: {perplexity(outcomes[best].own_loss):.0f}."
    )
    return [
        *sentences,
        "This is one seed: it shows what can happen, not how often. `fedrift study` repeats an experiment over paired seeds.",
    ]
