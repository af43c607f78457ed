"""What a round of local training is made of: its operations by kind, the FLOPs that it needs, the bytes that a step touches.

All of it is seen in replays of a round that has been: training is a function of the state, so a replay changes nothing. The
ranges ``fedrift.*`` are in the trace too.
"""

from __future__ import annotations

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

from ..fleet import SimulatedFleet
from ..optimizers import Optimizer
from ..tree import Tree
from ..values import Report

FROZEN, OWN, ATTENTION, HEAD = "frozen products", "clients' own products", "attention", "head and loss"
BETWEEN, OPTIMIZER, ALGORITHM, DATA, IDLE = "elementwise and copies", "optimizer", "algorithm", "data", "Python and idle"
KINDS = (FROZEN, OWN, ATTENTION, HEAD, BETWEEN, OPTIMIZER, ALGORITHM, DATA, IDLE)
"""One weight for all clients (mm, addmm), or a weight for each (bmm, baddbmm); what lies between them in the blocks; what the
algorithm adds (clipping, corrections, running means); the time in which no operation ran."""

PRODUCTS = {"aten::mm": FROZEN, "aten::addmm": FROZEN, "aten::bmm": OWN, "aten::baddbmm": OWN, "aten::baddbmm_": OWN,
            "aten::addmm_": FROZEN}
RANGES = {"fedrift.data": DATA, "fedrift.optimizer": OPTIMIZER, "fedrift.loss": BETWEEN}
Train = Callable[[], Report]


@dataclass(frozen=True)
class Named:
    """An optimizer whose steps are a range of the trace."""

    optimizer: Optimizer
    lr: float

    def init(self, params: Tree) -> Tree:
        return self.optimizer.init(params)

    def step(self, params: Tree, grad: Tree, moments: Tree) -> tuple[Tree, Tree]:
        with record_function("fedrift.optimizer"):
            return replace(self.optimizer, lr=self.lr).step(params, grad, moments)  # type: ignore[type-var]


def ranged(fleet: SimulatedFleet, steps: int | None = None) -> SimulatedFleet:
    """The fleet with its data, losses and optimizer as ranges of the trace; of every round its first ``steps``."""
    def batches(round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        every = islice(fleet.batches(round, cohort), steps)
        while True:
            with record_function("fedrift.data"):
                batch = next(every, None)
            if batch is None:
                return
            yield batch

    def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
        with record_function("fedrift.loss"):
            return fleet.objective(params, batch)

    return replace(fleet, batches=batches, objective=loss, optimizer=Named(fleet.optimizer, fleet.optimizer.lr))


def kinds_of(train: Train, device: torch.device, trace: Path | None = None) -> tuple[dict[str, float], float, Report]:
    """Seconds of each kind of work, which sum to the seconds of the whole replay, both told; and what it trained.

    The profiler itself takes some microseconds an operation, which show as Python and idle and in the smallest operations.
    """
    doing = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=doing) as seen, record_function("fedrift.training"):
        report = train()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    if trace is not None:
        seen.export_chrome_trace(str(trace))
    return (*summed(seen.events() or [], device.type == "cuda"), report)


def summed(events: Iterable[Any], cuda: bool) -> tuple[dict[str, float], float]:
    """Seconds by kind and in all, of a profile's events."""
    seconds, wall = dict.fromkeys(KINDS, 0.0), 0.0
    context: dict[int, str] = {}
    events = sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end))
    for event in events:
        above = context.get(event.cpu_parent.id, "") if event.cpu_parent else ""
        context[event.id] = place = placed(event.name, above)
        if event.name == "fedrift.training":
            wall = max(wall, event.cpu_time_total / 1e6)
        elif event.name.startswith("aten::"):
            took = event.self_device_time_total if cuda else event.self_cpu_time_total
            seconds[kind_of(event.name, place)] += took / 1e6
    seconds[IDLE] = max(0.0, wall - sum(seconds.values()))
    return seconds, sum(seconds.values())


def placed(name: str, above: str) -> str:
    """What an operation belongs to, by its name and what it was called from."""
    if name in RANGES:
        return RANGES[name]
    if "Head" in name:
        return HEAD
    if "attention" in name:
        return ATTENTION
    return BETWEEN if name.startswith("autograd::") and not above else above


def kind_of(name: str, place: str) -> str:
    return PRODUCTS.get(name, BETWEEN) if place == BETWEEN else place or ALGORITHM


def flops_of(train: Train) -> tuple[float, Report]:
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
            lambda grad, q, k, v, *rest, **named: 5 * sdpa_flop(q, k, v) / 2)
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        report = train()
    return float(counter.get_total_flops()), report


def bytes_of(train: Train, device: torch.device) -> float:
    """The most bytes that tensors made in the replay held at one time; NaN where torch does not tell (Apple's GPU)."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        train()
        return float(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        return float("nan")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        train()
    held = most = 0
    told: Any = seen.profiler
    for event in sorted((each for each in told.kineto_results.events() if each.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return float(most)


__all__ = ["IDLE", "KINDS", "bytes_of", "flops_of", "kinds_of", "ranged"]
