"""The canary: one training step computed again in single precision on the CPU, before a run believes its device.

Accelerators have been silently wrong before (Apple's GPU: gradients of strided tensors, very large heads; 4-bit kernels without
a backward pass). One step of one client costs seconds and tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.tree import Tree
from .stacked_model import StackedModel

# Relative difference of the loss, and 1 - cosine of the gradients, that rounding may make.
DEVICE_TOLERANCE = {"float32": (1e-3, 1e-4), "bfloat16": (3e-2, 3e-2), "float16": (1e-2, 1e-2), "float64": (1e-3, 1e-4)}


@dataclass(frozen=True)
class DeviceCheck:
    """How far a device is from the CPU: |loss - loss'| / |loss'|, and 1 - cosine of the two gradients."""

    loss_error: float
    gradient_error: float

    def check(self, dtype: str, device: str) -> None:
        """Raise `UserError` where it is more than rounding."""
        loss, gradient = DEVICE_TOLERANCE[dtype]
        if not (self.loss_error <= loss and self.gradient_error <= gradient):  # NaN is wrong too
            raise UserError(
                f"{device} computes a training step of this model in {dtype} wrongly: its loss is {self.loss_error:.1e} "
                f"off the CPU's (rounding makes {loss:.0e}), its gradient turned by {self.gradient_error:.1e} "
                f"(1 - cosine; rounding makes {gradient:.0e}). Say --device cpu, or --dtype float32; "
                "--no-check-device runs in spite of it."
            )


def compare_step(model: StackedModel, reference: StackedModel, params: Tree, batch: dict[str, Tensor]) -> DeviceCheck:
    """One step of ``params [C, ...]`` on ``batch`` by the model where it is and by ``reference``, which is on the CPU."""
    loss, gradient = loss_and_gradient(model, params, batch)
    theirs, wanted = loss_and_gradient(reference, params.to(torch.device("cpu")), {name: value.cpu() for name, value in batch.items()})
    apart = (loss - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)
    cosine = gradient @ wanted / (gradient.norm() * wanted.norm()).clamp_min(1e-30)
    return DeviceCheck(float(apart), float(1 - cosine))


def loss_and_gradient(model: StackedModel, params: Tree, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Losses ``[C]`` and the gradient as one vector; float64, on the CPU.

    Adapters begin at B = 0, where A has no gradient: B is moved first, so that both factors are seen.
    """
    leaves = {name: (leaf.detach() + (0.01 if name.endswith(".B") else 0)).requires_grad_() for name, leaf in params.items()}
    loss = model(Tree(leaves), batch)
    found = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return loss.detach().cpu().double(), torch.cat([leaf.detach().cpu().double().flatten() for leaf in found])
