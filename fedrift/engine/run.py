"""Running an experiment: start a run, continue an interrupted run, or return a finished run."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ..config.runtime import NUMERIC_DEFAULTS, Runtime
from ..config.schema import ExperimentConfig, diff_stored_configs
from ..core.errors import UserError
from ..core.lazy_imports import torch
from ..core.records import Record
from ..core.types import FederatedState, RoundResult
from ..diagnosis.failures import find_exploding_updates
from ..models.trainable import Lora
from ..storage import Run, archive_run, check_environment, collect_environment
from .cache import ResourceCache, resolve_fingerprints
from .callbacks import Callback, ProgressCallback, ReportProgress, RoundEnd, RunBegin, SaveCheckpoint, SaveUpdates, last_value

if TYPE_CHECKING:
    from ..probes import MetricHistory
    from ..simulation import ClientPool
    from ..storage.checkpoint import Checkpoint
    from ..storage.jsonl import AssignmentLog
    from ..storage.updates import UpdateLog
    from .build import RunContext

STOPPED_EARLY = "stopped early"  # the kind of the event that ends a run before its last round
MIN_TRAINING_SECONDS = 10.0  # a run with less training time gets no warning about the time of its probes


ClientPoolFactory = Callable[[ExperimentConfig, "RunContext", Run], "ClientPool"]
"""Creates the clients of a run if they are not simulated on this machine."""


def run_experiment(
    config: ExperimentConfig,
    resources: ResourceCache | None = None,
    on_progress: ProgressCallback | None = None,
    pool_factory: ClientPoolFactory | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Run an experiment until its last round, or return the finished run if there is one.

    An interrupted run continues from its last checkpoint. Its results are bit for bit those of a run without interruption.

    Args:
        config: The configuration of the experiment.
        resources: Loaded models and data that several runs share, and the runtime options. Default: loaded for this run.
        on_progress: Called with the ``Progress`` at the start and after each round.
        pool_factory: Creates the clients if they are not simulated on this machine.
        callbacks: Called at the start, after each round and at the end. A callback can stop the run.

    Returns:
        The stored run.

    Raises:
        UserError: The configuration cannot be run, the folder of the run contains another experiment, or the finished run used other
            numeric options than requested.
    """
    resources = resources or ResourceCache()
    config = resolve_fingerprints(config, resources)
    run = Run(ensure_runs_dir(resources.runtime.runs_dir), config.id)
    check_stored_run(config, run, resources.runtime)
    if run.is_finished:
        if resources.runtime.dtype == "fastest":  # further runs of the same command are computed in the arithmetic of this one
            from ..models.arithmetic import ArithmeticChoice

            resources.share_arithmetic(lambda: ArithmeticChoice(run.environment.get("engine", {}).get("dtype", "float32")))
        resources.runtime.on_message(f"run {run.id[:6]}: {describe_finished_run(run)}; it is not computed again; --fresh repeats it")
        return run
    with run.lock():
        try:
            _execute_run(config, run, resources, [*([ReportProgress(on_progress)] if on_progress else []), *callbacks], pool_factory)
        except Exception as error:
            record_failure(run, error)
            raise
    return run


def archive_stored_run(config: ExperimentConfig, resources: ResourceCache) -> None:
    """Move the stored run of an experiment to another folder, if there is one.

    The experiment is prepared first, so that the stored run stays in place if the experiment cannot be run.

    Raises:
        UserError: The experiment cannot be run.
    """
    from .build import build_run
    from .fork import ForkedRun

    config = resolve_fingerprints(config, resources)
    run = Run(resources.runtime.runs_dir, config.id)
    if run.folder.exists():
        ForkedRun.from_config(run, config)
        build_run(config, resources)
        resources.runtime.on_message(f"run {run.id[:6]}: the stored run is now in {archive_run(run)}")


def check_stored_run(config: ExperimentConfig, run: Run, runtime: Runtime) -> None:
    """Check that a stored run matches the requested experiment and, if it is finished, the requested numeric options.

    Raises:
        UserError: The stored run differs.
    """
    if not run.is_finished and not (run.folder / "experiment.json").exists():
        return
    differences = diff_stored_configs(config.to_stored_dict(), run.read_config())
    if differences:
        further = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(
            f"{run.folder} contains another experiment than its name indicates: {differences[0]}{further}. Use --fresh to move that "
            "folder aside and run the requested experiment"
        )
    if run.is_finished:
        stored = {**NUMERIC_DEFAULTS, **run.environment.get("engine", {})}
        for name, value in runtime.explicit_numeric_options().items():
            if stored[name] != value:
                raise UserError(
                    f"run {run.id[:6]} is {describe_finished_run(run)}, with {name}={stored[name]}, but {name}={value} is requested. "
                    f"Use --fresh to run it again and keep the stored run, or omit {name} to use the stored run"
                )


