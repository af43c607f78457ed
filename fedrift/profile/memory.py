"""What a run's memory holds, in bytes; and why so many clients train in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..fleet.micro import CPU_BYTES, CPU_TOKENS, ROOM, bytes_per_token, free_memory
from ..runtime import Runtime
from ..setting import Setting
from ..tree import Tree
from ..values import Report, State


def size(*trees: Tree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.numel() * leaf.element_size() for tree in trees for leaf in tree.values())


def stored(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory under some tensors; what several share counts once."""
    under = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(under.values())


def holdings(setting: Setting, state: State, report: Report, pass_size: int, step_peak: float) -> dict[str, float]:
    """Bytes by what they are; ``pass_size`` clients train at once, and ``step_peak`` bytes is what one step makes at most."""
    model = setting.model
    server, network = state.server, model.network
    every = torch.zeros(pass_size, dtype=torch.long)
    start = server.params.rows(every)
    moments = size(setting.fleet.optimizer.init(start))
    copies = 3 * size(start) + size(server.shared.rows(every)) + size(state.memory.rows(every))
    batches: Any = setting.fleet.batches
    return {
        "base weights": stored([*network.parameters(), *network.buffers()]),
        f"models of the server ({server.models})": size(server.params, server.base, state.moved),
        "what the server keeps and sends beside them": size(server.shared, server.moments),
        f"what {setting.fleet.size} clients remember": state.memory.bytes(),
        f"what {len(report.tokens)} clients report": size(report.delta, report.gradient, report.memory, report.news),
        f"optimizer of the {pass_size} in a pass": moments,
        "their models, starts, gradients, memories": copies,
        "activations and temporaries of a step": max(0.0, step_peak - moments - copies) if step_peak == step_peak else step_peak,
        "kept of the frozen prefix": size(Tree(kept_of(model.prefix))) if model.prefix else 0,
        "training text as tokens": sum(own.tokens.nbytes + own.keep.nbytes for own in batches.blocks),
    }


def kept_of(prefix: Any) -> dict[str, Tensor]:
    """What is in memory of what the frozen prefix made; the rest is in a file."""
    return {str(key): kept for key, kept in prefix.kept.items() if isinstance(kept, Tensor)}


def why(setting: Setting, runtime: Runtime, batch: int, length: int, passes: int) -> str:
    """Why so many clients train in one pass."""
    micro, cohort, device = setting.fleet.micro or setting.cohort, setting.cohort, runtime.torch_device()
    if runtime.micro:
        return f"--micro {runtime.micro} asks for it"
    if runtime.micro == 0:
        return "a trial by the clock (--micro 0) chose it"
    if micro >= cohort:
        return "the whole cohort fits"
    each = passes * batch * length * bytes_per_token(setting.model.network)
    if device.type == "cpu" and micro == max(1, CPU_TOKENS // (batch * length)):
        return f"of {batch} x {length} tokens each, about {CPU_TOKENS:,} tokens keep a processor's cache warm"
    if device.type == "cpu" and micro == max(1, int(CPU_BYTES // each)):
        return (f"a client's activations take about {each / 1e6:,.0f} MB, and a pass on a processor that holds more than "
                f"{CPU_BYTES / 1e9:g} GB of them is no faster")
    return (f"a client's activations take about {each / 1e6:,.0f} MB, and {ROOM:.0%} of the {free_memory(device) / 1e9:,.1f} GB "
            "that are free may go to them")
