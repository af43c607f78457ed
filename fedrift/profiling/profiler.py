"""What the machine can do at best: a large matrix product, and the most bytes that were in use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from ..config.runtime import Runtime
from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..core.optimizers import Optimizer
from ..core.tree import Tree
from ..core.types import CohortUpdate, FederatedState, RoundResult
from ..engine.build import RunContext, build_run, resolve_fingerprints, timing_step
from ..engine.cache import ResourceCache
from ..engine.loop import run_rounds
from ..engine.run import evaluate_round, finish_run, prefix_probe_names, record_clustering
from ..probes import MetricHistory, ScheduledProbe, to_records
from ..probes.base import is_due
from ..probes.federation import CommunicationCost
from ..simulation import ClientSimulator
from ..simulation.batches import CPU_BYTES_PER_PASS, CPU_TOKENS_PER_PASS, MEMORY_FRACTION, activation_bytes_per_token, free_memory_bytes
from ..simulation.simulator import ClientAlgorithm, ClientPool
from ..storage import Run
from ..storage.fork import Checkpoint
from .hints import find_hints

MATRIX_SIZES = {"cpu": (512, 1024, 1536), "cuda": (4096, 8192), "mps": (1024, 2048)}


def measure_gemm_peak(device: torch.device, dtype: torch.dtype = torch.float32, num_trials: int = 8) -> float:
    """FLOP a second of a square matrix product, the best of some sizes and trials, with the threads that torch has now."""
    best = 0.0
    for side in MATRIX_SIZES.get(device.type, MATRIX_SIZES["cuda"]):
        one = torch.ones(side, side, dtype=dtype, device=device)
        for _ in range(num_trials):
            begun = perf_counter()
            (one @ one)[0, 0].item()  # waits for the device
            best = max(best, 2 * side**3 / (perf_counter() - begun))
    return best


def peak_resident_bytes() -> int:
    """The most bytes of memory that this process has held so far. 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started us
        return next((int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")), 0)
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# What a round of local training is made of: its operations by kind, the FLOPs that it needs, the bytes that a step touches.
#
# All of it is seen in replays of a round that has been: training is a function of the state, so a replay changes nothing. The
# ranges ``fedrift.*`` are in the trace too.

FROZEN_PRODUCTS, CLIENT_PRODUCTS, ATTENTION, HEAD = "frozen products", "clients' own products", "attention", "head and loss"
ELEMENTWISE, OPTIMIZER, ALGORITHM, DATA, IDLE = "elementwise and copies", "optimizer", "algorithm", "data", "Python and idle"
OPERATION_KINDS = (FROZEN_PRODUCTS, CLIENT_PRODUCTS, ATTENTION, HEAD, ELEMENTWISE, OPTIMIZER, ALGORITHM, DATA, IDLE)
"""One weight for all clients (mm, addmm), or a weight for each (bmm, baddbmm); what lies between them in the blocks; what the
algorithm adds (clipping, corrections, running means); the time in which no operation ran."""

PRODUCT_KINDS = {
    "aten::mm": FROZEN_PRODUCTS,
    "aten::addmm": FROZEN_PRODUCTS,
    "aten::bmm": CLIENT_PRODUCTS,
    "aten::baddbmm": CLIENT_PRODUCTS,
    "aten::baddbmm_": CLIENT_PRODUCTS,
    "aten::addmm_": FROZEN_PRODUCTS,
}
RANGE_KINDS = {"fedrift.data": DATA, "fedrift.optimizer": OPTIMIZER, "fedrift.loss": ELEMENTWISE}
ReplayFn = Callable[[], CohortUpdate]


@dataclass(frozen=True)
class RecordedOptimizer:
    """An optimizer whose steps are a range of the trace."""

    optimizer: Optimizer
    lr: float

    def init(self, params: Tree) -> Tree:
        return self.optimizer.init(params)

    def step(self, params: Tree, grad: Tree, moments: Tree) -> tuple[Tree, Tree]:
        with record_function("fedrift.optimizer"):
            return replace(self.optimizer, lr=self.lr).step(params, grad, moments)  # type: ignore[type-var]


def with_recorded_ranges(simulator: ClientSimulator, max_steps: int | None = None) -> ClientSimulator:
    """The fleet with its data, losses and optimizer as ranges of the trace; of every round its first ``max_steps``."""

    def batches(round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        every = islice(simulator.batches(round, cohort), max_steps)
        while True:
            with record_function("fedrift.data"):
                batch = next(every, None)
            if batch is None:
                return
            yield batch

    def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
        with record_function("fedrift.loss"):
            return simulator.loss_fn(params, batch)

    return replace(simulator, batches=batches, loss_fn=loss, optimizer=RecordedOptimizer(simulator.optimizer, simulator.optimizer.lr))


def time_by_kind(replay: ReplayFn, device: torch.device, trace_path: Path | None = None) -> tuple[dict[str, float], float, CohortUpdate]:
    """Seconds of each kind of work, which sum to the seconds of the whole replay, both told; and what it trained.

    The profiler itself takes some microseconds an operation, which show as Python and idle and in the smallest operations.
    """
    doing = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=doing) as seen, record_function("fedrift.training"):
        report = replay()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    if trace_path is not None:
        seen.export_chrome_trace(str(trace_path))
    return (*sum_by_kind(seen.events() or [], device.type == "cuda"), report)


def sum_by_kind(events: Iterable[Any], is_cuda: bool) -> tuple[dict[str, float], float]:
    """Seconds by kind and in all, of a profile's events."""
    seconds, wall = dict.fromkeys(OPERATION_KINDS, 0.0), 0.0
    context: dict[int, str] = {}
    events = sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end))
    for event in events:
        above = context.get(event.cpu_parent.id, "") if event.cpu_parent else ""
        context[event.id] = place = enclosing_kind(event.name, above)
        if event.name == "fedrift.training":
            wall = max(wall, event.cpu_time_total / 1e6)
        elif event.name.startswith("aten::"):
            took = event.self_device_time_total if is_cuda else event.self_cpu_time_total
            seconds[operation_kind(event.name, place)] += took / 1e6
    seconds[IDLE] = max(0.0, wall - sum(seconds.values()))
    return seconds, sum(seconds.values())


