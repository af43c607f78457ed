"""Time, FLOPs and memory of a replayed round by kind of operation and by purpose.

Training is a function of the state, so a replay changes nothing. The ranges ``fedrift.*`` also appear in the exported trace.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from ..core.optimizers import Optimizer
from ..core.tree import Tree
from ..core.types import CohortUpdate, FederatedState, RoundResult
from ..engine.build import RunContext
from ..engine.estimate import tree_bytes
from ..simulation import ClientSimulator

BASE_WEIGHT_PRODUCTS, CLIENT_PRODUCTS, ATTENTION, HEAD = (
    "products with base weights",
    "products with client weights",
    "attention",
    "head and loss",
)
ELEMENTWISE, OPTIMIZER, ALGORITHM, DATA, IDLE = "elementwise and copies", "optimizer", "algorithm", "data", "Python and idle"
OPERATION_KINDS = (BASE_WEIGHT_PRODUCTS, CLIENT_PRODUCTS, ATTENTION, HEAD, ELEMENTWISE, OPTIMIZER, ALGORITHM, DATA, IDLE)
"""Kinds of operations in local training.

Products with base weights have one weight for all clients (mm, addmm), and products with client weights have one per client (bmm,
baddbmm). Elementwise operations and copies lie between them in the transformer blocks. ``ALGORITHM`` is what the algorithm adds (clipping,
corrections, running means), and ``IDLE`` is the time in which no operation ran.
"""

PRODUCT_KINDS = {
    "aten::mm": BASE_WEIGHT_PRODUCTS,
    "aten::addmm": BASE_WEIGHT_PRODUCTS,
    "aten::bmm": CLIENT_PRODUCTS,
    "aten::baddbmm": CLIENT_PRODUCTS,
    "aten::baddbmm_": CLIENT_PRODUCTS,
    "aten::addmm_": BASE_WEIGHT_PRODUCTS,
}
RANGE_KINDS = {"fedrift.data": DATA, "fedrift.optimizer": OPTIMIZER, "fedrift.loss": ELEMENTWISE}
ReplayFn = Callable[[], CohortUpdate]


@dataclass(frozen=True)
class RecordedOptimizer:
    """An optimizer whose steps are recorded as a range of the trace."""

    optimizer: Optimizer
    lr: float

    def init(self, params: Tree) -> Tree:
        """Return the optimizer's initial state."""
        return self.optimizer.init(params)

    def step(self, params: Tree, grad: Tree, moments: Tree) -> tuple[Tree, Tree]:
        """Take one optimizer step within a recorded range."""
        with record_function("fedrift.optimizer"):
            return replace(self.optimizer, lr=self.lr).step(params, grad, moments)  # type: ignore[type-var]


