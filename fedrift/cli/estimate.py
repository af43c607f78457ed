"""The command ``estimate``, which says what a run needs before it starts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .options import (
    DEFAULT_RUNS_DIR,
    ClientsPerPass,
    DataDir,
    Device,
    Dtype,
    ExperimentFile,
    Json,
    Overrides,
    Threads,
    make_runtime,
    print_json,
)

Measure = Annotated[bool, typer.Option("--measure", help="Also run three rounds in a temporary folder, to estimate the time.")]


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
