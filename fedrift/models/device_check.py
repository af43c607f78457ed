"""Compare one training step on a device with the same step in float32 on the CPU before a run starts.

Accelerators have computed wrong results silently (Apple's GPU: gradients of strided tensors, very large heads; 4-bit kernels
without a backward pass). One step of one client takes seconds and detects this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.tree import Tree
from .stacked_model import StackedModel

# The largest relative difference of losses, and the largest 1 - cosine of gradients, that rounding explains.
DEVICE_TOLERANCE = {"float32": (1e-3, 1e-4), "bfloat16": (3e-2, 3e-2), "float16": (1e-2, 1e-2), "float64": (1e-3, 1e-4)}


@dataclass(frozen=True)
class DeviceCheck:
    """The difference between a device and the CPU in one training step.

    Attributes:
        loss_error: |loss - reference| / |reference|.
        gradient_error: 1 - cosine of the two gradients.
    """

    loss_error: float
    gradient_error: float

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