def describe_finished_run(run: Run) -> str:
    """Describe when and how a finished run was computed: ``finished on 2026-11-29, float32 on cpu, fedrift 0.1.0``."""
    environment, finished, num_rounds = run.environment, run.summary(), run.config["training"]["num_rounds"]
    date, last_round = str(finished.get("date", "")), finished.get("rounds")
    engine = {**NUMERIC_DEFAULTS, **environment.get("engine", {})}
    options = [name for name in ("tf32", "compiled") if engine[name]] + ([] if engine["deterministic"] else ["not deterministic"])
    version = environment.get("packages", {}).get("fedrift") or "of an unknown version"
    day = f"finished on {date[:10]}" if date else "finished on an unknown date"
    numerics = f"{engine['dtype']} on {environment.get('device', 'an unknown device')}"
    stopped = [f"stopped early after round {last_round} of {num_rounds}"] if last_round is not None and last_round < num_rounds else []
    return ", ".join([day, *stopped, numerics, *options, f"fedrift {version}"])


def record_failure(run: Run, error: Exception) -> None:
    """Store the error and the traceback of a failed run. If that fails too, add a note to the original error.

    Args:
        run: The run.
        error: The error that stopped it. A ``UserError`` before the start of the run is not stored.
    """
    is_unexpected = not isinstance(error, UserError)
    if not is_unexpected and not (run.folder / "experiment.json").exists():
        return  # the run had not started
    try:
        last_round = int(run.trajectory().rounds.max(initial=0))
    except Exception:  # the error may come from the stored records
        last_round = 0
    try:
        run.mark_failed(last_round, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
    except Exception as storage_error:
        error.add_note(f"This error could not be stored in {run.folder / 'failed.json'}: {storage_error}")
    else:
        if is_unexpected:
            error.add_note(f"The traceback is stored in {run.folder / 'failed.json'}")


def ensure_runs_dir(runs_dir: Path) -> Path:
    """Create the folder of the runs if it does not exist.

    Raises:
        UserError: The folder cannot be created.
    """
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {runs_dir} for runs cannot be created: {error.strerror}; use another folder (--runs-dir)") from error
    return runs_dir


def _execute_run(
    config: ExperimentConfig, run: Run, resources: ResourceCache, callbacks: Sequence[Callback], pool_factory: ClientPoolFactory | None
) -> None:
    """Run the rounds that are missing in a stored run."""
    from ..probes import MetricHistory
    from ..storage.checkpoint import Checkpoint, check_history
    from ..storage.updates import UpdateLog
    from .build import build_run
    from .fork import ForkedRun
    from .loop import run_rounds

    training, algorithm, forked_run = config.training, config.algorithm, ForkedRun.from_config(run, config)
    check_history(run)
    if forked_run and not run.state_path.exists():
        forked_run.copy_history()
    context = build_run(
        config, resources, run.environment.get("engine"), has_client_state=pool_factory is None or "client_state" in algorithm.uploads
    )
    environment_changes = _store_settings(config, run, resources, context, is_simulated=pool_factory is None)
    checkpoint, updates, history = Checkpoint(run), UpdateLog(run), MetricHistory()
    state = checkpoint.load(context.initial_state)
    if state is None and forked_run:
        state = forked_run.load_origin_state(context)
        checkpoint.save(state)
    previous_records = run.restore_records(state.round if state else -1)
    if state is None:
        state, previous_records = context.initial_state, _start_run(run, context, checkpoint, history)
    # Records are stored before the checkpoint, so a crash between the two repeats the round. Once an update log exists, every further
    # round is added to it, because the log must not have gaps.
    records_updates = bool(resources.runtime.save_updates or updates.rounds or forked_run)
    storage_callbacks: list[Callback] = [
        *([SaveUpdates(updates)] if records_updates else []),
        SaveCheckpoint(checkpoint, resources.runtime.checkpoint_interval),
    ]
    context.clustering.pending_assignments.clear()  # a run that continues has stored its initial assignment already
    for change in environment_changes:
        run.log_event(state.round, "environment changed", change)
    history.add_records(previous_records)
    run_begin = RunBegin(run, state, previous_records, training.num_rounds)
    for callback in (*storage_callbacks, *callbacks):
        callback.on_run_begin(run_begin)
    del previous_records, run_begin  # the records of a long run take much memory

    client_pool: ClientPool = pool_factory(config, context, run) if pool_factory else context.simulator
    client_pool = context.clustering.wrap_client_pool(client_pool)
    was_stopped = any(event["kind"] == STOPPED_EARLY and event["round"] == state.round for event in run.events())
    loop = run_rounds(
        state,
        forked_run.wrap_client_pool(client_pool, context) if forked_run else client_pool,
        algorithm,
        num_rounds=state.round if was_stopped else training.num_rounds,
        cohort_size=context.cohort_size,
        seed=config.seed,
        recluster=context.clustering.recluster,
        sample_clients=context.clustering.sample_cohort,
    )
    for result, train_seconds in time_rounds(loop):
        start, state = perf_counter(), result.after
        records, probe_seconds = evaluate_round(result, context, history)
        seconds = {"train": train_seconds, "evaluate": perf_counter() - start}
        round_end = RoundEnd(run, result, records, training.num_rounds)
        _store_round(round_end, context, checkpoint, storage_callbacks, seconds, probe_seconds)
        stopped_by = [type(callback).__name__ for callback in callbacks if callback.on_round_end(round_end)]
        if stopped_by and state.round < training.num_rounds:
            message = f"stopped after round {state.round} of {training.num_rounds} by {', '.join(stopped_by)}"
            run.log_event(state.round, STOPPED_EARLY, message)  # before the checkpoint, so that a resumed run does not train on
            checkpoint.save(state)
            break
    finish_run(config, run, context, state, resources, has_client_state=pool_factory is None)
    for callback in callbacks:
        callback.on_run_end(run)


def _store_settings(config: ExperimentConfig, run: Run, resources: ResourceCache, context: RunContext, *, is_simulated: bool) -> list[str]:
    """Store the experiment and the environment of a run, and return how the environment differs from that of an earlier start."""
    run.write_json("experiment", {**config.to_stored_dict(), "id": config.id, "partition_table": context.partition_table})
    engine = {name: value for name, value in context.resume_options.items() if name != "backend"}
    if not is_simulated:
        engine["backend"] = "flower"  # the client states are stored on the nodes, so the run can only continue with them
    return check_environment(
        run,
        collect_environment(
            str(resources.runtime.resolve_device()), torch.get_num_threads(), engine, shares_passes=resources.coordinator is not None
        ),
    )


def _start_run(run: Run, context: RunContext, checkpoint: Checkpoint, history: MetricHistory) -> list[Record]:
    """Store round 0, which is the evaluation before training, and return its records."""
    from ..probes import to_records

    state = context.initial_state
    for warning in context.warnings:
        run.log_event(0, "warning", warning)
    if context.arithmetic:
        run.log_event(0, "arithmetic", context.arithmetic.describe())
    values, probe_seconds = context.evaluation.probe_suite.evaluate_initial(context.clustering.with_client_models(state), history)
    values |= context.clustering.measure_agreement(state)
    records = to_records(values, 0, [], context.simulator.size)
    run.append_records(records)
    record_clustering(run, context, checkpoint.assignments)
    run.log_timing(0, **prefix_probe_names(probe_seconds))
    checkpoint.save(state)
    return records


def _store_round(
    round_end: RoundEnd,
    context: RunContext,
    checkpoint: Checkpoint,
    storage_callbacks: Sequence[Callback],
    seconds: dict[str, float],
    probe_seconds: dict[str, float],
) -> None:
    """Store the events, records, clusters, updates, checkpoint and times of a round."""
    start, run, round = perf_counter(), round_end.run, round_end.round
    for client, kind, message in client_events(round_end.result):
        run.log_event(round, kind, message, client)
    for client, message in find_exploding_updates(round_end.records):
        run.log_event(round, "update exploded", message, client)
    run.append_records(round_end.records)
    record_clustering(run, context, checkpoint.assignments)
    for callback in storage_callbacks:
        callback.on_round_end(round_end)
    run.log_timing(round, **seconds, store=perf_counter() - start, **prefix_probe_names(probe_seconds))


def evaluate_round(result: RoundResult, context: RunContext, history: MetricHistory) -> tuple[list[Record], dict[str, float]]:
    """Evaluate a round with all probes.

    Args:
        result: The result of the round.
        context: The context of the run.
        history: The values of earlier rounds, to which the values of this round are added.

    Returns:
        The records of the round, and the seconds of each probe by name.
    """
    from ..probes import to_records

    values, probe_seconds = context.evaluation.probe_suite(context.clustering.probe_view(result), history)
    values |= context.clustering.measure_agreement(result.after)
    records = to_records(values, result.after.round, result.cohort.tolist(), context.simulator.size)
    history.add_records(records)
    return records, probe_seconds


def client_events(result: RoundResult) -> Iterator[tuple[int, str, str]]:
    """Yield the events of single clients in a round: client id, kind of the event, and message."""
    for row, client in enumerate(result.cohort.tolist()):
        note = result.update.notes[row] if result.update.notes else ""
        if result.update.failed[row]:
            yield (
                client,
                "client failed",
                note or "numbers of the update are not finite; it is not used, and the client state is unchanged",
            )
        elif note:
            yield client, "client", note


def record_clustering(run: Run, context: RunContext, assignments: AssignmentLog) -> None:
    """Store the cluster assignments that are not stored yet: an event for each, and the complete assignments in clustering.json."""
    for round, assignment in context.clustering.pending_assignments:
        assignments.add(assignment.to_json(round))
        run.log_event(round, "clustering", assignment.describe())
    context.clustering.pending_assignments.clear()


def prefix_probe_names(probe_seconds: dict[str, float]) -> dict[str, float]:
    """Return the seconds of each probe with the key ``probe.<name>``, as the timings of a run store them."""
    return {f"probe.{name}": seconds for name, seconds in probe_seconds.items()}


def finish_run(
    config: ExperimentConfig, run: Run, context: RunContext, state: FederatedState, resources: ResourceCache, has_client_state: bool
) -> None:
    """Evaluate the final models, save them, and mark the run as finished.

    Args:
        config: The configuration of the experiment.
        run: The run.
        context: The context of the run.
        state: The state after the last round.
        resources: The resources of the run.
        has_client_state: Whether the client states are available on this machine, which personalized models need.
    """
    from ..models.export import save_model, save_personal_adapters
    from ..probes import evaluate_personalized, overhead_summary, overhead_warning, to_records
    from ..storage.updates import UpdateLog

    start = perf_counter()
    records = run.records()
    # The records exist already if the run was interrupted after the final evaluation.
    final_records = [record for record in records if record.metric.startswith("final.")]
    if (losses := context.evaluation.final_losses) and not final_records:
        evaluated_state = context.clustering.with_client_models(state)
        values = losses.evaluate_final(evaluated_state) | evaluate_personalized(losses, evaluated_state)
        final_records = to_records(values, state.round, [], context.simulator.size)
        run.append_records(final_records)
        records += final_records
    save_model(run.folder / "model", context.model, config.trainable, config.model, state.server)
    algorithm, trainable = config.algorithm, config.trainable
    if has_client_state and algorithm.is_personalized and isinstance(trainable, Lora) and not state.server.merged_base:
        params = state.server.params.take(state.cluster_ids)
        save_personal_adapters(
            run.folder / "model" / "clients",
            context.model,
            trainable,
            config.model,
            algorithm.personalized_params(params, state.client_states.gather_all().to(params.device)),
        )
    run.log_timing(state.round, final=perf_counter() - start)
    timings = run.timings()
    seconds = {phase: sum(row.get(phase, 0.0) for row in timings) for phase in ("train", "evaluate", "store", "final")}
    tokens = sum(record.value for record in records if record.metric == "train.tokens" and not math.isnan(record.value))
    overhead = overhead_summary(timings, context.evaluation.probe_suite)
    warning = overhead_warning(overhead, seconds["train"], context.evaluation.probe_suite)
    if warning and seconds["train"] > MIN_TRAINING_SECONDS:
        run.log_event(state.round, "probes over budget", warning)
    run.mark_finished(
        {
            "rounds": state.round,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "loss": last_value(records, "loss"),
            "final_loss": last_value(final_records, "final.loss"),
            "seconds": seconds,
            "probe_overhead": overhead,
            "train_tokens": tokens,
            "warnings": context.warnings,
            **update_log_size(UpdateLog(run)),
        },
        records,
    )


def update_log_size(updates: UpdateLog) -> dict[str, dict[str, int]]:
    """Return the rounds and bytes of the update log; empty if there is no log."""
    rounds = updates.rounds
    return {"updates": {"rounds": len(rounds) - 1, "bytes": updates.num_bytes}} if rounds else {}


def time_rounds(loop: Iterator[RoundResult]) -> Iterator[tuple[RoundResult, float]]:
    """Yield the result of each round and its duration in seconds."""
    while True:
        start = perf_counter()
        result = next(loop, None)
        if result is None:
            return
        yield result, perf_counter() - start