def with_recorded_ranges(simulator: ClientSimulator, max_steps: int | None = None) -> ClientSimulator:
    """Return the simulator with its data loading, losses and optimizer steps recorded as ranges of the trace.

    Args:
        simulator: The client simulator.
        max_steps: Number of local steps of each round after which training stops; None means all.
    """

    def batches(round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        limited_batches = islice(simulator.batches(round, cohort), max_steps)
        while True:
            with record_function("fedrift.data"):
                batch = next(limited_batches, None)
            if batch is None:
                return
            yield batch

    def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
        with record_function("fedrift.loss"):
            return simulator.loss_fn(params, batch)

    return replace(simulator, batches=batches, loss_fn=loss, optimizer=RecordedOptimizer(simulator.optimizer, simulator.optimizer.lr))


def time_by_kind(replay: ReplayFn, device: torch.device, trace_path: Path | None = None) -> tuple[dict[str, float], float, CohortUpdate]:
    """Profile a replay and return its time by kind of operation.

    The profiler itself takes some microseconds per operation, which are counted as Python and idle and in the shortest operations.

    Args:
        replay: Function that trains the round again.
        device: Device of the training.
        trace_path: File to which the trace is written, if given.

    Returns:
        Seconds of each kind of operation, their sum, which is the duration of the replay, and the cohort's updates.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler, record_function("fedrift.training"):
        update = replay()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    if trace_path is not None:
        profiler.export_chrome_trace(str(trace_path))
    return (*sum_by_kind(profiler.events() or [], device.type == "cuda"), update)


def sum_by_kind(events: Iterable[Any], is_cuda: bool) -> tuple[dict[str, float], float]:
    """Sum the events of a profile by kind of operation.

    Args:
        events: Events of torch's profiler.
        is_cuda: Whether to use the time on the GPU instead of the CPU.

    Returns:
        Seconds of each kind of operation, and their sum.
    """
    seconds, duration = dict.fromkeys(OPERATION_KINDS, 0.0), 0.0
    context: dict[int, str] = {}
    events = sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end))
    for event in events:
        parent_kind = context.get(event.cpu_parent.id, "") if event.cpu_parent else ""
        context[event.id] = kind = enclosing_kind(event.name, parent_kind)
        if event.name == "fedrift.training":
            duration = max(duration, event.cpu_time_total / 1e6)
        elif event.name.startswith("aten::"):
            microseconds = event.self_device_time_total if is_cuda else event.self_cpu_time_total
            seconds[operation_kind(event.name, kind)] += microseconds / 1e6
    seconds[IDLE] = max(0.0, duration - sum(seconds.values()))
    return seconds, sum(seconds.values())


def enclosing_kind(name: str, parent_kind: str) -> str:
    """Return the kind of the code that an event belongs to.

    Args:
        name: Name of the event.
        parent_kind: Kind of the event that called it, or "" if unknown.
    """
    if name in RANGE_KINDS:
        return RANGE_KINDS[name]
    if "Head" in name:
        return HEAD
    if "attention" in name:
        return ATTENTION
    return ELEMENTWISE if name.startswith("autograd::") and not parent_kind else parent_kind


def operation_kind(name: str, enclosing: str) -> str:
    """Return the kind of an operation.

    Args:
        name: Name of the operation, such as ``aten::mm``.
        enclosing: Kind of the code that the operation belongs to, or "" if unknown.
    """
    return PRODUCT_KINDS.get(name, ELEMENTWISE) if enclosing == ELEMENTWISE else enclosing or ALGORITHM


def count_flops(replay: ReplayFn) -> tuple[float, CohortUpdate]:
    """Return the FLOPs of a replay as torch counts them, and the cohort's updates.

    The count includes matrix products and attention, forward and backward. Attention counts all pairs of positions, whether masked or not.
    """
    ops = torch.ops.aten

    def product_flops(bias_shape: Any, left_shape: Any, right_shape: Any, *rest: Any, **options: Any) -> int:
        """Return the FLOPs of a product of shapes ``[..., A, B]`` and ``[..., B, C]``."""
        return 2 * prod(left_shape) * int(right_shape[-1])

    custom_flops: dict[Any, Any] = {ops.baddbmm_: product_flops, ops.addmm_: product_flops}  # torch counts neither in-place products
    with suppress(AttributeError):  # nor attention on a CPU
        custom_flops[ops._scaled_dot_product_flash_attention_for_cpu] = lambda q, k, v, *rest, **options: sdpa_flop(q, k, v)
        custom_flops[ops._scaled_dot_product_flash_attention_for_cpu_backward] = (  # five products, where the forward pass has two
            lambda grad, q, k, v, *rest, **options: 5 * sdpa_flop(q, k, v) / 2
        )
    with FlopCounterMode(display=False, custom_mapping=custom_flops) as counter:
        update = replay()
    return float(counter.get_total_flops()), update


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process in bytes, or 0 if the system does not report it."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the parent's memory at the time of the fork
        return next((int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")), 0)
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_bytes(replay: ReplayFn, device: torch.device) -> float:
    """Return the peak memory of the tensors that a replay creates, in bytes, or NaN if torch does not report it (Apple's GPU).

    Args:
        replay: Function that trains the round again.
        device: Device of the training.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        replay()
        return float(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        return float("nan")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        replay()
    current = peak = 0
    raw_profiler: Any = recorded.profiler
    for event in sorted(
        (candidate for candidate in raw_profiler.kineto_results.events() if candidate.name() == "[memory]"),
        key=lambda item: item.start_ns(),
    ):
        current += event.nbytes()
        peak = max(peak, current)
    return float(peak)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storage of some tensors; shared storage counts once."""
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())


def memory_breakdown(
    context: RunContext, state: FederatedState, update: CohortUpdate, pass_size: int, step_peak: float
) -> dict[str, float]:
    """Return the bytes in use by purpose.

    Args:
        context: The prepared run.
        state: State after a round.
        update: The cohort's updates of this round.
        pass_size: Number of clients that train in one pass.
        step_peak: Peak memory of the tensors of one local step, in bytes; NaN if unknown.
    """
    model = context.model
    server, network = state.server, model.network
    index = torch.zeros(pass_size, dtype=torch.long)
    start = server.params.take(index)
    optimizer_bytes = tree_bytes(context.simulator.optimizer.init(start))
    copy_bytes = 3 * tree_bytes(start) + tree_bytes(server.broadcast.take(index)) + tree_bytes(state.client_states.gather(index))
    batches: Any = context.simulator.batches
    return {
        "base weights": storage_bytes([*network.parameters(), *network.buffers()]),
        f"server models ({server.num_models})": sum(map(tree_bytes, (server.params, server.merged_base, state.server_delta))),
        "server optimizer state and broadcast": sum(map(tree_bytes, (server.broadcast, server.opt_state))),
        f"states of {context.simulator.size} clients": state.client_states.num_bytes(),
        f"updates of {len(update.tokens)} clients": sum(
            map(tree_bytes, (update.delta, update.mean_grad, update.client_state, update.state_delta))
        ),
        f"optimizer states of {pass_size} clients in a pass": optimizer_bytes,
        "models, gradients and states in a pass": copy_bytes,
        "activations and temporary tensors of a step": max(0.0, step_peak - optimizer_bytes - copy_bytes)
        if step_peak == step_peak
        else step_peak,
        "cached outputs of frozen blocks": tree_bytes(Tree(cached_in_memory(model.prefix_cache))) if model.prefix_cache else 0,
        "tokenized training text": sum(client_blocks.tokens.nbytes + client_blocks.mask.nbytes for client_blocks in batches.blocks),
    }


def cached_in_memory(prefix: Any) -> dict[str, Tensor]:
    """Return the cached outputs of frozen transformer blocks that are in memory and not in a file."""
    return {str(key): output for key, output in prefix.entries.items() if isinstance(output, Tensor)}


def measure_memory(context: RunContext, result: RoundResult, step_peak: float, device: torch.device) -> dict[str, Any]:
    """Return the bytes in use by purpose and the peak memory of the process and the device.

    Args:
        context: The prepared run.
        result: A round.
        step_peak: Peak memory of the tensors of one local step, in bytes; NaN if unknown.
        device: Device of the training.
    """
    by_purpose = memory_breakdown(
        context, result.after, result.update, min(context.simulator.clients_per_pass or context.cohort_size, len(result.cohort)), step_peak
    )
    peak = peak_resident_bytes() if device.type == "cpu" else torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    known = sum(size for size in by_purpose.values() if size == size)
    other = {"other: Python, libraries, loading" if device.type == "cpu" else "other": max(0, peak - known)}
    return {
        "resident_peak": peak_resident_bytes(),
        "device_peak": peak if device.type == "cuda" else None,
        "bytes": {**by_purpose, **other},
    }
