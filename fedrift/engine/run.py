"""Carrying out an experiment: begin it, resume it, or find it finished."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import torch

from ..config.runtime import NUMERIC_DEFAULTS, Runtime
from ..config.schema import ExperimentConfig, diff_stored_configs
from ..core.errors import UserError
from ..core.records import Record
from ..core.types import FederatedState, RoundResult
from ..diagnosis.failures import find_exploding_updates
from ..models.export import save_model, save_personal_adapters
from ..models.trainable import Lora
from ..probes import MetricHistory, evaluate_personalized, overhead_summary, overhead_warning, to_records
from ..simulation import ClientPool
from ..storage import Run, check_environment, collect_environment, move_aside
from ..storage.fork import Checkpoint, ForkedRun, UpdateLog, check_history
from .build import RunContext, build_run, resolve_fingerprints
from .cache import ResourceCache
from .callbacks import Callback, ProgressCallback, ReportProgress, RoundEnd, RunBegin, SaveCheckpoint, SaveUpdates, last_value
from .loop import run_rounds

MIN_TRAINING_SECONDS = 10.0  # seconds of training; below, nothing is worth saving


ClientPoolFactory = Callable[[ExperimentConfig, RunContext, Run], ClientPool]
"""Who trains, where that is not this machine: the fleet in place of the setting's own."""


