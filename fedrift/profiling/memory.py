"""Memory of a run: the bytes in use by purpose, and peaks of the process, of the device and of a replayed step."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ..core.tree import Tree
from ..core.types import CohortUpdate, FederatedState, RoundResult
from ..engine.build import RunContext
from ..engine.estimate import tree_bytes
from .operations import ReplayFn


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