def enclosing_kind(name: str, parent_kind: str) -> str:
    """What an operation belongs to, by its name and what it was called from."""
    if name in RANGE_KINDS:
        return RANGE_KINDS[name]
    if "Head" in name:
        return HEAD
    if "attention" in name:
        return ATTENTION
    return ELEMENTWISE if name.startswith("autograd::") and not parent_kind else parent_kind


def operation_kind(name: str, enclosing: str) -> str:
    return PRODUCT_KINDS.get(name, ELEMENTWISE) if enclosing == ELEMENTWISE else enclosing or ALGORITHM


def count_flops(replay: ReplayFn) -> tuple[float, CohortUpdate]:
    """FLOPs of matrix products and attention, forward and backward, as torch counts them; and what was trained.

    Attention counts all positions before and after one another, masked or not.
    """
    ops = torch.ops.aten

    def product(add: Any, one: Any, two: Any, *rest: Any, **named: Any) -> int:
        """Shapes ``[..., A, B]`` and ``[..., B, C]``."""
        return 2 * prod(one) * int(two[-1])

    more: dict[Any, Any] = {ops.baddbmm_: product, ops.addmm_: product}  # torch's table has neither products in place
    with suppress(AttributeError):  # nor the attention of a CPU
        more[ops._scaled_dot_product_flash_attention_for_cpu] = lambda q, k, v, *rest, **named: sdpa_flop(q, k, v)
        more[ops._scaled_dot_product_flash_attention_for_cpu_backward] = (  # five products where forward has two
            lambda grad, q, k, v, *rest, **named: 5 * sdpa_flop(q, k, v) / 2
        )
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        report = replay()
    return float(counter.get_total_flops()), report


def peak_bytes(replay: ReplayFn, device: torch.device) -> float:
    """The most bytes that tensors made in the replay held at one time; NaN where torch does not tell (Apple's GPU)."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        replay()
        return float(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        return float("nan")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        replay()
    held = most = 0
    told: Any = seen.profiler
    for event in sorted((each for each in told.kineto_results.events() if each.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return float(most)


# What a run's memory holds, in bytes; and why so many clients train in one pass.


def tree_bytes(*trees: Tree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.numel() * leaf.element_size() for tree in trees for leaf in tree.values())


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory under some tensors; what several share counts once."""
    under = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(under.values())


