"""Models of one's own, in plain numbers: each function answers with the model that the asked client wears.

``Problem.asks`` is the client. One that never took part wears the first model.
"""

# The functions given to ``local`` and ``mean`` are called before their loop goes on.
# ruff: noqa: B023
from __future__ import annotations

from collections.abc import Callable

from ..problem import Problem
from .rules import local, mean, present


def ditto(p: Problem) -> list[float]:
    x, own, seen = p.x, [p.x] * p.size, []
    for who in present(p):
        w = x
        x = mean(p, who, lambda k: local(p, k, w))
        for k in who:
            for _ in range(p.steps[k]):
                own[k] -= p.lr * (p.gradient(k, own[k]) + p.options["lam"] * (own[k] - w))
        seen.append(own[p.asks])
    return seen


def fine_tuned(p: Problem) -> list[float]:
    """What its local steps made of the model it last received."""
    x, own, seen = p.x, [p.x] * p.size, []
    for who in present(p):
        for k in who:
            own[k] = local(p, k, x)
        x = mean(p, who, lambda k: own[k])
        seen.append(own[p.asks])
    return seen


def pfedme(p: Problem) -> list[float]:
    """theta goes on from where it was; a last solve that is cut short counts."""
    lam, x, own, seen = p.options["lam"], p.x, [p.x] * p.size, []
    for who in present(p):
        ends = {}
        for k in who:
            theta = y = x
            for step in range(1, p.steps[k] + 1):
                theta -= p.lr * (p.gradient(k, theta) + lam * (theta - y))
                if step % p.options["inner"] == 0 or step == p.steps[k]:
                    y -= p.options["eta"] * lam * (y - theta)
            own[k], ends[k] = theta, y
        x = (1 - p.options["beta"]) * x + p.options["beta"] * mean(p, who, lambda k: ends[k])
        seen.append(x if p.asks < 0 else own[p.asks])
    return seen


PERSONAL: dict[str, Callable[[Problem], list[float]]] = {rule.__name__: rule for rule in (ditto, fine_tuned, pfedme)}

__all__ = ["PERSONAL"]
