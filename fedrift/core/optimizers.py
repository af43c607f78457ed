"""Optimizers as pure functions on trees, for the local steps of clients and for the step of the server.

The "gradient" of a server optimizer is the negative mean update (Reddi et al., "Adaptive Federated Optimization", ICLR 2021,
arXiv:2003.00295, Algorithm 2). The server optimizer ``Sgd(1.0)`` is therefore FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Protocol

from annotated_types import Ge, Gt, Interval, Lt

from .lazy_imports import torch
from .tree import Tree

Rate = Annotated[float, Gt(0)]
Decay = Annotated[float, Ge(0), Lt(1)]


class Optimizer(Protocol):
    """An optimizer: a frozen dataclass whose methods do not modify their arguments.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class SignSgd:
        ...     adaptive = True
        ...     lr: float = 0.001
        ...
        ...     def init(self, params):
        ...         return Tree()
        ...
        ...     def step(self, params, grad, opt_state):
        ...         return params - self.lr * grad.map(torch.sign), opt_state
    """

    @property
    def lr(self) -> float:
        """The learning rate."""
        ...

    def init(self, params: Tree) -> Tree:
        """Return the initial moments for ``params [A, ...]``; every leaf has the leading axis A. An empty tree means none."""
        ...

    def step(self, params: Tree, grad: Tree, opt_state: Tree) -> tuple[Tree, Tree]:
        """Return the next params and moments.

        Args:
            params: The current parameters, ``[A, ...]``; each row is an independent model.
            grad: The gradient, ``[A, ...]``.
            opt_state: The moments from ``init`` or from the previous step.
        """
        ...


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent, optionally with Polyak's heavy-ball momentum.

    The step is v <- momentum v + (1 - dampening) g, w <- w - lr v. As the server optimizer with momentum it is FedAvgM
    (Hsu et al. 2019, arXiv:1909.06335).

    Args:
        lr: Learning rate.
        momentum: Factor of the previous velocity v.
        dampening: The gradient is multiplied by 1 - dampening before it is added to v.
        weight_decay: Factor of the L2 term that is added to the gradient, as in ``torch.optim.SGD``.

    Example:
        >>> import torch
        >>> weights, gradient, optimizer = Tree(w=torch.ones(1, 2)), Tree(w=torch.ones(1, 2)), Sgd(lr=0.5)
        >>> optimizer.step(weights, gradient, optimizer.init(weights))[0]
        {'w': tensor([[0.5000, 0.5000]])}
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

    The rule is element-wise, so on stacked leaves every client has its own optimizer. If all rows have taken the same number of
    steps, torch's fused CPU kernel computes the next step in one pass over memory instead of about fifteen.

    Args:
        lr: Learning rate.
        betas: Factors of the previous first and second moment.
        eps: Number that is added to the root of the second moment.
        weight_decay: Factor of the weights that is subtracted from them in each step, times the learning rate.

    Example:
        >>> import torch
        >>> weights, gradient, optimizer = Tree(w=torch.ones(1, 2)), Tree(w=torch.ones(1, 2)), AdamW(lr=0.5, weight_decay=0.0)
        >>> optimizer.step(weights, gradient, optimizer.init(weights))[0]
        {'w': tensor([[0.5000, 0.5000]])}
    """

    adaptive: ClassVar[bool] = True  # the gradient is rescaled per coordinate
    lr: Rate = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def init(self, params: Tree) -> Tree:
        rows = len(next(iter(params.values())))
        count = torch.zeros(rows, dtype=torch.float64, device=params.device)
        return Tree({"count": count, **with_prefix("m", params.zeros_like()), **with_prefix("v", params.zeros_like())})

    def step(self, params: Tree, grad: Tree, opt_state: Tree) -> tuple[Tree, Tree]:
        count = opt_state["count"] + 1
        fusable = count.device.type == "cpu" and bool((count == count[0]).all())
        return (self._fused_step if fusable else self._unfused_step)(params, grad, opt_state, count)

    def _unfused_step(self, params: Tree, grad: Tree, opt_state: Tree, count: torch.Tensor) -> tuple[Tree, Tree]:
        """Compute the step with an own step count for each row."""
        beta1, beta2 = self.betas
        m = beta1 * select_prefix("m", opt_state) + (1 - beta1) * grad
        v = beta2 * select_prefix("v", opt_state) + (1 - beta2) * (grad * grad)
        scale = self.lr / (1 - beta1**count)  # [C]: clients that have finished their local steps have smaller counts
        denominator = (v.map(torch.sqrt) / (1 - beta2**count).sqrt()) + self.eps
        params = params * (1 - self.lr * self.weight_decay) - (m / denominator) * scale
        return params, Tree({"count": count, **with_prefix("m", m), **with_prefix("v", v)})

    def _fused_step(self, params: Tree, grad: Tree, opt_state: Tree, count: torch.Tensor) -> tuple[Tree, Tree]:
        """Compute the same step with torch's fused kernel, on copies because the kernel works in place."""
        from torch.optim.adamw import adamw

        copy = partial(torch.clone, memory_format=torch.contiguous_format)
        params, m, v = (tree.map(copy) for tree in (params, select_prefix("m", opt_state), select_prefix("v", opt_state)))
        previous_steps = list(torch.full((len(params),), float(count[0] - 1)).unbind())
        adamw(
            list(params.values()),
            [grad[name].contiguous() for name in params],
            [m[name] for name in params],
            [v[name] for name in params],
            [],
            previous_steps,
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
        return params, Tree({"count": count, **with_prefix("m", m), **with_prefix("v", v)})


@dataclass(frozen=True)
class Adam:
    """FedAdam as the server optimizer: m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, w <- w - lr m / (sqrt v + tau).

    Reddi et al., ICLR 2021, arXiv:2003.00295, Algorithm 2. There is no bias correction, and m_-1 = 0, v_-1 = tau^2.
    The second moment uses g, the negative mean update, and not m.

    Args:
        lr: Learning rate.
        betas: Factors b1 and b2 of the previous first and second moment.
        tau: Number that is added to the root of the second moment; a larger one makes the steps less adaptive.

    Example:
        >>> fedrift.load_config(config, ["algorithm.server_optimizer={type: Adam, lr: 0.1}"]).algorithm.server_optimizer
        Adam(lr=0.1, betas=(0.9, 0.99), tau=0.001)
    """

    adaptive: ClassVar[bool] = True
    lr: Rate = 0.01
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    tau: Rate = 1e-3

    def init(self, params: Tree) -> Tree:
        initial_v = params.map(lambda leaf: torch.full_like(leaf, self.tau**2))
        return Tree({**with_prefix("m", params.zeros_like()), **with_prefix("v", initial_v)})

    def step(self, params: Tree, grad: Tree, opt_state: Tree) -> tuple[Tree, Tree]:
        m = self.betas[0] * select_prefix("m", opt_state) + (1 - self.betas[0]) * grad
        v = self.second_moment(select_prefix("v", opt_state), grad * grad)
        params = params - self.lr * (m / (v.map(torch.sqrt) + self.tau))
        return params, Tree({**with_prefix("m", m), **with_prefix("v", v)})

    def second_moment(self, v: Tree, square: Tree) -> Tree:
        """Return the next second moment from the previous one and from g^2."""
        return self.betas[1] * v + (1 - self.betas[1]) * square


@dataclass(frozen=True)
class Yogi(Adam):
    """FedYogi: ``Adam`` with v <- v - (1 - b2) g^2 sign(v - g^2), so that v changes by at most (1 - b2) g^2.

    Example:
        >>> fedrift.load_config(config, ["algorithm.server_optimizer={type: Yogi, lr: 0.1}"]).algorithm.server_optimizer
        Yogi(lr=0.1, betas=(0.9, 0.99), tau=0.001)
    """

    def second_moment(self, v: Tree, square: Tree) -> Tree:
        return v - (1 - self.betas[1]) * (square * (v - square).map(torch.sign))


@dataclass(frozen=True)
class Adagrad(Adam):
    """FedAdagrad: ``Adam`` with v <- v + g^2. The paper sets b1 = 0; b2 is not used.

    Example:
        >>> fedrift.load_config(config, ["algorithm.server_optimizer={type: Adagrad, lr: 0.1}"]).algorithm.server_optimizer
        Adagrad(lr=0.1, betas=(0.0, 0.0), tau=0.001)
    """

    betas: tuple[Decay, Decay] = (0.0, 0.0)

    def second_moment(self, v: Tree, square: Tree) -> Tree:
        return v + square


@dataclass(frozen=True)
class SwaSgd:
    """Gradient descent whose last models are averaged: stochastic weight averaging (SWA) of the server's models.

    Izmailov, Podoprikhin, Garipov, Vetrov & Wilson, "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018,
    arXiv:1803.05407 (Algorithm 1, with a cycle length of one and a constant rate); on the server of a federation: Caldarola, Caputo
    & Ciccone, ECCV 2022, arXiv:2203.11834.

    Every step is w <- w - lr g. In every step whose number is a multiple of ``period``, w is then replaced by the mean of the models
    after the last ``num_averaged`` steps. With a period of ``training.num_rounds`` a run ends with this mean, and all rounds before
    are those of ``Sgd``. A model that no client of the cohort trains takes no step in that round, so that with clusters its mean comes
    later, or not at all.

    Args:
        lr: Learning rate.
        period: The number of steps after which the mean replaces the model.
        num_averaged: The number of models in the mean; at most ``period``, which means all of them. 1 gives ``Sgd``.

    Example:
        >>> import torch
        >>> weights, gradient, optimizer = Tree(w=torch.zeros(1, 1)), Tree(w=torch.ones(1, 1)), SwaSgd(lr=1.0, period=3, num_averaged=2)
        >>> moments, path = optimizer.init(weights), []
        >>> for _ in range(4):
        ...     weights, moments = optimizer.step(weights, gradient, moments)
        ...     path.append(weights["w"].item())
        >>> path
        [-1.0, -2.0, -2.5, -3.5]
    """

    lr: Rate = 1.0
    period: Annotated[int, Ge(1)] = 10
    num_averaged: Annotated[int, Ge(1)] = 5

    def init(self, params: Tree) -> Tree:
        rows = len(next(iter(params.values())))
        count = torch.zeros(rows, dtype=torch.float64, device=params.device)
        return Tree({"count": count, **with_prefix("mean", params.zeros_like())})

    def step(self, params: Tree, grad: Tree, opt_state: Tree) -> tuple[Tree, Tree]:
        params = params - self.lr * grad
        count = opt_state["count"] + 1
        position = (count - 1) % self.period + 1
        num_models = position - max(self.period - self.num_averaged, 0)  # in the mean after this step; below 1 before the first of them
        mean = select_prefix("mean", opt_state)
        mean = (mean + (params - mean) / num_models.clamp_min(1)).where(num_models > 1, params)
        params = mean.where(position == self.period, params)
        return params, Tree({"count": count, **with_prefix("mean", mean)})


def is_adaptive(optimizer: Any) -> bool:
    """Return whether an optimizer rescales the gradient per coordinate, which also rescales any term added to the gradient."""
    return bool(getattr(optimizer, "adaptive", False))


def with_prefix(prefix: str, tree: Tree) -> dict[str, torch.Tensor]:
    """Rename the leaves of a tree to ``<prefix>.<name>``, so that several trees can be stored in one."""
    return {f"{prefix}.{name}": leaf for name, leaf in tree.items()}


def select_prefix(prefix: str, tree: Tree) -> Tree:
    """Return the leaves that ``with_prefix`` stored under a prefix, with their original names."""
    start = prefix + "."
    return Tree({name[len(start) :]: leaf for name, leaf in tree.items() if name.startswith(start)})


__all__ = ["Adagrad", "Adam", "AdamW", "Optimizer", "Sgd", "SwaSgd", "Yogi", "is_adaptive"]