def run_experiment(
    config: ExperimentConfig,
    resources: ResourceCache | None = None,
    on_progress: ProgressCallback | None = None,
    pool_factory: ClientPoolFactory | None = None,
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Run an experiment to its end, or return the finished run.

    An interrupted run continues from its last stored round, bit for bit as if it had not been interrupted.

    Args:
        config: The experiment.
        resources: Loaded models and data that runs share, and the runtime. Default: loaded for this run.
        on_progress: Called with the ``Progress`` at the begin and after each round.
        pool_factory: Makes the clients that train, where they are not simulated on this machine.
        fresh: Whether a stored run is moved aside and run again.
        callbacks: Called at the begin, after each round and at the end; one of them may stop the run.

    Returns:
        The stored run.

    Raises:
        UserError: The stored run of this id is another experiment's, or finished with other arithmetic than requested.
    """
    resources = resources or ResourceCache()
    config = resolve_fingerprints(config, resources)
    run = Run(ensure_runs_dir(resources.runtime.runs_dir), config.id)
    if fresh:
        move_stored_run_aside(config, resources)
    check_stored_run(config, run, resources.runtime)
    if run.is_finished:
        resources.runtime.on_message(f"run {run.id[:6]}: {describe_finished_run(run)}: not run again; --fresh runs it")
        return run
    with run.lock():
        try:
            _execute_run(config, run, resources, [*([ReportProgress(on_progress)] if on_progress else []), *callbacks], pool_factory)
        except Exception as error:
            record_failure(run, error)
            raise
    return run


def move_stored_run_aside(config: ExperimentConfig, resources: ResourceCache) -> None:
    """Move the stored run of an experiment aside, if there is one; first the experiment is prepared, so that what cannot be run
    moves nothing."""
    config = resolve_fingerprints(config, resources)
    run = Run(resources.runtime.runs_dir, config.id)
    if run.folder.exists():
        ForkedRun.from_config(run, config)
        build_run(config, resources)
        resources.runtime.on_message(f"run {run.id[:6]}: the stored run is now in {move_aside(run)}")


def check_stored_run(config: ExperimentConfig, run: Run, runtime: Runtime) -> None:
    """Raise UserError unless a stored run answers what is asked: the same experiment and, if it is finished, in an arithmetic
    that is not ruled out."""
    if not run.is_finished and not (run.folder / "experiment.json").exists():
        return
    unlike = diff_stored_configs(config.to_stored_dict(), run.config)
    if unlike:
        more = f" (and {len(unlike) - 1} more)" if len(unlike) > 1 else ""
        raise UserError(
            f"{run.folder} holds another experiment than its name says: {unlike[0]}{more}. --fresh moves that folder "
            "aside and runs what is asked"
        )
    if run.is_finished:
        stored = {**NUMERIC_DEFAULTS, **run.environment.get("engine", {})}
        for name, choice in runtime.explicit_numeric_options().items():
            if stored[name] != choice:
                raise UserError(
                    f"run {run.id[:6]} is {describe_finished_run(run)}, with {name}={stored[name]}, and {name}={choice} "
                    f"is asked: --fresh runs it anew and keeps the old run; without {name} the old one is shown"
                )


def describe_finished_run(run: Run) -> str:
    """``finished on 2026-11-29, float32 on cpu, fedrift 0.1.0``: when, and with what, a run was made."""
    environment, date = run.environment, str(run.read_json("finished").get("date", ""))
    engine = {**NUMERIC_DEFAULTS, **environment.get("engine", {})}
    rest = [name for name in ("tf32", "compiled") if engine[name]] + ([] if engine["deterministic"] else ["not deterministic"])
    version = environment.get("packages", {}).get("fedrift") or "of an unknown version"
    when = f"finished on {date[:10]}" if date else "finished on a day that was not stored"
    how = f"{engine['dtype']} on {environment.get('device', 'an unknown device')}"
    return ", ".join([when, how, *rest, f"fedrift {version}"])


def record_failure(run: Run, error: Exception) -> None:
    """Store why a run stopped, with the traceback. What goes wrong in that is added to the error and hides nothing."""
    unforeseen = not isinstance(error, UserError)
    if not unforeseen and not (run.folder / "experiment.json").exists():
        return  # nothing has begun that could have failed
    try:
        reached = int(run.trajectory().rounds.max(initial=0))
    except Exception:  # its rows may be what is wrong
        reached = 0
    try:
        run.mark_failed(reached, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
    except Exception as second:
        error.add_note(f"This could not be stored in {run.folder / 'failed.json'}: {second}")
    else:
        if unforeseen:
            error.add_note(f"The traceback is stored in {run.folder / 'failed.json'}")


def ensure_runs_dir(runs_dir: Path) -> Path:
    """The folder of the runs, made if it is not there."""
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs cannot be kept in {runs_dir}: {error.strerror}; name another folder (--runs-dir)") from error
    return runs_dir


def _execute_run(
    config: ExperimentConfig, run: Run, resources: ResourceCache, callbacks: Sequence[Callback], pool_factory: ClientPoolFactory | None
) -> None:
    plan, algorithm, parting = config.training, config.algorithm, ForkedRun.from_config(run, config)
    check_history(run)
    if parting and not run.state_path.exists():
        parting.copy_history()
    setting = build_run(
        config, resources, run.environment.get("engine"), has_client_state=pool_factory is None or "client_state" in algorithm.uploads
    )
    run.write_json("experiment", {**config.to_stored_dict(), "id": config.id, "partition_table": setting.partition_table})
    engine = {name: choice for name, choice in setting.resume_options.items() if name != "backend"}
    if pool_factory:
        engine["backend"] = "flower"  # half of what such a run remembers is elsewhere: it cannot go on without
    changed = check_environment(
        run,
        collect_environment(
            str(resources.runtime.resolve_device()), torch.get_num_threads(), engine, shares_passes=resources.coordinator is not None
        ),
    )
    checkpoint, updates = Checkpoint(run), UpdateLog(run)
    state = checkpoint.load(setting.initial_state)
    if state is None and parting:
        state = parting.load_origin_state(setting)
        checkpoint.save(state)
    run.truncate_after(state.round if state else -1)
    past = MetricHistory()
    if state is None:
        state = setting.initial_state
        for caveat in setting.caveats:
            run.log_event(0, "caveat", caveat)
        reading, looks = setting.probe_suite.evaluate_initial(setting.clustering.with_client_models(state), past)
        reading |= setting.cluster_probe.evaluate_state(state) if setting.cluster_probe else {}
        run.append_records(to_records(reading, 0, [], setting.simulator.size))
        record_clustering(run, setting)
        run.log_timing(0, **prefix_probe_names(looks))
        checkpoint.save(state)
    # Rows are stored first and the state second: a crash between them repeats the round. A log of updates that was begun has no gaps.
    recording = bool(resources.runtime.save_updates or updates.rounds or parting)
    storing: list[Callback] = [
        *([SaveUpdates(updates)] if recording else []),
        SaveCheckpoint(checkpoint, resources.runtime.checkpoint_interval),
    ]
    setting.clustering.pending_assignments.clear()  # what a run that resumes decided at its beginning is written down
    for difference in changed:
        run.log_event(state.round, "resumed elsewhere", difference)
    earlier = run.records()
    past.add_records(earlier)
    begin = RunBegin(run, state, earlier, plan.num_rounds)
    for callback in (*storing, *callbacks):
        callback.on_run_begin(begin)
    del earlier, begin

    fleet = pool_factory(config, setting, run) if pool_factory else setting.simulator
    work = setting.clustering
    hands = parting.wrap_client_pool(work.wrap_client_pool(fleet), setting) if parting else work.wrap_client_pool(fleet)
    loop = run_rounds(
        state,
        hands,
        algorithm,
        num_rounds=plan.num_rounds,
        cohort_size=setting.cohort_size,
        seed=config.seed,
        recluster=work.recluster,
        sample_clients=work.sample_cohort,
    )
    for done, spent in time_rounds(loop):
        begun = perf_counter()
        rows, looks = evaluate_round(done, setting, past)
        measured = perf_counter()
        state = done.after
        for client, kind, why in client_events(done):
            run.log_event(state.round, kind, why, client)
        for client, why in find_exploding_updates(rows):
            run.log_event(state.round, "update exploded", why, client)
        run.append_records(rows)
        record_clustering(run, setting)
        event = RoundEnd(run, done, rows, plan.num_rounds)
        for callback in storing:
            callback.on_round_end(event)
        run.log_timing(state.round, train=spent, evaluate=measured - begun, store=perf_counter() - measured, **prefix_probe_names(looks))
        stopping = [type(callback).__name__ for callback in callbacks if callback.on_round_end(event)]
        if stopping and state.round < plan.num_rounds:
            checkpoint.save(state)
            run.log_event(state.round, "stopped early", f"stopped after round {state.round} of {plan.num_rounds} by {', '.join(stopping)}")
            break
    finish_run(config, run, setting, state, resources, has_client_state=pool_factory is None)
    for callback in callbacks:
        callback.on_run_end(run)


def evaluate_round(result: RoundResult, context: RunContext, history: MetricHistory) -> tuple[list[Record], dict[str, float]]:
    """What the panel sees in a round, noted in the ``past`` of the next, and the seconds of each look."""
    reading, looks = context.probe_suite(context.clustering.probe_view(result), history)
    reading |= context.cluster_probe(result) if context.cluster_probe else {}
    rows = to_records(reading, result.after.round, result.cohort.tolist(), context.simulator.size)
    history.add_records(rows)
    return rows, looks


def client_events(result: RoundResult) -> Iterator[tuple[int, str, str]]:
    """What is to be said of single clients: number, kind, and in words."""
    for row, client in enumerate(result.cohort.tolist()):
        why = result.report.notes[row] if result.report.notes else ""
        if result.report.failed[row]:
            yield client, "client failed", why or "non-finite numbers: left out of the mean, its memory kept"
        elif why:
            yield client, "client", why


def record_clustering(run: Run, context: RunContext) -> None:
    """Write down what the clustering has decided since: an event each, and the whole of it in clustering.json."""
    for round, decision in context.clustering.pending_assignments:
        run.write_json("clustering", [*(said for said in run.cluster_assignments() if said["round"] < round), decision.to_json(round)])
        run.log_event(round, "clustering", decision.describe())
    context.clustering.pending_assignments.clear()


def prefix_probe_names(probe_seconds: dict[str, float]) -> dict[str, float]:
    """The seconds of each look, as the timings call them."""
    return {f"probe.{name}": seconds for name, seconds in probe_seconds.items()}


def finish_run(
    config: ExperimentConfig, run: Run, context: RunContext, state: FederatedState, resources: ResourceCache, has_client_state: bool
) -> None:
    """The larger evaluation, the models, and the word that the run is over. ``here``: whether clients' memories are."""
    begun = perf_counter()
    records = run.records()
    rows = [row for row in records if row.metric.startswith("final.")]  # there already if it was killed below
    if context.final_losses and not rows:
        used = context.clustering.with_client_models(state)
        reading = context.final_losses.evaluate_final(used) | evaluate_personalized(context.final_losses, used)
        rows = to_records(reading, state.round, [], context.simulator.size)
        run.append_records(rows)
    save_model(run.folder / "model", context.model, config.trainable, config.model, state.server)
    algorithm, tune = config.algorithm, config.trainable
    if has_client_state and algorithm.is_personalized and isinstance(tune, Lora) and not state.server.merged_base:
        own = state.server.params.take(state.cluster_ids)
        save_personal_adapters(
            run.folder / "model" / "clients",
            context.model,
            tune,
            config.model,
            algorithm.personalized_params(own, state.client_states.gather_all().to(next(iter(own.values())).device)),
        )
    run.log_timing(state.round, final=perf_counter() - begun)
    timings = run.timings()
    spent = {phase: sum(row.get(phase, 0.0) for row in timings) for phase in ("train", "evaluate", "store", "final")}
    tokens = sum(row.value for row in records if row.metric == "train.tokens")
    overhead = overhead_summary(timings, context.probe_suite)
    warning = overhead_warning(overhead, spent["train"], context.probe_suite)
    if warning and spent["train"] > MIN_TRAINING_SECONDS:
        run.log_event(state.round, "probes over budget", warning)
    run.mark_finished(
        {
            "rounds": state.round,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "loss": last_value(records, "loss"),
            "final_loss": last_value(rows, "final.loss"),
            "seconds": spent,
            "probe_overhead": overhead,
            "train_tokens": tokens,
            "caveats": context.caveats,
            **update_log_size(UpdateLog(run)),
        }
    )


def update_log_size(updates: UpdateLog) -> dict[str, dict[str, int]]:
    """How large the record of the clients' updates is, where there is one."""
    return {"updates": {"rounds": len(updates.rounds) - 1, "bytes": updates.num_bytes}} if updates.rounds else {}


def time_rounds(loop: Iterator[RoundResult]) -> Iterator[tuple[RoundResult, float]]:
    """The rounds, and the seconds that each took."""
    while True:
        begun = perf_counter()
        done = next(loop, None)
        if done is None:
            return
        yield done, perf_counter() - begun
