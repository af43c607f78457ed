"""Update rules as pure functions on trees; they serve the clients and the server alike.

On a server the "gradient" is the negative mean update (Reddi et al., "Adaptive Federated
Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2), so ``Sgd(1.0)`` there is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import torch
from annotated_types import Ge, Gt, Interval, Lt
from torch.optim.adamw import adamw

from .tree import Tree

Rate = Annotated[float, Gt(0)]
Decay = Annotated[float, Ge(0), Lt(1)]


class Optimizer(Protocol):
    """``init`` gives the moments of fresh params; ``step`` the next params and moments."""

    @property
    def lr(self) -> float: ...
    def init(self, params: Tree) -> Tree: ...
    def step(self, params: Tree, grad: Tree, opt_state: Tree) -> tuple[Tree, Tree]: ...


@dataclass(frozen=True)
class Sgd:
    """Gradient descent; with momentum, Polyak's heavy ball: v <- momentum v + (1 - dampening) g, w <- w - lr v.

    As a server rule with momentum it is FedAvgM (Hsu et al. 2019, arXiv:1909.06335).
    Weight decay is the L2 term added to the gradient, as in ``torch.optim.SGD``.
    """

    lr: Rate = 0.1
    momentum: Decay = 0.0
    dampening: Annotated[float, Interval(ge=0, le=1)] = 0.0
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def init(self, params: Tree) -> Tree:
        return params.zeros_like() if self.momentum else Tree()

    def step(self, params: Tree, grad: Tree, opt_state: Tree) -> tuple[Tree, Tree]:
        if self.weight_decay:
            grad = grad + self.weight_decay * params
        if self.momentum:
            grad = opt_state = self.momentum * opt_state + (1 - self.dampening) * grad
        return params - self.lr * grad, opt_state


@dataclass(frozen=True)
class AdamW:
    """Adam with bias correction and decoupled weight decay, as ``torch.optim.AdamW`` (Loshchilov & Hutter 2019).

    The rule is element-wise, so on stacked leaves it is each client's own optimiser. Where all rows have taken the same
    number of steps, torch's fused kernel takes the next one, in one pass over memory instead of some fifteen.
    """

    adaptive: ClassVar[bool] = True  # rescales the gradient coordinate by coordinate
    lr: Rate = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def init(self, params: Tree) -> Tree:
        rows = len(next(iter(params.values())))
        count = torch.zeros(rows, dtype=torch.float64, device=next(iter(params.values())).device)
        return Tree({"count": count, **with_prefix("m", params.zeros_like()), **with_prefix("v", params.zeros_like())})

    def step(self, params: Tree, grad: Tree, opt_state: Tree) -> tuple[Tree, Tree]:
        count = opt_state["count"] + 1
        even = count.device.type == "cpu" and bool((count == count[0]).all())
        return (self._fused_step if even else self._unfused_step)(params, grad, opt_state, count)

    def _unfused_step(self, params: Tree, grad: Tree, opt_state: Tree, count: torch.Tensor) -> tuple[Tree, Tree]:
        """The rule, row by row."""
        one, two = self.betas
        first = one * select_prefix("m", opt_state) + (1 - one) * grad
        second = two * select_prefix("v", opt_state) + (1 - two) * (grad * grad)
        scale = self.lr / (1 - one**count)  # [C]: rows that were held still count their own steps
        root = (second.map(torch.sqrt) / (1 - two**count).sqrt()) + self.eps
        params = params * (1 - self.lr * self.weight_decay) - (first / root) * scale
        return params, Tree({"count": count, **with_prefix("m", first), **with_prefix("v", second)})

    def _fused_step(self, params: Tree, grad: Tree, opt_state: Tree, count: torch.Tensor) -> tuple[Tree, Tree]:
        """The same step by torch's kernel, on copies: trees are values."""
        params, first, second = (
            tree.map(contiguous_copy) for tree in (params, select_prefix("m", opt_state), select_prefix("v", opt_state))
        )
        taken = [torch.tensor(float(count[0] - 1)) for _ in params]
        adamw(
            list(params.values()),
            [grad[name].contiguous() for name in params],
            [first[name] for name in params],
            [second[name] for name in params],
            [],
            taken,
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )
        return params, Tree({"count": count, **with_prefix("m", first), **with_prefix("v", second)})


@dataclass(frozen=True)
class Adam:
    """FedAdam on a server: m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, w <- w - lr m / (sqrt v + tau).

    Reddi et al., ICLR 2021, arXiv:2003.00295, Algorithm 2: no bias correction, m_-1 = 0, v_-1 = tau^2.
    It is g, the negative mean change, that is squared, not m.
    """

    adaptive: ClassVar[bool] = True
    lr: Rate = 0.01
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    tau: Rate = 1e-3

    def init(self, params: Tree) -> Tree:
        floor = params.map(lambda leaf: torch.full_like(leaf, self.tau**2))
        return Tree({**with_prefix("m", params.zeros_like()), **with_prefix("v", floor)})

    def step(self, params: Tree, grad: Tree, opt_state: Tree) -> tuple[Tree, Tree]:
        first = self.betas[0] * select_prefix("m", opt_state) + (1 - self.betas[0]) * grad
        second = self.second_moment(select_prefix("v", opt_state), grad * grad)
        params = params - self.lr * (first / (second.map(torch.sqrt) + self.tau))
        return params, Tree({**with_prefix("m", first), **with_prefix("v", second)})

    def second_moment(self, v: Tree, square: Tree) -> Tree:
        return self.betas[1] * v + (1 - self.betas[1]) * square


@dataclass(frozen=True)
class Yogi(Adam):
    """FedYogi: v <- v - (1 - b2) g^2 sign(v - g^2); as ``Adam`` otherwise. v moves by at most (1 - b2) g^2."""

    def second_moment(self, v: Tree, square: Tree) -> Tree:
        return v - (1 - self.betas[1]) * (square * (v - square).map(torch.sign))


@dataclass(frozen=True)
class Adagrad(Adam):
    """FedAdagrad: v <- v + g^2; as ``Adam`` otherwise. The paper takes b1 = 0; b2 is not used."""

    betas: tuple[Decay, Decay] = (0.0, 0.0)

    def second_moment(self, v: Tree, square: Tree) -> Tree:
        return v + square


def is_adaptive(optimizer: Any) -> bool:
    """Whether a rule rescales the gradient coordinate by coordinate, so that adding to it means something else."""
    return bool(getattr(optimizer, "adaptive", False))


def contiguous_copy(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.clone(memory_format=torch.contiguous_format)


def with_prefix(prefix: str, tree: Tree) -> dict[str, torch.Tensor]:
    """The leaves of a tree under ``<prefix>.<name>``, to be kept with others in one tree."""
    return {f"{prefix}.{name}": leaf for name, leaf in tree.items()}


def select_prefix(prefix: str, tree: Tree) -> Tree:
    """What ``named`` put under this prefix."""
    start = prefix + "."
    return Tree({name[len(start) :]: leaf for name, leaf in tree.items() if name.startswith(start)})


__all__ = ["Adagrad", "Adam", "AdamW", "Optimizer", "Sgd", "Yogi", "is_adaptive"]
