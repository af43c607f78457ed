"""What Flower's two generations of strategies share here: how one is made, and the client behind it.

Clients take gradient steps in plain numbers. ``FedProx`` leaves the proximal term to the user's client and shows it
in its docstring, in both generations, which is what the client here does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from ..problem import Problem

Make = Callable[[Problem, dict[str, Any]], Any]


@dataclass(frozen=True)
class Strategy:
    """One strategy. ``correct``: what the client adds to its gradient, where the documentation says so."""

    algorithm: str
    strategy: str
    make: Make
    correct: Callable[[Problem], Callable[[float, float, float], float]] | None = None

    @property
    def version(self) -> str:
        return version("flwr")

    def trained(self, p: Problem, k: int, w: float) -> float:
        """Where client k ends, from w."""
        follow = self.correct(p) if self.correct else lambda y, w, gradient: gradient
        y = w
        for _ in range(p.steps[k]):
            y -= p.lr * follow(y, w, p.gradient(k, y))
        return y


def adaptive(kind: type[Any], betas: tuple[str, ...] = ("beta1", "beta2")) -> Make:
    """A server optimiser with the problem's options."""
    def make(p: Problem, known: dict[str, Any]) -> Any:
        decays = {f"{beta[:-1]}_{beta[-1]}": p.options[beta] for beta in betas}
        return kind(eta=p.options["server_lr"], eta_l=p.lr, tau=p.options["tau"], **decays, **known)
    return make


def docstring_prox(p: Problem) -> Callable[[float, float, float], float]:
    """FedProx's docstring adds mu/2 |y - w| to the loss: the norm is not squared."""
    return lambda y, w, gradient: gradient + p.options["mu"] / 2 * np.sign(y - w)


__all__ = ["Make", "Strategy", "adaptive", "docstring_prox"]
