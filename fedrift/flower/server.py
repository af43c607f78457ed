"""The Flower ServerApp of fedrift, which runs an experiment with clients that it reaches through Flower's grid.

The round loop, the probes and the run directory are those of a run on one machine. An interrupted run is resumed by repeating the
same command.
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

from ..config.runtime import Runtime
from ..config.schema import ExperimentConfig
from ..engine.build import RunContext
from ..engine.cache import ResourceCache
from ..engine.callbacks import Progress
from ..engine.run import run_experiment
from ..storage import Run
from .client_pool import FlowerClientPool, NodeRegistry
from .config import FlowerConfig, arithmetic_options, read_bool, read_dtype, read_experiment_config, read_flower_config, read_threads


def make_client_pool(grid: Grid, flower_config: FlowerConfig, config: ExperimentConfig, context: RunContext, run: Run) -> FlowerClientPool:
    """Build the client pool that reaches the experiment's clients through a Flower grid.

    Each run directory has a random id, the run directory id. Clients ignore state that they stored for another id, e.g.
    for a run directory that was deleted.
    """
    if not (run.folder / "flower.json").exists():
        run.write_json("flower", {"run_directory_id": uuid4().hex})
    if config.algorithm.is_personalized and "client_state" not in config.algorithm.uploads:
        warning = "personalized models stay on the clients, so loss.personalized is not measured"
        if not any(event["message"] == warning for event in run.events()):
            run.log_event(0, "warning", warning)
    training, clustering = config.training, config.clustering
    return FlowerClientPool(
        context.simulator.size,
        grid,
        config.id,
        run.read_json("flower")["run_directory_id"],
        flower_config.min_results,
        flower_config.round_timeout_s,
        send_gradients=flower_config.send_gradients,
        plain_clients=flower_config.plain_clients,
        uniform_weights=training.client_weighting == "uniform",
        document_strategy=type(clustering).__name__ if clustering.needs_client_data else "",
        lr_at=lambda round: training.client_optimizer.lr * training.lr_factor(round),
        registry=NodeRegistry(join_timeout_s=flower_config.join_timeout_s),
    )


def run_server(grid: Grid, run_config: Mapping[str, Any]) -> Run:
    """Run the experiment of a Flower run's configuration, or resume it."""
    if run_config.get("cwd"):
        os.chdir(str(run_config["cwd"]))
    experiment = read_experiment_config(run_config)
    runtime = Runtime(
        runs_dir=Path(str(run_config["runs_dir"])),
        device=str(run_config.get("device") or "auto"),
        threads=read_threads(run_config),
        dtype=read_dtype(run_config),
        data_dir=Path(str(run_config["data_dir"])) if run_config.get("data_dir") else None,
        save_updates=read_bool(run_config, "save_updates"),
        **arithmetic_options(run_config),
    )
    flower_config = read_flower_config(run_config)
    return run_experiment(experiment, ResourceCache(runtime), print_progress, partial(make_client_pool, grid, flower_config))


def print_progress(progress: Progress) -> None:
    """Print one line per round for Flower's log."""
    print(f"round {progress.round} of {progress.num_rounds}, run {progress.run_id}, loss {progress.loss:.4f}", flush=True)


app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run the experiment when Flower starts the ServerApp."""
    run_server(grid, context.run_config)
