"""How adapters are aggregated, in plain matrices: each function answers with u^T W v, W = s (base + B A)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..problem import Adapters, Problem
from .rules import present

Factors = tuple[np.ndarray, np.ndarray]  # B [O, R], A [R, I]
Gather = Callable[[int, list[float], list[Factors], np.ndarray], tuple[Factors, np.ndarray]]
"""``(round, shares, the clients' factors, base) -> (the server's factors, base)``"""


def train(p: Problem, k: int, start: Factors, base: np.ndarray, still: str = "") -> Factors:
    """Client k's factors after its steps on a_k/2 |s (base + B A) - T_k|^2; ``still`` is the factor nobody trains."""
    asked = wanted(p)
    (up, down), goal = start, np.array(asked.targets[k])
    for _ in range(p.steps[k]):
        slope = p.a[k] * asked.scale * (asked.scale * (base + up @ down) - goal)
        up, down = (up if still == "B" else up - p.lr * slope @ down.T,
                    down if still == "A" else down - p.lr * up.T @ slope)
    return up, down


def wanted(p: Problem) -> Adapters:
    assert p.adapters is not None
    return p.adapters


def said(p: Problem, factors: Factors, base: np.ndarray) -> float:
    """What the module answers."""
    asked = wanted(p)
    return float(np.array(asked.u) @ (asked.scale * (base + factors[0] @ factors[1])) @ np.array(asked.v))


def federated(p: Problem, gather: Gather, still: Callable[[int], str] = lambda round: "") -> list[float]:
    asked = wanted(p)
    now, base, seen = (np.array(asked.up), np.array(asked.down)), np.zeros_like(np.array(asked.targets[0])), []
    for round, who in enumerate(present(p)):
        ends = [train(p, k, now, base, still(round)) for k in who]
        shares = [p.count(k) / sum(p.count(j) for j in who) for k in who]
        now, base = gather(round, shares, ends, base)
        seen.append(said(p, now, base))
    return seen


def means(shares: list[float], ends: list[Factors]) -> Factors:
    up, down = (sum(share * end[i] for share, end in zip(shares, ends, strict=True)) for i in (0, 1))
    return np.asarray(up), np.asarray(down)


def ideal(shares: list[float], ends: list[Factors]) -> np.ndarray:
    """sum_k p_k B_k A_k."""
    return np.asarray(sum(share * up @ down for share, (up, down) in zip(shares, ends, strict=True)))


def lora(p: Problem) -> list[float]:
    """Separate means of B and A."""
    return federated(p, lambda round, shares, ends, base: (means(shares, ends), base))


def ffa(p: Problem) -> list[float]:
    return federated(p, lambda round, shares, ends, base: (means(shares, ends), base), lambda round: "A")


def rolora(p: Problem) -> list[float]:
    return federated(p, lambda round, shares, ends, base: (means(shares, ends), base), lambda round: "AB"[round % 2])


def fedex(p: Problem) -> list[float]:
    def gather(round: int, shares: list[float], ends: list[Factors], base: np.ndarray) -> tuple[Factors, np.ndarray]:
        up, down = means(shares, ends)
        return (up, down), base + ideal(shares, ends) - up @ down
    return federated(p, gather)


def flora(p: Problem) -> list[float]:
    """B begins anew at zero; A's draw is the implementation's, so only the first round has one answer."""
    def gather(round: int, shares: list[float], ends: list[Factors], base: np.ndarray) -> tuple[Factors, np.ndarray]:
        up, down = ends[0]
        return (up * 0, down), base + ideal(shares, ends)
    return federated(p, gather)


def svd(p: Problem) -> list[float]:
    """The nearest product of the same rank, its singular values shared by both factors."""
    def gather(round: int, shares: list[float], ends: list[Factors], base: np.ndarray) -> tuple[Factors, np.ndarray]:
        left, values, right = np.linalg.svd(ideal(shares, ends))
        rank = ends[0][1].shape[0]
        root = np.sqrt(values[:rank])
        return (left[:, :rank] * root, root[:, None] * right[:rank]), base
    return federated(p, gather)


def fedper(p: Problem) -> list[float]:
    """A is shared, every client keeps its own B; asked is what a client wears."""
    asked = wanted(p)
    down, base = np.array(asked.down), np.zeros_like(np.array(asked.targets[0]))
    own, seen = [np.array(asked.up)] * p.size, []
    for who in present(p):
        shared = []
        for k in who:
            own[k], moved = train(p, k, (own[k], down), base)
            shared.append((p.count(k), moved))
        down = np.asarray(sum(count * moved for count, moved in shared)) / sum(count for count, _ in shared)
        seen.append(said(p, (own[p.asks], down), base))
    return seen


ADAPTERS: dict[str, Callable[[Problem], list[float]]] = {
    rule.__name__: rule for rule in (lora, ffa, rolora, fedex, flora, svd, fedper)}

__all__ = ["ADAPTERS"]