def memory_breakdown(
    context: RunContext, state: FederatedState, report: CohortUpdate, pass_size: int, step_peak: float
) -> dict[str, float]:
    """Bytes by what they are; ``pass_size`` clients train at once, and ``step_peak`` bytes is what one step makes at most."""
    model = context.model
    server, network = state.server, model.network
    every = torch.zeros(pass_size, dtype=torch.long)
    start = server.params.take(every)
    moments = tree_bytes(context.simulator.optimizer.init(start))
    copies = 3 * tree_bytes(start) + tree_bytes(server.broadcast.take(every)) + tree_bytes(state.client_states.gather(every))
    batches: Any = context.simulator.batches
    return {
        "base weights": storage_bytes([*network.parameters(), *network.buffers()]),
        f"models of the server ({server.num_models})": tree_bytes(server.params, server.merged_base, state.server_delta),
        "what the server keeps and sends beside them": tree_bytes(server.broadcast, server.opt_state),
        f"what {context.simulator.size} clients remember": state.client_states.num_bytes(),
        f"what {len(report.tokens)} clients report": tree_bytes(report.delta, report.mean_grad, report.client_state, report.state_delta),
        f"optimizer of the {pass_size} in a pass": moments,
        "their models, starts, gradients, memories": copies,
        "activations and temporaries of a step": max(0.0, step_peak - moments - copies) if step_peak == step_peak else step_peak,
        "kept of the frozen prefix": tree_bytes(Tree(cached_in_memory(model.prefix_cache))) if model.prefix_cache else 0,
        "training text as tokens": sum(own.tokens.nbytes + own.mask.nbytes for own in batches.blocks),
    }


def cached_in_memory(prefix: Any) -> dict[str, Tensor]:
    """What is in memory of what the frozen prefix made; the rest is in a file."""
    return {str(key): kept for key, kept in prefix.entries.items() if isinstance(kept, Tensor)}


