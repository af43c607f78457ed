"""One model for all, in plain numbers: each function answers a problem with the server's x after every round."""

# The functions given to ``local`` and ``mean`` are called before their loop goes on.
# ruff: noqa: B023
from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ..problem import Problem

Correction = Callable[[float, float], float]  # (y, gradient) -> the direction to follow


def local(p: Problem, k: int, x: float, correct: Correction = lambda y, g: g) -> float:
    """Client k's y after its local steps from x."""
    y = x
    for _ in range(p.steps[k]):
        y -= p.lr * correct(y, p.gradient(k, y))
    return y


def present(p: Problem) -> Iterator[tuple[int, ...]]:
    """Round by round, who of the cohort has data."""
    for cohort in p.cohorts:
        yield tuple(k for k in cohort if p.count(k))


def mean(p: Problem, who: tuple[int, ...], value: Callable[[int], float]) -> float:
    """By n_k over those present."""
    return sum(p.count(k) * value(k) for k in who) / sum(p.count(k) for k in who)


def fedavg(p: Problem) -> list[float]:
    x, seen = p.x, []
    for who in present(p):
        x = mean(p, who, lambda k: local(p, k, x))
        seen.append(x)
    return seen


def fedsgd(p: Problem) -> list[float]:
    x, seen = p.x, []
    for who in present(p):
        x -= p.lr * mean(p, who, lambda k: p.gradient(k, x))
        seen.append(x)
    return seen


def fedprox(p: Problem) -> list[float]:
    x, seen = p.x, []
    for who in present(p):
        w = x
        x = mean(p, who, lambda k: local(p, k, w, lambda y, g: g + p.options["mu"] * (y - w)))
        seen.append(x)
    return seen


def scaffold(p: Problem) -> list[float]:
    x, c, controls, seen = p.x, 0.0, [0.0] * p.size, []
    for who in present(p):
        ends, news = [], []
        for k in who:
            y = local(p, k, x, lambda y, g: g - controls[k] + c)
            ends.append(y)
            news.append(controls[k] - c + (x - y) / (p.steps[k] * p.lr))
        change = sum(new - controls[k] for new, k in zip(news, who, strict=True)) / p.size
        for new, k in zip(news, who, strict=True):
            controls[k] = new
        x, c = sum(ends) / len(who), c + change
        seen.append(x)
    return seen


def server_rule(p: Problem, step: Callable[[float, float, float], tuple[float, float, float]], v: float) -> list[float]:
    """``step(delta, m, v) -> (move, m, v)`` on the mean change."""
    x, m, seen = p.x, 0.0, []
    for who in present(p):
        move, m, v = step(mean(p, who, lambda k: local(p, k, x)) - x, m, v)
        x += p.options["server_lr"] * move
        seen.append(x)
    return seen


def fedavgm(p: Problem) -> list[float]:
    def step(delta: float, m: float, v: float) -> tuple[float, float, float]:
        m = p.options["momentum"] * m + delta
        return m, m, v
    return server_rule(p, step, 0.0)


def adaptive(p: Problem, second: Callable[[float, float], float]) -> list[float]:
    beta, tau = p.options["beta1"], p.options["tau"]

    def step(delta: float, m: float, v: float) -> tuple[float, float, float]:
        m, v = beta * m + (1 - beta) * delta, second(v, delta**2)
        return m / (math.sqrt(v) + tau), m, v
    return server_rule(p, step, tau**2)


def fedadam(p: Problem) -> list[float]:
    return adaptive(p, lambda v, d2: p.options["beta2"] * v + (1 - p.options["beta2"]) * d2)


def fedyogi(p: Problem) -> list[float]:
    return adaptive(p, lambda v, d2: v - (1 - p.options["beta2"]) * d2 * ((v > d2) - (v < d2)))


def fedadagrad(p: Problem) -> list[float]:
    return adaptive(p, lambda v, d2: v + d2)


def fednova(p: Problem) -> list[float]:
    x, seen = p.x, []
    for who in present(p):
        per_step = mean(p, who, lambda k: (x - local(p, k, x)) / p.steps[k])
        x -= mean(p, who, lambda k: p.steps[k]) * per_step
        seen.append(x)
    return seen


def feddyn(p: Problem) -> list[float]:
    alpha, x, h, memory, seen = p.options["alpha"], p.x, 0.0, [0.0] * p.size, []
    for who in present(p):
        w, ends = x, []
        for k in who:
            y = local(p, k, w, lambda y, g: g - memory[k] + alpha * (y - w))
            memory[k] -= alpha * (y - w)
            ends.append(y)
        h -= alpha / p.size * sum(y - w for y in ends)
        x = sum(ends) / len(ends) - h / alpha
        seen.append(x)
    return seen


def qfedavg(p: Problem) -> list[float]:
    q, x, seen = p.options["q"], p.x, []
    for who in present(p):
        top = bottom = 0.0
        for k in who:
            loss, step = p.loss(k, x), (x - local(p, k, x)) / p.lr
            top += p.count(k) * loss**q * step
            bottom += p.count(k) * (q * loss ** (q - 1) * step**2 + loss**q / p.lr)
        x -= top / bottom
        seen.append(x)
    return seen


def afl(p: Problem) -> list[float]:
    x, share, seen = p.x, [1 / p.size] * p.size, []
    for who in present(p):
        raised = [share[k] + p.options["rate"] / p.size * p.loss(k, x) for k in range(p.size)]
        ends = [local(p, k, x) for k in who]
        x = sum(share[k] * y for k, y in zip(who, ends, strict=True)) / sum(share[k] for k in who)
        low, high = min(raised) - 1, max(raised)
        for _ in range(200):  # the projection onto the simplex, by bisection
            middle = (low + high) / 2
            low, high = (middle, high) if sum(max(r - middle, 0) for r in raised) > 1 else (low, middle)
        share = [max(r - low, 0) for r in raised]
        seen.append(x)
    return seen


def combined(p: Problem, rule: Callable[[list[float]], float]) -> list[float]:
    x, seen = p.x, []
    for who in present(p):
        x += rule([local(p, k, x) - x for k in who])
        seen.append(x)
    return seen


def median(p: Problem) -> list[float]:
    return trimmed(p, lambda count: (count - 1) // 2)


def trimmed(p: Problem, cut: Callable[[int], int]) -> list[float]:
    def rule(changes: list[float]) -> float:
        drop = cut(len(changes))
        kept = sorted(changes)[drop:len(changes) - drop]
        return sum(kept) / len(kept)
    return combined(p, rule)


def trimmed_mean(p: Problem) -> list[float]:
    return trimmed(p, lambda count: int(p.options["share"] * count + 1e-9))


def krum(p: Problem) -> list[float]:
    def rule(changes: list[float]) -> float:
        def score(i: int) -> float:
            apart = sorted((changes[i] - other) ** 2 for j, other in enumerate(changes) if j != i)
            return sum(apart[:len(changes) - int(p.options["liars"]) - 2])
        best = sorted(range(len(changes)), key=score)[:int(p.options["keep"])]
        return sum(changes[i] for i in best) / len(best)
    return combined(p, rule)


RULES: dict[str, Callable[[Problem], list[float]]] = {rule.__name__: rule for rule in (
    fedavg, fedsgd, fedprox, scaffold, fedavgm, fedadam, fedyogi, fedadagrad, fednova, feddyn, qfedavg, afl, median,
    trimmed_mean, krum)}

__all__ = ["RULES", "local", "mean", "present"]
