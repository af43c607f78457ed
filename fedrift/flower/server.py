"""The server half: a Flower ServerApp that carries the experiment out, as on one machine, with a fleet behind its grid.

Same rounds, same probes, same folder of the run: killed at any moment, the same command goes on with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..experiment import Experiment
from ..run import Progress, carry_out
from ..runtime import Runtime
from ..setting import Setting
from ..stock import Stock
from ..store import Run
from .fleet import FlowerFleet
from .roll import Roll
from .terms import Terms, arithmetic, read_dtype, read_experiment, read_terms, read_threads, read_truth


def recruit(grid: Grid, terms: Terms, experiment: Experiment, setting: Setting, run: Run) -> FlowerFleet:
    """The experiment's fleet behind a grid. What clients kept for an earlier life of the run's folder does not count."""
    if not (run.folder / "flower.json").exists():
        run.write_json("flower", {"life": uuid4().hex})
    if experiment.algorithm.personal and "memory" not in experiment.algorithm.tells:
        caveat = "what clients wear stays with them: there is no loss.worn"
        if not any(event["message"] == caveat for event in run.events()):
            run.event(0, "caveat", caveat)
    plan, mitigation = experiment.plan, experiment.mitigation
    return FlowerFleet(setting.fleet.size, grid, experiment.id, run.read_json("flower")["life"], terms.least, terms.patience,
                       gradients=terms.gradients, plain=terms.plain,
                       reader=type(mitigation).__name__ if mitigation.reads else "",
                       lr=lambda round: plan.optimizer.lr * plan.factor(round),
                       roll=Roll(wait=terms.join))


def begin(grid: Grid, config: Mapping[str, Any]) -> Run:
    """The run that a Flower run's configuration says."""
    if config.get("cwd"):
        os.chdir(str(config["cwd"]))
    experiment = read_experiment(config)
    runtime = Runtime(root=Path(str(config["runs"])), device=str(config.get("device") or "auto"),
                      threads=read_threads(config), dtype=read_dtype(config),
                      data=Path(str(config["corpora"])) if config.get("corpora") else None,
                      keep_updates=read_truth(config, "keep_updates"), **arithmetic(config))
    terms = read_terms(config)
    return carry_out(experiment, Stock(runtime), told, partial(recruit, grid, terms))


def told(progress: Progress) -> None:
    """A line a round, for Flower's log."""
    print(f"round {progress.round} of {progress.until}, run {progress.run}, loss {progress.loss:.4f}", flush=True)


app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    begin(grid, context.run_config)


__all__ = ["Terms", "app", "begin", "recruit"]