def explain_pass_size(context: RunContext, runtime: Runtime, batch_size: int, length: int, passes_per_step: int) -> str:
    """Why so many clients train in one pass."""
    micro, cohort, device = (context.simulator.clients_per_pass or context.cohort_size, context.cohort_size, runtime.resolve_device())
    if runtime.clients_per_pass:
        return f"--clients-per-pass {runtime.clients_per_pass} asks for it"
    if runtime.clients_per_pass == 0:
        return "a trial by the clock (--clients-per-pass 0) chose it"
    if micro >= cohort:
        return "the whole cohort fits"
    each = passes_per_step * batch_size * length * activation_bytes_per_token(context.model.network)
    if device.type == "cpu" and micro == max(1, CPU_TOKENS_PER_PASS // (batch_size * length)):
        return f"of {batch_size} x {length} tokens each, about {CPU_TOKENS_PER_PASS:,} tokens keep a processor's cache warm"
    if device.type == "cpu" and micro == max(1, int(CPU_BYTES_PER_PASS // each)):
        return (
            f"a client's activations take about {each / 1e6:,.0f} MB, and a pass on a processor that holds more than "
            f"{CPU_BYTES_PER_PASS / 1e9:g} GB of them is no faster"
        )
    return (
        f"a client's activations take about {each / 1e6:,.0f} MB, and {MEMORY_FRACTION:.0%} of the "
        f"{free_memory_bytes(device) / 1e9:,.1f} GB that are free may go to them"
    )


# Would other passes be faster: fewer or more clients at once, a larger batch? Only what was tried is told.

TIME_BUDGET_S = 10.0  # seconds for all trials


def time_pass_sizes(context: RunContext, result: RoundResult, batch: dict[str, Tensor], num_repeats: int = 3) -> list[dict[str, Any]]:
    """Tokens a second of a step of one client, of those that are chosen, of the cohort, and of twice the batch; in turns."""
    model: Any = getattr(context.simulator.loss_fn, "inner", context.simulator.loss_fn)
    batch = {"tokens": batch["tokens"][:1], "keep": batch["keep"][:1]}
    double = {name: torch.cat([leaf, leaf], 1) for name, leaf in batch.items()}
    params, chosen = (
        result.before.server.params.take(torch.zeros(1, dtype=torch.long)),
        context.simulator.clients_per_pass or len(result.cohort),
    )
    chosen = min(chosen, len(result.cohort))
    timing_step(model, params, batch, 1)
    begun = perf_counter()
    timing_step(model, params, batch, 1)
    each = perf_counter() - begun  # seconds of a client's step, about
    ways = [(count, batch, count == chosen) for count in sorted({1, chosen, len(result.cohort)})] + [(chosen, double, False)]
    most = TIME_BUDGET_S / len(ways) / (num_repeats + 1) / each  # of a client's steps
    ways = [(count, some, ours) for count, some, ours in ways if ours or count * some["tokens"].numel() / batch["tokens"].numel() < most]
    spent: list[list[float]] = [[] for _ in ways]
    for turn in range(num_repeats + 1):
        for place, (count, some, _) in enumerate(ways):
            begun = perf_counter()
            timing_step(model, params, some, count)
            if turn:
                spent[place].append(perf_counter() - begun)
    return [
        {
            "clients": count,
            "batch": some["tokens"].shape[1],
            "chosen": ours,
            "tokens_per_second": count * float(some["keep"][:, :, 1:].sum()) / median(seconds),
        }
        for (count, some, ours), seconds in zip(ways, spent, strict=True)
    ]


# Some rounds of an experiment, as they are, by the clock; then one of them again under torch's profiler and counters.

PROFILED_STEPS = 4  # of a round that the profiler and the counter see
MessageCallback = Callable[[str], None]


@dataclass(frozen=True)
class Profile:
    """Seconds, FLOPs and bytes of one experiment on one machine. Bytes and seconds that could not be had are NaN."""

    experiment: str
    id: str
    machine: dict[str, Any]  # device, threads and how many were at work, dtype, GEMM peak in GFLOP/s
    phases: list[dict[str, Any]]  # name, seconds each time, times in a run, seconds in a run, share, per: "run" or "round"
    training: dict[str, Any]  # seconds by kind, their sum, shares; what the profiler slowed down
    compute: dict[str, float]  # FLOPs a token, GFLOP/s, share of peak, tokens a second, padding
    memory: dict[str, Any]  # peak, bytes by what they are, bytes of the device
    passes: dict[str, Any]  # clients in one pass, why, what others gave
    traffic: dict[str, float]  # bytes that a client sends and receives a round
    hints: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class TimedClientPool:
    """A fleet, and the seconds that each of its rounds took, by the clock and of processors."""

    pool: ClientPool
    device: torch.device
    seconds: list[float]
    processor_seconds: list[float]

    @property
    def size(self) -> int:
        return self.pool.size

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        begun, worked = perf_counter(), process_time()
        report = self.pool.train(state, algorithm, cohort)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(perf_counter() - begun)
        self.processor_seconds.append(process_time() - worked)
        return report


def profile_run(
    config: ExperimentConfig,
    resources: ResourceCache,
    num_rounds: int = 2,
    trace_path: Path | None = None,
    on_message: MessageCallback = lambda told: None,
    folder: Path | None = None,
) -> Profile:
    """Profile an experiment: a round to warm up, ``num_rounds`` more, replays. What it stores goes into ``folder``, else away."""
    if config.training.num_rounds < 1:
        raise UserError("an experiment of 0 rounds has nothing to profile: training.num_rounds=3, say")
    if folder is None:
        with TemporaryDirectory() as away:
            return profile_run(config, resources, num_rounds, trace_path, on_message, Path(away))
    once: dict[str, float] = {}

    def timed(name: str, do: Callable[[], Any]) -> Any:
        on_message(name)
        begun = perf_counter()
        made = do()
        once[name] = perf_counter() - begun
        return made

    resources.runtime.configure_torch()
    config = timed("load corpus", lambda: resolve_fingerprints(config, resources))
    made = config.model, config.trainable
    timed("load model", lambda: resources.get_stacked_model(*made))
    words = resources.get_corpus(config.dataset, config.model)
    timed("load tokens", lambda: resources.get_tokens(words, *made))
    setting: RunContext = timed("deal, pack, prepare", lambda: build_run(config, resources))
    run, clock = (
        Run(folder, config.id),
        TimedClientPool(setting.clustering.wrap_client_pool(setting.simulator), resources.runtime.resolve_device(), [], []),
    )
    peaks = [measure_gemm_peak(clock.device, compute_dtype(setting))]
    done, took, seen = profile_rounds(config, setting, run, clock, num_rounds, on_message, timed)
    timed("final evaluation, models saved", lambda: finish_run(config, run, setting, done.after, resources, has_client_state=True))
    inside = profile_operations(config, setting, done, clock.device, trace_path, on_message)
    peaks.append(measure_gemm_peak(clock.device, compute_dtype(setting)))

    rate = float(done.report.tokens.sum()) / took["training"]
    flops = inside["flops_per_token"]
    compute = {
        "flops_per_token": flops,
        "gflops": flops * rate / 1e9,
        "share_of_peak": flops * rate / max(peaks),
        "tokens_per_second": rate,
        "padding": inside["padding"],
    }
    on_message("passes of other sizes")
    one = next(first_batches(setting, done), None)
    trials = time_pass_sizes(setting, done, one) if one else []
    phases = summarize_phases(config, setting, once, took, seen)
    traffic = CommunicationCost(config.algorithm)(done)
    plan, kept = config.training, 2 if config.algorithm.local_regularizer() else 1
    return Profile(
        config.name,
        config.id,
        {
            "device": str(clock.device),
            "threads": torch.get_num_threads(),
            "dtype": str(compute_dtype(setting)).removeprefix("torch."),
            "gemm_peak_gflops": max(peaks) / 1e9,
            "threads_at_work": sum(clock.processor_seconds) / sum(clock.seconds),
        },
        phases,
        inside["training"],
        compute,
        measure_memory(setting, done, inside["step_peak"], clock.device),
        {
            "clients_per_pass": setting.simulator.clients_per_pass,
            "cohort": len(done.cohort),
            "trials": trials,
            "why": explain_pass_size(setting, resources.runtime, plan.batch_size, plan.max_seq_length, kept),
        },
        {"up": float(traffic["cost.up"]), "down": float(traffic["cost.down"])},
        find_hints(phases, config, inside["padding"], trials, compute["share_of_peak"]),
    )


def profile_rounds(
    config: ExperimentConfig,
    context: RunContext,
    run: Run,
    pool: TimedClientPool,
    num_rounds: int,
    on_message: MessageCallback,
    time_phase: Callable[..., Any],
) -> tuple[RoundResult, dict[str, float], dict[str, float]]:
    """The last round, the mean seconds of a round's phases, and of each look when it is taken. The first round warms up."""
    past, state, work, checkpoint = MetricHistory(), context.initial_state, context.clustering, Checkpoint(run)
    until = min(config.training.num_rounds, 1 + num_rounds)
    reading, _ = time_phase("round 0: evaluation", lambda: context.probe_suite.evaluate_initial(work.with_client_models(state), past))
    run.write_json("experiment", {**config.to_stored_dict(), "id": config.id, "partition_table": context.partition_table})
    run.append_records(to_records(reading, 0, [], context.simulator.size))
    past.add_records(run.records())
    loop = run_rounds(
        state,
        pool,
        config.algorithm,
        num_rounds=until,
        cohort_size=context.cohort_size,
        seed=config.seed,
        recluster=work.recluster,
        sample_clients=work.sample_cohort,
    )
    spent: dict[str, list[float]] = {"training": [], "aggregation": [], "records and state": []}
    looks: dict[str, list[float]] = {}
    for number in range(1, until + 1):
        on_message(f"round {number} of {until}" + (", to warm up" if number == 1 and until > 1 else ""))
        begun = perf_counter()
        done = next(loop)
        trained = perf_counter() - begun
        rows, each = evaluate_round(done, context, past)
        begun = perf_counter()
        run.append_records(rows)
        record_clustering(run, context)
        checkpoint.save(done.after)
        run.log_timing(done.after.round, train=trained, **prefix_probe_names(each))
        stored = perf_counter() - begun
        if number == 1 and until > 1:
            continue
        spent["training"].append(pool.seconds[-1])
        spent["aggregation"].append(trained - pool.seconds[-1])
        spent["records and state"].append(stored)
        for name, seconds in each.items():
            looks.setdefault(name, []).append(seconds)
    on_message("looks of rarer rounds")
    for look in context.probe_suite.probes:
        if isinstance(look, ScheduledProbe) and look.name not in looks:
            begun = perf_counter()
            look.probe(work.probe_view(done))
            looks[look.name] = [perf_counter() - begun]
    return done, {name: mean(seconds) for name, seconds in spent.items()}, {name: mean(each) for name, each in looks.items()}


def summarize_phases(
    config: ExperimentConfig, context: RunContext, once_s: dict[str, float], round_s: dict[str, float], probe_s: dict[str, float]
) -> list[dict[str, Any]]:
    """A run of all its rounds, by phase: what is done once, and what in how many rounds."""
    last = config.training.num_rounds
    phases = [(name, "run", seconds, 1) for name, seconds in once_s.items()]
    phases += [(name, "round", seconds, last) for name, seconds in round_s.items()]
    for name, seconds in probe_s.items():
        when = [look.schedule for look in context.probe_suite.probes if isinstance(look, ScheduledProbe) and look.name == name] or [1]
        times = sum(any(is_due(each, now, last, context.probe_suite.expensive_interval) for each in when) for now in range(1, last + 1))
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
    """The replays: by kind of work, by FLOPs, by bytes of a step."""
    state, micro = result.before, context.simulator.clients_per_pass or len(result.cohort)

    def replay(cohort: Tensor, steps: int | None) -> Callable[[], CohortUpdate]:
        fleet = context.clustering.wrap_client_pool(with_recorded_ranges(context.simulator, steps))
        return partial(fleet.train, state, config.algorithm, cohort)

    train = replay(result.cohort, None if trace_path else PROFILED_STEPS)
    on_message("a round under the profiler")
    begun = perf_counter()
    train()
    plain = perf_counter() - begun
    kinds, total, _ = time_by_kind(train, device, trace_path)
    on_message("counting FLOPs and bytes")
    flops, report = count_flops(replay(result.cohort, PROFILED_STEPS))
    tokens = float(report.tokens.sum())
    step_peak = peak_bytes(replay(result.cohort[:micro], 2), device)
    positions = sum(batch["tokens"][:, :, 1:].numel() for batch in first_batches(context, result))
    learnt = sum(float(batch["weight"].sum()) for batch in first_batches(context, result))
    return {
        "training": {
            "seconds": kinds,
            "total": total,
            "shares": {kind: seconds / total for kind, seconds in kinds.items()},
            "steps": None if trace_path else PROFILED_STEPS,
            "slower_under_the_profiler": total / plain,
        },
        "flops_per_token": flops / tokens,
        "step_peak": step_peak,
        "padding": 1 - learnt / positions,
    }


def first_batches(context: RunContext, result: RoundResult) -> Iterator[dict[str, Tensor]]:
    """The first batches of a round, of the whole cohort."""
    for number, batch in enumerate(context.simulator.batches(result.before.round, result.cohort)):
        if number == PROFILED_STEPS:
            return
        yield batch


def measure_memory(context: RunContext, result: RoundResult, step_peak: float, device: torch.device) -> dict[str, Any]:
    """Bytes by what they are, and the most that the process, and the device, held."""
    held = memory_breakdown(
        context, result.after, result.report, min(context.simulator.clients_per_pass or context.cohort_size, len(result.cohort)), step_peak
    )
    peak = peak_resident_bytes() if device.type == "cpu" else torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    known = sum(each for each in held.values() if each == each)
    rest = {"the rest: Python, libraries, loading" if device.type == "cpu" else "the rest": max(0, peak - known)}
    return {"resident_peak": peak_resident_bytes(), "device_peak": peak if device.type == "cuda" else None, "bytes": {**held, **rest}}


def compute_dtype(context: RunContext) -> torch.dtype:
    model = context.model
    return model.head.weight.dtype  # type: ignore[no-any-return]


__all__ = ["IDLE", "OPERATION_KINDS", "Profile", "count_flops", "peak_bytes", "profile_run", "time_by_kind", "with_recorded_ranges"]
