"""Profiler of an experiment: measured rounds, replays of one round under torch's profiler and counters, and hints that save time.

Each hint follows from the measurements of the profile; no hint is a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config.runtime import Runtime
from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..core.types import CohortUpdate, FederatedState, RoundResult
from ..engine.build import RunContext, build_run, timing_step
from ..engine.cache import ResourceCache, resolve_fingerprints
from ..engine.loop import run_rounds
from ..engine.run import evaluate_round, finish_run, prefix_probe_names, record_clustering
from ..probes import MetricHistory, ScheduledProbe, to_records
from ..probes.base import is_due
from ..probes.federation import CommunicationCost
from ..simulation.batches import CPU_BYTES_PER_PASS, CPU_TOKENS_PER_PASS, MEMORY_FRACTION, activation_bytes_per_token, free_memory_bytes
from ..simulation.simulator import ClientAlgorithm, ClientPool
from ..storage import Run
from ..storage.checkpoint import Checkpoint
from .hints import find_hints
from .operations import count_flops, measure_memory, peak_bytes, time_by_kind, with_recorded_ranges

TIME_BUDGET_S = 10.0  # for all trials together


def explain_pass_size(context: RunContext, runtime: Runtime, batch_size: int, length: int, passes_per_step: int) -> str:
    """Return the reason for the number of clients per pass.

    Args:
        context: The prepared run.
        runtime: The runtime options.
        batch_size: Number of sequences per batch.
        length: Number of tokens per sequence.
        passes_per_step: Number of forward passes per step whose activations are needed by the backward pass.
    """
    pass_size, cohort, device = (context.simulator.clients_per_pass or context.cohort_size, context.cohort_size, runtime.resolve_device())
    if runtime.clients_per_pass:
        return f"set by --clients-per-pass {runtime.clients_per_pass}"
    if runtime.clients_per_pass == 0:
        return "fastest in a timed trial (--clients-per-pass 0)"
    if pass_size >= cohort:
        return "the whole cohort fits into one pass"
    client_bytes = passes_per_step * batch_size * length * activation_bytes_per_token(context.model.network)
    if device.type == "cpu" and pass_size == max(1, CPU_TOKENS_PER_PASS // (batch_size * length)):
        return f"a client has {batch_size} x {length} tokens, and passes of about {CPU_TOKENS_PER_PASS:,} tokens use the CPU's cache best"
    if device.type == "cpu" and pass_size == max(1, int(CPU_BYTES_PER_PASS // client_bytes)):
        return (
            f"a client's activations take about {client_bytes / 1e6:,.0f} MB, and passes with more than "
            f"{CPU_BYTES_PER_PASS / 1e9:g} GB of activations are not faster on a CPU"
        )
    return (
        f"a client's activations take about {client_bytes / 1e6:,.0f} MB, and activations may use {100 * MEMORY_FRACTION:.0f} % of the "
        f"{free_memory_bytes(device) / 1e9:,.1f} GB of free memory"
    )


def time_pass_sizes(context: RunContext, result: RoundResult, batch: dict[str, Tensor], num_repeats: int = 3) -> list[dict[str, Any]]:
    """Measure the training speed of passes of several sizes.

    The trials are one client, the current number of clients per pass, the whole cohort, and the current number with twice the batch. They
    alternate, so that a change of the machine's load affects all of them. Trials other than the current number are left out if they
    would exceed the time budget.

    Args:
        context: The prepared run.
        result: A round, for its models.
        batch: A batch of the cohort.
        num_repeats: Number of timed repeats of each trial.

    Returns:
        One entry per trial with ``clients``, ``batch``, ``chosen`` and ``tokens_per_second``.
    """
    model: Any = getattr(context.simulator.loss_fn, "inner", context.simulator.loss_fn)
    batch = {"tokens": batch["tokens"][:1], "loss_mask": batch["loss_mask"][:1]}
    double = {name: torch.cat([leaf, leaf], 1) for name, leaf in batch.items()}
    params, chosen = (
        result.before.server.params.take(torch.zeros(1, dtype=torch.long)),
        context.simulator.clients_per_pass or len(result.cohort),
    )
    chosen = min(chosen, len(result.cohort))
    timing_step(model, params, batch, 1)
    start = perf_counter()
    timing_step(model, params, batch, 1)
    client_step_s = perf_counter() - start  # approximate seconds of one client's step
    trials = [(count, batch, count == chosen) for count in sorted({1, chosen, len(result.cohort)})] + [(chosen, double, False)]
    max_client_steps = TIME_BUDGET_S / len(trials) / (num_repeats + 1) / client_step_s
    trials = [
        (count, trial_batch, is_chosen)
        for count, trial_batch, is_chosen in trials
        if is_chosen or count * trial_batch["tokens"].numel() / batch["tokens"].numel() < max_client_steps
    ]
    durations: list[list[float]] = [[] for _ in trials]
    for repeat in range(num_repeats + 1):
        for index, (count, trial_batch, _) in enumerate(trials):
            start = perf_counter()
            timing_step(model, params, trial_batch, count)
            if repeat:
                durations[index].append(perf_counter() - start)
    return [
        {
            "clients": count,
            "batch": trial_batch["tokens"].shape[1],
            "chosen": is_chosen,
            "tokens_per_second": count * float(trial_batch["loss_mask"][:, :, 1:].sum()) / median(seconds),
        }
        for (count, trial_batch, is_chosen), seconds in zip(trials, durations, strict=True)
    ]


PROFILED_STEPS = 4  # number of local steps of a round under the profiler and the FLOP counter
MATRIX_SIZES = {"cpu": (512, 1024, 1536), "cuda": (4096, 8192), "mps": (1024, 2048)}
MessageCallback = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Profile:
    """Seconds, FLOPs and bytes of one experiment on one machine. Unavailable seconds and bytes are NaN.

    Attributes:
        experiment: Name of the experiment.
        id: Identifier of the experiment.
        machine: Device, number of threads, mean number of busy threads, data type, and speed of a large matrix product in GFLOP/s.
        phases: Phases of a whole run: name, seconds per occurrence, number of occurrences, total seconds, share of the run, and ``per``
            ("run" or "round").
        training: Seconds by kind of operation, their sum and shares, the number of profiled steps, and the slowdown by the profiler.
        compute: FLOPs per token, GFLOP/s, share of the peak, tokens per second, and share of padding.
        memory: Peak resident bytes, peak bytes of the device, and bytes by purpose.
        passes: Clients per pass, the reason for this number, cohort size, and speeds of other sizes.
        traffic: Bytes that a client sends and receives per round.
        hints: Sentences about what would make the run cheaper.
    """

    experiment: str
    id: str
    machine: dict[str, Any]
    phases: list[dict[str, Any]]
    training: dict[str, Any]
    compute: dict[str, float]
    memory: dict[str, Any]
    passes: dict[str, Any]
    traffic: dict[str, float]
    hints: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain dictionaries and lists."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class TimedClientPool:
    """A client pool that records the elapsed and the processor seconds of each round."""

    pool: ClientPool
    device: torch.device
    seconds: list[float]
    processor_seconds: list[float]

    @property
    def size(self) -> int:
        """Return N, the number of clients."""
        return self.pool.size

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        """Train a cohort and record its time."""
        start, processor_start = perf_counter(), process_time()
        update = self.pool.train(state, algorithm, cohort)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(perf_counter() - start)
        self.processor_seconds.append(process_time() - processor_start)
        return update


def measure_gemm_peak(device: torch.device, dtype: torch.dtype = torch.float32, num_trials: int = 8) -> float:
    """Return the speed of a large square matrix product in FLOP/s, with torch's current number of threads.

    Args:
        device: Device of the matrices.
        dtype: Data type of the matrices.
        num_trials: Number of trials per matrix size; the result is the best trial of all sizes.
    """
    best = 0.0
    for side in MATRIX_SIZES.get(device.type, MATRIX_SIZES["cuda"]):
        matrix = torch.ones(side, side, dtype=dtype, device=device)
        for _ in range(num_trials):
            start = perf_counter()
            (matrix @ matrix)[0, 0].item()  # .item() waits for the device
            best = max(best, 2 * side**3 / (perf_counter() - start))
    return best


@dataclass(frozen=True)
class PhaseTimer:
    """Announces and times the phases that occur once in a run; ``seconds`` has their durations by name."""

    on_message: MessageCallback
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, function: Callable[[], T]) -> T:
        """Run a function as the phase ``name``, and return its value."""
        self.on_message(name)
        start = perf_counter()
        value = function()
        self.seconds[name] = perf_counter() - start
        return value


def profile_run(
    config: ExperimentConfig,
    resources: ResourceCache,
    num_rounds: int = 2,
    trace_path: Path | None = None,
    on_message: MessageCallback = lambda message: None,
    folder: Path | None = None,
) -> Profile:
    """Profile an experiment: one warm-up round, ``num_rounds`` measured rounds, and replays of the last one.

    Args:
        config: The experiment.
        resources: Cache of loaded corpora and models, with the runtime options.
        num_rounds: Number of measured rounds.
        trace_path: File to which the trace of a round is written, if given.
        on_message: Called with the name of each phase as it starts.
        folder: Run directory; None uses a temporary folder.

    Raises:
        UserError: The experiment has no rounds.
    """
    if config.training.num_rounds < 1:
        raise UserError("An experiment with 0 rounds cannot be profiled. Set training.num_rounds to at least 1, for example 3.")
    if folder is None:
        with TemporaryDirectory() as temporary_folder:
            return profile_run(config, resources, num_rounds, trace_path, on_message, Path(temporary_folder))
    time_phase = PhaseTimer(on_message)
    resources.runtime.configure_torch()
    config, context = load_and_build(config, resources, time_phase)
    run = Run(folder, config.id)
    pool = TimedClientPool(context.clustering.wrap_client_pool(context.simulator), resources.runtime.resolve_device(), [], [])
    peaks = [measure_gemm_peak(pool.device, compute_dtype(context))]
    result, round_s, probe_s = profile_rounds(config, context, run, pool, num_rounds, time_phase)
    time_phase("final evaluation and saving", lambda: finish_run(config, run, context, result.after, resources, has_client_state=True))
    operations = profile_operations(config, context, result, pool.device, trace_path, on_message)
    peaks.append(measure_gemm_peak(pool.device, compute_dtype(context)))

    compute = summarize_compute(result, round_s["training"], operations, max(peaks))
    phases = summarize_phases(config, context, time_phase.seconds, round_s, probe_s)
    on_message("timing passes of other sizes")
    passes = summarize_passes(config, context, resources.runtime, result)
    traffic = CommunicationCost(config.algorithm)(result)
    return Profile(
        config.name,
        config.id,
        {
            "device": str(pool.device),
            "threads": torch.get_num_threads(),
            "dtype": str(compute_dtype(context)).removeprefix("torch."),
            "gemm_peak_gflops": max(peaks) / 1e9,
            "busy_threads": sum(pool.processor_seconds) / sum(pool.seconds),
        },
        phases,
        operations["training"],
        compute,
        measure_memory(context, result, operations["step_peak"], pool.device),
        passes,
        {"up": float(traffic["cost.up"]), "down": float(traffic["cost.down"])},
        find_hints(phases, config, operations["padding"], passes["trials"], compute["share_of_peak"]),
    )


def load_and_build(config: ExperimentConfig, resources: ResourceCache, time_phase: PhaseTimer) -> tuple[ExperimentConfig, RunContext]:
    """Load corpus, model and tokens and prepare the run, each as a timed phase.

    Returns:
        The experiment with its fingerprints, and the prepared run.
    """
    config = time_phase("load corpus", lambda: resolve_fingerprints(config, resources))
    model_key = config.model, config.trainable, config.random_weights_seed
    time_phase("load model", lambda: resources.get_stacked_model(*model_key))
    corpus = resources.get_corpus(config.dataset, config.model)
    time_phase("load tokens", lambda: resources.get_tokens(corpus, *model_key))
    return config, time_phase("partition, pack, build", lambda: build_run(config, resources))


def summarize_compute(result: RoundResult, training_s: float, operations: dict[str, Any], peak: float) -> dict[str, float]:
    """Return ``Profile.compute``.

    Args:
        result: A round.
        training_s: Mean seconds of training per round.
        operations: The result of ``profile_operations``.
        peak: Speed of a large matrix product in FLOP/s.
    """
    tokens_per_second = float(result.update.tokens.sum()) / training_s
    flops = operations["flops_per_token"]
    return {
        "flops_per_token": flops,
        "gflops": flops * tokens_per_second / 1e9,
        "share_of_peak": flops * tokens_per_second / peak,
        "tokens_per_second": tokens_per_second,
        "padding": operations["padding"],
    }


def summarize_passes(config: ExperimentConfig, context: RunContext, runtime: Runtime, result: RoundResult) -> dict[str, Any]:
    """Return ``Profile.passes``, with the measured speeds of other numbers of clients per pass."""
    batch = next(first_batches(context, result), None)
    training, passes_per_step = config.training, 2 if config.algorithm.local_regularizer() else 1
    return {
        "clients_per_pass": context.simulator.clients_per_pass,
        "cohort": len(result.cohort),
        "trials": time_pass_sizes(context, result, batch) if batch else [],
        "reason": explain_pass_size(context, runtime, training.batch_size, training.max_seq_length, passes_per_step),
    }


def profile_rounds(
    config: ExperimentConfig, context: RunContext, run: Run, pool: TimedClientPool, num_rounds: int, time_phase: PhaseTimer
) -> tuple[RoundResult, dict[str, float], dict[str, float]]:
    """Run and time the first rounds of an experiment. The first round is a warm-up and is not included in the times.

    Args:
        config: The experiment.
        context: The prepared run.
        run: Run directory for the records and checkpoints.
        pool: The timed client pool.
        num_rounds: Number of measured rounds after the warm-up.
        time_phase: Runs, announces and times a phase by name.

    Returns:
        The last round, the mean seconds of each phase of a round, and the mean seconds of each probe when it runs.
    """
    history, state, clustering, checkpoint = MetricHistory(), context.initial_state, context.clustering, Checkpoint(run)
    last_round = min(config.training.num_rounds, 1 + num_rounds)
    metrics, _ = time_phase(
        "round 0: evaluation", lambda: context.evaluation.probe_suite.evaluate_initial(clustering.with_client_models(state), history)
    )
    run.write_json("experiment", {**config.to_stored_dict(), "id": config.id, "partition_table": context.partition_table})
    run.append_records(to_records(metrics, 0, [], context.simulator.size))
    history.add_records(run.records())
    loop = run_rounds(
        state,
        pool,
        config.algorithm,
        num_rounds=last_round,
        cohort_size=context.cohort_size,
        seed=config.seed,
        recluster=clustering.recluster,
        sample_clients=clustering.sample_cohort,
    )
    phase_s: dict[str, list[float]] = {"training": [], "aggregation": [], "records and checkpoint": []}
    probe_s: dict[str, list[float]] = {}
    for round in range(1, last_round + 1):
        time_phase.on_message(f"round {round} of {last_round}" + (" (warm-up)" if round == 1 and last_round > 1 else ""))
        start = perf_counter()
        result = next(loop)
        train_s = perf_counter() - start
        rows, probe_times = evaluate_round(result, context, history)
        start = perf_counter()
        run.append_records(rows)
        record_clustering(run, context, checkpoint.assignments)
        checkpoint.save(result.after)
        run.log_timing(result.after.round, train=train_s, **prefix_probe_names(probe_times))
        store_s = perf_counter() - start
        if round == 1 and last_round > 1:
            continue
        phase_s["training"].append(pool.seconds[-1])
        phase_s["aggregation"].append(train_s - pool.seconds[-1])
        phase_s["records and checkpoint"].append(store_s)
        for name, seconds in probe_times.items():
            probe_s.setdefault(name, []).append(seconds)
    time_phase.on_message("probes that were not due in these rounds")
    for probe in context.evaluation.probe_suite.probes:
        if isinstance(probe, ScheduledProbe) and probe.name not in probe_s:
            start = perf_counter()
            probe.probe(clustering.probe_view(result))
            probe_s[probe.name] = [perf_counter() - start]
    return (result, {name: mean(seconds) for name, seconds in phase_s.items()}, {name: mean(values) for name, values in probe_s.items()})


def summarize_phases(
    config: ExperimentConfig, context: RunContext, once_s: dict[str, float], round_s: dict[str, float], probe_s: dict[str, float]
) -> list[dict[str, Any]]:
    """Return the phases of a run of all rounds, with their seconds and shares.

    Args:
        config: The experiment.
        context: The prepared run.
        once_s: Seconds of each phase that occurs once.
        round_s: Seconds of each phase of a round.
        probe_s: Seconds of each probe when it runs.
    """
    num_rounds = config.training.num_rounds
    phases = [(name, "run", seconds, 1) for name, seconds in once_s.items()]
    phases += [(name, "round", seconds, num_rounds) for name, seconds in round_s.items()]
    for name, seconds in probe_s.items():
        schedules = [
            probe.schedule for probe in context.evaluation.probe_suite.probes if isinstance(probe, ScheduledProbe) and probe.name == name
        ] or [1]
        times = sum(
            any(is_due(schedule, round, num_rounds, context.evaluation.probe_suite.expensive_interval) for schedule in schedules)
            for round in range(1, num_rounds + 1)
        )
        phases.append((f"probe {name}", "round", seconds, times))
    total = sum(seconds * times for _, _, seconds, times in phases)
    return [
        {"name": name, "per": per, "seconds": seconds, "times": times, "total": seconds * times, "share": seconds * times / total}
        for name, per, seconds, times in phases
    ]


def profile_operations(
    config: ExperimentConfig,
    context: RunContext,
    result: RoundResult,
    device: torch.device,
    trace_path: Path | None,
    on_message: MessageCallback,
) -> dict[str, Any]:
    """Replay a round and return its time by kind of operation, its FLOPs and the peak memory of a step.

    Args:
        config: The experiment.
        context: The prepared run.
        result: The round.
        device: Device of the training.
        trace_path: File to which the trace of the whole round is written, if given.
        on_message: Called with the name of each phase as it starts.
    """
    state, pass_size = result.before, context.simulator.clients_per_pass or len(result.cohort)

    def replay(cohort: Tensor, steps: int | None) -> Callable[[], CohortUpdate]:
        pool = context.clustering.wrap_client_pool(with_recorded_ranges(context.simulator, steps))
        return partial(pool.train, state, config.algorithm, cohort)

    train = replay(result.cohort, None if trace_path else PROFILED_STEPS)
    on_message("profiling a round")
    start = perf_counter()
    train()
    unprofiled_s = perf_counter() - start
    seconds_by_kind, total, _ = time_by_kind(train, device, trace_path)
    on_message("counting FLOPs and bytes")
    flops, update = count_flops(replay(result.cohort, PROFILED_STEPS))
    tokens = float(update.tokens.sum())
    step_peak = peak_bytes(replay(result.cohort[:pass_size], 2), device)
    positions = sum(batch["tokens"][:, :, 1:].numel() for batch in first_batches(context, result))
    num_targets = sum(float(batch["weight"].sum()) for batch in first_batches(context, result))
    return {
        "training": {
            "seconds": seconds_by_kind,
            "total": total,
            "shares": {kind: seconds / total for kind, seconds in seconds_by_kind.items()},
            "steps": None if trace_path else PROFILED_STEPS,
            "profiler_slowdown": total / unprofiled_s,
        },
        "flops_per_token": flops / tokens,
        "step_peak": step_peak,
        "padding": 1 - num_targets / positions,
    }


def first_batches(context: RunContext, result: RoundResult) -> Iterator[dict[str, Tensor]]:
    """Yield the first ``PROFILED_STEPS`` batches of a round for the whole cohort."""
    for step, batch in enumerate(context.simulator.batches(result.before.round, result.cohort)):
        if step == PROFILED_STEPS:
            return
        yield batch


def compute_dtype(context: RunContext) -> torch.dtype:
    """Return the data type of the model's output layer."""
    model = context.model
    return model.head.weight.dtype  # type: ignore[no-any-return]
