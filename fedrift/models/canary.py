"""The canary: one training step computed again in single precision on the CPU, before a run believes its device.

Accelerators have been silently wrong before (Apple's GPU: gradients of strided tensors, very large heads; 4-bit kernels without
a backward pass). One step of one client costs seconds and tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..tree import Tree
from .stacked import StackedModel

# Relative difference of the loss, and 1 - cosine of the gradients, that rounding may make.
ROUNDING = {"float32": (1e-3, 1e-4), "bfloat16": (3e-2, 3e-2), "float16": (1e-2, 1e-2), "float64": (1e-3, 1e-4)}


@dataclass(frozen=True)
class Canary:
    """How far a device is from the CPU: |loss - loss'| / |loss'|, and 1 - cosine of the two gradients."""

    loss: float
    gradient: float

    def check(self, dtype: str, device: str) -> None:
        """Raise `UserError` where it is more than rounding."""
        loss, gradient = ROUNDING[dtype]
        if not (self.loss <= loss and self.gradient <= gradient):  # NaN is wrong too
            raise UserError(f"{device} computes a training step of this model in {dtype} wrongly: its loss is {self.loss:.1e} "
                            f"off the CPU's (rounding makes {loss:.0e}), its gradient turned by {self.gradient:.1e} "
                            f"(1 - cosine; rounding makes {gradient:.0e}). Say --device cpu, or --dtype float32; "
                            "--no-canary runs in spite of it.")


def replay(model: StackedModel, plain: StackedModel, params: Tree, batch: dict[str, Tensor]) -> Canary:
    """One step of ``params [C, ...]`` on ``batch`` by the model where it is and by ``plain``, which is on the CPU."""
    loss, gradient = step(model, params, batch)
    theirs, wanted = step(plain, params.to(torch.device("cpu")), {name: value.cpu() for name, value in batch.items()})
    apart = (loss - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)
    cosine = gradient @ wanted / (gradient.norm() * wanted.norm()).clamp_min(1e-30)
    return Canary(float(apart), float(1 - cosine))


def step(model: StackedModel, params: Tree, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Losses ``[C]`` and the gradient as one vector; float64, on the CPU.

    Adapters begin at B = 0, where A has no gradient: B is moved first, so that both factors are seen.
    """
    leaves = {name: (leaf.detach() + (0.01 if name.endswith(".B") else 0)).requires_grad_() for name, leaf in params.items()}
    loss = model(Tree(leaves), batch)
    found = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return loss.detach().cpu().double(), torch.cat([leaf.detach().cpu().double().flatten() for leaf in found])
