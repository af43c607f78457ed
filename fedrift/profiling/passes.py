"""The number of clients per forward pass: the reason for it, and the speed of other numbers."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..config.runtime import Runtime
from ..core.types import RoundResult
from ..engine.build import RunContext, timing_step
from ..simulation.batches import CPU_BYTES_PER_PASS, CPU_TOKENS_PER_PASS, MEMORY_FRACTION, activation_bytes_per_token, free_memory_bytes

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
        f"a client's activations take about {client_bytes / 1e6:,.0f} MB, and activations may use {MEMORY_FRACTION:.0%} of the "
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
