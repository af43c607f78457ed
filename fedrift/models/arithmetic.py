"""Choose the arithmetic of a run, and check that its device computes correctly.

The choice between float32 and bfloat16 for the frozen base weights comes from timing training steps in both.

Processors differ: with AMX, products in bfloat16 are several times as fast as in float32; with AVX-512 alone or AVX2 they are
slower. The names of the instructions do not suffice, because the norms, the attention and the head count too.

Before a run starts, one training step on its device is compared with the same step in float32 on the CPU. Accelerators have computed
wrong results silently (Apple's GPU: gradients of strided tensors, very large heads; 4-bit kernels without a backward pass). One step of
one client takes seconds and detects this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from ..core.errors import UserError
from ..core.lazy_imports import torch
from ..core.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor

    from .stacked_model import StackedModel

MIN_SPEEDUP = 1.3  # below this, float32 is used, because bfloat16 rounds 2^16 times more coarsely
TRIAL_SECONDS = 1.0  # time of the trial, unless a step with one sequence takes longer
TRIAL_REPEATS = 3  # measurements in each arithmetic; the fastest counts

Arithmetic = Literal["float32", "bfloat16"]
ARITHMETICS: tuple[Arithmetic, ...] = ("float32", "bfloat16")
TrialStep = Callable[[Arithmetic, int], object]
"""Computes one forward and backward pass in an arithmetic with a number of sequences, and waits for the result."""


@dataclass(frozen=True)
class ArithmeticChoice:
    """The arithmetic that ``--dtype fastest`` stands for.

    Attributes:
        dtype: ``float32`` or ``bfloat16``.
        speedup: The time of a step in float32 divided by that of the same step in bfloat16. None: a stored run decides, without a trial.
    """

    dtype: Arithmetic
    speedup: float | None = None

    def describe(self) -> str:
        """Return one line with the choice and its reason."""
        if self.speedup is None:
            return f"arithmetic {self.dtype}, that of a stored run of the same command"
        return (
            f"arithmetic {self.dtype}: in a trial, a training step in bfloat16 was {self.speedup:.2f} times as fast as in float32, "
            f"and bfloat16 is used from {MIN_SPEEDUP} on"
        )


def choose_arithmetic(step: TrialStep, max_sequences: int, clock: Callable[[], float] = perf_counter) -> ArithmeticChoice:
    """Time training steps in both arithmetics in alternation, and choose bfloat16 if it is at least `MIN_SPEEDUP` times as fast.

    The first two steps in each arithmetic have one sequence. The first sets up the kernels; the time of the second determines how many
    sequences the further steps have, so that the trial ends within `TRIAL_SECONDS`. Without time for further steps, the second decide. If
    even the first steps take longer than the trial, they decide for float32 if it was faster.

    Args:
        step: Computes a step.
        max_sequences: The largest number of sequences in a step.
        clock: Returns the time in seconds.
    """
    start = clock()
    first = {dtype: time_step(step, dtype, 1, clock) for dtype in ARITHMETICS}
    if clock() - start >= TRIAL_SECONDS and first["float32"] <= first["bfloat16"]:  # too long to be the time of setting up kernels
        return make_choice(first)
    second = {dtype: time_step(step, dtype, 1, clock) for dtype in ARITHMETICS}
    remaining = TRIAL_SECONDS - (clock() - start)
    num_sequences = max(1, min(max_sequences, int(remaining / (TRIAL_REPEATS * max(sum(second.values()), 1e-6)))))
    fastest = second if num_sequences == 1 else dict.fromkeys(ARITHMETICS, float("inf"))
    for repeat in range(TRIAL_REPEATS):
        if (repeat or num_sequences == 1) and clock() - start >= TRIAL_SECONDS:
            break
        for dtype in ARITHMETICS:
            fastest[dtype] = min(fastest[dtype], time_step(step, dtype, num_sequences, clock))
    return make_choice(fastest)


def make_choice(seconds: dict[Arithmetic, float]) -> ArithmeticChoice:
    """Return the choice that follows from the time of a step in each arithmetic."""
    speedup = seconds["float32"] / max(seconds["bfloat16"], 1e-9)
    return ArithmeticChoice("bfloat16" if speedup >= MIN_SPEEDUP else "float32", round(speedup, 3))


def time_step(step: TrialStep, dtype: Arithmetic, num_sequences: int, clock: Callable[[], float]) -> float:
    """Return the seconds of one step."""
    start = clock()
    step(dtype, num_sequences)
    return clock() - start


# The largest relative difference of losses, and the largest 1 - cosine of gradients, that rounding explains.
DEVICE_TOLERANCE = {"float32": (1e-3, 1e-4), "bfloat16": (3e-2, 3e-2), "float16": (1e-2, 1e-2), "float64": (1e-3, 1e-4)}


@dataclass(frozen=True)
class DeviceCheck:
    """The difference between a device and the CPU in one training step."""

    loss_error: float  # |loss - reference| / |reference|
    gradient_error: float  # 1 - cosine of the two gradients

    def check(self, dtype: str, device: str) -> None:
        """Check that rounding explains the difference.

        Raises:
            UserError: The difference exceeds the tolerance of the dtype.
        """
        loss, gradient = DEVICE_TOLERANCE[dtype]
        if not (self.loss_error <= loss and self.gradient_error <= gradient):  # this form also rejects NaN
            raise UserError(
                f"{device} computes a training step of this model in {dtype} incorrectly. Relative to the CPU, its loss differs "
                f"by {self.loss_error:.1e} (tolerance {loss:.0e}) and its gradient by {self.gradient_error:.1e} "
                f"(1 - cosine, tolerance {gradient:.0e}). Use --device cpu or --dtype float32; "
                "--no-check-device skips this check."
            )


def compare_step(model: StackedModel, reference: StackedModel, params: Tree, batch: dict[str, Tensor]) -> DeviceCheck:
    """Compute one training step with a model and with its reference on the CPU, and compare them.

    Args:
        model: The model on the device.
        reference: The same model on the CPU.
        params: The trained weights, [C, ...].
        batch: The batch, as in `StackedModel`.
    """
    loss, gradient = loss_and_gradient(model, params, batch)
    reference_loss, reference_gradient = loss_and_gradient(
        reference, params.to(torch.device("cpu")), {name: value.cpu() for name, value in batch.items()}
    )
    loss_error = (loss - reference_loss).abs().max() / reference_loss.abs().max().clamp_min(1e-12)
    cosine = gradient @ reference_gradient / (gradient.norm() * reference_gradient.norm()).clamp_min(1e-30)
    return DeviceCheck(float(loss_error), float(1 - cosine))


def loss_and_gradient(model: StackedModel, params: Tree, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the losses [C] and the gradient as one vector, both float64 on the CPU.

    B of a new adapter is 0, so that the gradient of A vanishes. B is therefore shifted first, so that both factors are compared.
    """
    leaves = {name: (leaf.detach() + (0.01 if name.endswith(".B") else 0)).requires_grad_() for name, leaf in params.items()}
    loss = model(Tree(leaves), batch)
    gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return loss.detach().cpu().double(), torch.cat([leaf.detach().cpu().double().flatten() for leaf in gradients])
