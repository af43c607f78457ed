"""The adapters of a tree, seen as products: ``<module>.B [., O, R]`` times ``<module>.A [., R, I]``.

Separate means of B and A are not the mean of B A: with p_k, B̄, Ā the weights and means,
sum_k p_k B_k A_k - B̄ Ā = sum_k p_k (B_k - B̄)(A_k - Ā). What the product aggregates share is here.
The scale alpha/r is not: they work below it, and the model applies it to base and adapter alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...optimizers import Sgd
from ...tree import Tree, wide
from ...values import Report, Server
from .mean import Frame, Mean
from .pooled import by_model


@dataclass(frozen=True)
class Products(Mean):
    """The frame of aggregates that look at B A, not at B and A."""

    pairs: ClassVar[bool] = True

    def refusals(self, algorithm: Frame, leaves: Collection[str]) -> list[str]:
        said, ours = needs_adapters(self, leaves), type(self).__name__
        if algorithm.server != Sgd(1.0):
            said.append(f"{ours} sets the adapters to what the clients' products say; a server optimiser would move "
                        f"them elsewhere: use server=Sgd(1.0), not {algorithm.server}")
        if algorithm.rescales:
            said.append(f"{ours} multiplies the clients' factors, and {type(algorithm).__name__} rescales the "
                        "changes or steps beyond them, which does not so with their products: use Mean or FFA")
        return said


def needs_adapters(rule: Mean, leaves: Collection[str]) -> list[str]:
    if modules(leaves):
        return []
    return [f"{type(rule).__name__} is about low-rank adapters, and none are trained: use tune: {{is: Lora}}"]


def recalls(algorithm: Frame, leaves: Collection[str]) -> bool:
    """Whether clients keep memories that look like the params."""
    kept = algorithm.memory(Tree({name: torch.zeros(1, 1, 1) for name in leaves}))
    return any(name.endswith(tuple(leaves)) for name in kept)


def forgets(rule: Mean, algorithm: Frame, leaves: Collection[str]) -> list[str]:
    """The refusal of such memories by an aggregate that changes what the params mean."""
    if not recalls(algorithm, leaves):
        return []
    return [f"{type(rule).__name__} changes what A and B mean from round to round, and {type(algorithm).__name__} "
            "keeps memories in their terms; use Mean or FFA with it"]


def decays(rule: Mean, server: Any) -> list[str]:
    """The refusal of a server optimiser that moves leaves without being told to, by an aggregate that holds some still."""
    if not getattr(server, "weight_decay", 0):
        return []
    return [f"{type(rule).__name__} holds one factor still; the weight decay of {server} would move it"]


def modules(leaves: Collection[str]) -> list[str]:
    """The modules that wear an adapter."""
    return [name.removesuffix(".A") for name in leaves if name.endswith(".A") and name[:-1] + "B" in leaves]


def products(server: Server, report: Report, module: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each model that was trained, sum_k p_k B_k A_k as two factors, ``[O, nR]`` (with the p_k) and ``[nR, I]``."""
    rows = report.group
    down = wide(server.params[module + ".A"])[rows] + wide(report.delta[module + ".A"])  # [C, R, I]
    up = wide(server.params[module + ".B"])[rows] + wide(report.delta[module + ".B"])  # [C, O, R]
    for model, mine in by_model(report):
        share = wide(report.weight)[mine] / report.weight[mine].sum()
        yield model, (up[mine] * share.view(-1, 1, 1)).transpose(0, 1).flatten(1), down[mine].flatten(0, 1)


def no_base(params: Tree) -> Tree:
    """Nothing under the adapters yet, ``<module>.base [M, O, I]``."""
    pairs = {module: (params[module + ".B"], params[module + ".A"]) for module in modules(params.keys())}
    return Tree({f"{module}.base": up.new_zeros(*up.shape[:2], down.shape[2]) for module, (up, down) in pairs.items()})


def lifted(base: Tree, module: str, model: int, more: Tensor) -> Tensor:
    """The base of a module with ``more [O, I]`` added for one model."""
    leaf = base[f"{module}.base"]
    return leaf.index_add(0, torch.tensor([model], device=leaf.device), more.to(leaf).unsqueeze(0))


__all__ = ["Products", "decays", "forgets", "lifted", "modules", "needs_adapters", "no_base", "products", "recalls"]
