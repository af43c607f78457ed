"""One model for all, in plain numbers: each function answers a problem with the server's x after every round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from .problems import AdapterProblem, Problem

# The functions given to ``local_training`` and ``weighted_mean`` are called before their loop goes on.
# ruff: noqa: B023


Correction = Callable[[float, float], float]  # (y, gradient) -> the direction to follow


def local_training(p: Problem, k: int, x: float, direction: Correction = lambda y, g: g) -> float:
    """Client k's y after its local steps from x."""
    y = x
    for _ in range(p.steps[k]):
        y -= p.lr * direction(y, p.gradient(k, y))
    return y


def participants(p: Problem) -> Iterator[tuple[int, ...]]:
    """Round by round, who of the cohort has data."""
    for cohort in p.cohorts:
        yield tuple(k for k in cohort if p.weight_of(k))


def weighted_mean(p: Problem, clients: tuple[int, ...], value: Callable[[int], float]) -> float:
    """By n_k over those present."""
    return sum(p.weight_of(k) * value(k) for k in clients) / sum(p.weight_of(k) for k in clients)


def fedavg(p: Problem) -> list[float]:
    x, seen = p.x0, []
    for who in participants(p):
        x = weighted_mean(p, who, lambda k: local_training(p, k, x))
        seen.append(x)
    return seen


def fedsgd(p: Problem) -> list[float]:
    x, seen = p.x0, []
    for who in participants(p):
        x -= p.lr * weighted_mean(p, who, lambda k: p.gradient(k, x))
        seen.append(x)
    return seen


def fedprox(p: Problem) -> list[float]:
    x, seen = p.x0, []
    for who in participants(p):
        w = x
        x = weighted_mean(p, who, lambda k: local_training(p, k, w, lambda y, g: g + p.options["mu"] * (y - w)))
        seen.append(x)
    return seen


def scaffold(p: Problem) -> list[float]:
    x, c, controls, seen = p.x0, 0.0, [0.0] * p.num_clients, []
    for who in participants(p):
        ends, news = [], []
        for k in who:
            y = local_training(p, k, x, lambda y, g: g - controls[k] + c)
            ends.append(y)
            news.append(controls[k] - c + (x - y) / (p.steps[k] * p.lr))
        change = sum(new - controls[k] for new, k in zip(news, who, strict=True)) / p.num_clients
        for new, k in zip(news, who, strict=True):
            controls[k] = new
        x, c = sum(ends) / len(who), c + change
        seen.append(x)
    return seen


def with_server_optimizer(p: Problem, update: Callable[[float, float, float], tuple[float, float, float]], v: float) -> list[float]:
    """``step(delta, m, v) -> (move, m, v)`` on the mean change."""
    x, m, seen = p.x0, 0.0, []
    for who in participants(p):
        move, m, v = update(weighted_mean(p, who, lambda k: local_training(p, k, x)) - x, m, v)
        x += p.options["server_lr"] * move
        seen.append(x)
    return seen


def fedavgm(p: Problem) -> list[float]:
    def step(delta: float, m: float, v: float) -> tuple[float, float, float]:
        m = p.options["momentum"] * m + delta
        return m, m, v

    return with_server_optimizer(p, step, 0.0)


def adaptive_server(p: Problem, second_moment: Callable[[float, float], float]) -> list[float]:
    beta, tau = p.options["beta1"], p.options["tau"]

    def step(delta: float, m: float, v: float) -> tuple[float, float, float]:
        m, v = beta * m + (1 - beta) * delta, second_moment(v, delta**2)
        return m / (math.sqrt(v) + tau), m, v

    return with_server_optimizer(p, step, tau**2)


def fedadam(p: Problem) -> list[float]:
    return adaptive_server(p, lambda v, d2: p.options["beta2"] * v + (1 - p.options["beta2"]) * d2)


def fedyogi(p: Problem) -> list[float]:
    return adaptive_server(p, lambda v, d2: v - (1 - p.options["beta2"]) * d2 * ((v > d2) - (v < d2)))


def fedadagrad(p: Problem) -> list[float]:
    return adaptive_server(p, lambda v, d2: v + d2)


def fednova(p: Problem) -> list[float]:
    x, seen = p.x0, []
    for who in participants(p):
        per_step = weighted_mean(p, who, lambda k: (x - local_training(p, k, x)) / p.steps[k])
        x -= weighted_mean(p, who, lambda k: p.steps[k]) * per_step
        seen.append(x)
    return seen


def feddyn(p: Problem) -> list[float]:
    alpha, x, h, memory, seen = p.options["alpha"], p.x0, 0.0, [0.0] * p.num_clients, []
    for who in participants(p):
        w, ends = x, []
        for k in who:
            y = local_training(p, k, w, lambda y, g: g - memory[k] + alpha * (y - w))
            memory[k] -= alpha * (y - w)
            ends.append(y)
        h -= alpha / p.num_clients * sum(y - w for y in ends)
        x = sum(ends) / len(ends) - h / alpha
        seen.append(x)
    return seen


def qfedavg(p: Problem) -> list[float]:
    q, x, seen = p.options["q"], p.x0, []
    for who in participants(p):
        top = bottom = 0.0
        for k in who:
            loss, step = p.loss(k, x), (x - local_training(p, k, x)) / p.lr
            top += p.weight_of(k) * loss**q * step
            bottom += p.weight_of(k) * (q * loss ** (q - 1) * step**2 + loss**q / p.lr)
        x -= top / bottom
        seen.append(x)
    return seen


def afl(p: Problem) -> list[float]:
    x, share, seen = p.x0, [1 / p.num_clients] * p.num_clients, []
    for who in participants(p):
        raised = [share[k] + p.options["rate"] / p.num_clients * p.loss(k, x) for k in range(p.num_clients)]
        ends = [local_training(p, k, x) for k in who]
        x = sum(share[k] * y for k, y in zip(who, ends, strict=True)) / sum(share[k] for k in who)
        low, high = min(raised) - 1, max(raised)
        for _ in range(200):  # the projection onto the simplex, by bisection
            middle = (low + high) / 2
            low, high = (middle, high) if sum(max(r - middle, 0) for r in raised) > 1 else (low, middle)
        share = [max(r - low, 0) for r in raised]
        seen.append(x)
    return seen


def with_aggregator(p: Problem, aggregate: Callable[[list[float]], float]) -> list[float]:
    x, seen = p.x0, []
    for who in participants(p):
        x += aggregate([local_training(p, k, x) - x for k in who])
        seen.append(x)
    return seen


def median(p: Problem) -> list[float]:
    return with_trimmed_mean(p, lambda count: (count - 1) // 2)


def with_trimmed_mean(p: Problem, num_trimmed: Callable[[int], int]) -> list[float]:
    def rule(changes: list[float]) -> float:
        drop = num_trimmed(len(changes))
        kept = sorted(changes)[drop : len(changes) - drop]
        return sum(kept) / len(kept)

    return with_aggregator(p, rule)


def trimmed_mean(p: Problem) -> list[float]:
    return with_trimmed_mean(p, lambda count: int(p.options["share"] * count + 1e-9))


def krum(p: Problem) -> list[float]:
    def rule(changes: list[float]) -> float:
        def score(i: int) -> float:
            apart = sorted((changes[i] - other) ** 2 for j, other in enumerate(changes) if j != i)
            return sum(apart[: len(changes) - int(p.options["liars"]) - 2])

        best = sorted(range(len(changes)), key=score)[: int(p.options["keep"])]
        return sum(changes[i] for i in best) / len(best)

    return with_aggregator(p, rule)


SHARED_MODEL_RULES: dict[str, Callable[[Problem], list[float]]] = {
    rule.__name__: rule
    for rule in (
        fedavg,
        fedsgd,
        fedprox,
        scaffold,
        fedavgm,
        fedadam,
        fedyogi,
        fedadagrad,
        fednova,
        feddyn,
        qfedavg,
        afl,
        median,
        trimmed_mean,
        krum,
    )
}


# Models of one's own, in plain numbers: each function answers with the model that the asked client wears.
#
# ``Problem.evaluated_client`` is the client. One that never took part wears the first model.

# The functions given to ``local_training`` and ``weighted_mean`` are called before their loop goes on.
# ruff: noqa: B023


def ditto(p: Problem) -> list[float]:
    x, own, seen = p.x0, [p.x0] * p.num_clients, []
    for who in participants(p):
        w = x
        x = weighted_mean(p, who, lambda k: local_training(p, k, w))
        for k in who:
            for _ in range(p.steps[k]):
                own[k] -= p.lr * (p.gradient(k, own[k]) + p.options["lam"] * (own[k] - w))
        seen.append(own[p.evaluated_client])
    return seen


def fine_tuned(p: Problem) -> list[float]:
    """What its local steps made of the model it last received."""
    x, own, seen = p.x0, [p.x0] * p.num_clients, []
    for who in participants(p):
        for k in who:
            own[k] = local_training(p, k, x)
        x = weighted_mean(p, who, lambda k: own[k])
        seen.append(own[p.evaluated_client])
    return seen


def pfedme(p: Problem) -> list[float]:
    """theta goes on from where it was; a last solve that is cut short counts."""
    lam, x, own, seen = p.options["lam"], p.x0, [p.x0] * p.num_clients, []
    for who in participants(p):
        ends = {}
        for k in who:
            theta = y = x
            for step in range(1, p.steps[k] + 1):
                theta -= p.lr * (p.gradient(k, theta) + lam * (theta - y))
                if step % p.options["inner"] == 0 or step == p.steps[k]:
                    y -= p.options["eta"] * lam * (y - theta)
            own[k], ends[k] = theta, y
        x = (1 - p.options["beta"]) * x + p.options["beta"] * weighted_mean(p, who, lambda k: ends[k])
        seen.append(x if p.evaluated_client < 0 else own[p.evaluated_client])
    return seen


PERSONAL_RULES: dict[str, Callable[[Problem], list[float]]] = {rule.__name__: rule for rule in (ditto, fine_tuned, pfedme)}


# How adapters are aggregated, in plain matrices: each function answers with u^T W v, W = s (base + B A).

Factors = tuple[np.ndarray, np.ndarray]  # B [O, R], A [R, I]
AggregateFn = Callable[[int, list[float], list[Factors], np.ndarray], tuple[Factors, np.ndarray]]
"""``(round, shares, the clients' factors, base) -> (the server's factors, base)``"""


def train_factors(p: Problem, k: int, start: Factors, base: np.ndarray, frozen_factor: str = "") -> Factors:
    """Client k's factors after its steps on a_k/2 |s (base + B A) - T_k|^2; ``frozen_factor`` is the one nobody trains."""
    asked = adapters_of(p)
    (up, down), goal = start, np.array(asked.targets[k])
    for _ in range(p.steps[k]):
        slope = p.a[k] * asked.scale * (asked.scale * (base + up @ down) - goal)
        up, down = (
            up if frozen_factor == "B" else up - p.lr * slope @ down.T,
            down if frozen_factor == "A" else down - p.lr * up.T @ slope,
        )
    return up, down


def adapters_of(p: Problem) -> AdapterProblem:
    assert p.adapters is not None
    return p.adapters


def module_output(p: Problem, factors: Factors, base: np.ndarray) -> float:
    """What the module answers."""
    asked = adapters_of(p)
    return float(np.array(asked.u) @ (asked.scale * (base + factors[0] @ factors[1])) @ np.array(asked.v))


def run_rounds(p: Problem, aggregate: AggregateFn, frozen_factor: Callable[[int], str] = lambda round: "") -> list[float]:
    asked = adapters_of(p)
    now, base, seen = (np.array(asked.up), np.array(asked.down)), np.zeros_like(np.array(asked.targets[0])), []
    for round, who in enumerate(participants(p)):
        ends = [train_factors(p, k, now, base, frozen_factor(round)) for k in who]
        shares = [p.weight_of(k) / sum(p.weight_of(j) for j in who) for k in who]
        now, base = aggregate(round, shares, ends, base)
        seen.append(module_output(p, now, base))
    return seen


def mean_factors(client_weights: list[float], client_factors: list[Factors]) -> Factors:
    up, down = (sum(share * end[i] for share, end in zip(client_weights, client_factors, strict=True)) for i in (0, 1))
    return np.asarray(up), np.asarray(down)


def mean_product(client_weights: list[float], client_factors: list[Factors]) -> np.ndarray:
    """sum_k p_k B_k A_k."""
    return np.asarray(sum(share * up @ down for share, (up, down) in zip(client_weights, client_factors, strict=True)))


def lora(p: Problem) -> list[float]:
    """Separate means of B and A."""
    return run_rounds(p, lambda round, shares, ends, base: (mean_factors(shares, ends), base))


def ffa(p: Problem) -> list[float]:
    return run_rounds(p, lambda round, shares, ends, base: (mean_factors(shares, ends), base), lambda round: "A")


def rolora(p: Problem) -> list[float]:
    return run_rounds(p, lambda round, shares, ends, base: (mean_factors(shares, ends), base), lambda round: "AB"[round % 2])


def fedex(p: Problem) -> list[float]:
    def gather(round: int, shares: list[float], ends: list[Factors], base: np.ndarray) -> tuple[Factors, np.ndarray]:
        up, down = mean_factors(shares, ends)
        return (up, down), base + mean_product(shares, ends) - up @ down

    return run_rounds(p, gather)


def flora(p: Problem) -> list[float]:
    """B begins anew at zero; A's draw is the implementation's, so only the first round has one answer."""

    def gather(round: int, shares: list[float], ends: list[Factors], base: np.ndarray) -> tuple[Factors, np.ndarray]:
        up, down = ends[0]
        return (up * 0, down), base + mean_product(shares, ends)

    return run_rounds(p, gather)


def svd(p: Problem) -> list[float]:
    """The nearest product of the same rank, its singular values shared by both factors."""

    def gather(round: int, shares: list[float], ends: list[Factors], base: np.ndarray) -> tuple[Factors, np.ndarray]:
        left, values, right = np.linalg.svd(mean_product(shares, ends))
        rank = ends[0][1].shape[0]
        root = np.sqrt(values[:rank])
        return (left[:, :rank] * root, root[:, None] * right[:rank]), base

    return run_rounds(p, gather)


def fedper(p: Problem) -> list[float]:
    """A is shared, every client keeps its own B; asked is what a client wears."""
    asked = adapters_of(p)
    down, base = np.array(asked.down), np.zeros_like(np.array(asked.targets[0]))
    own, seen = [np.array(asked.up)] * p.num_clients, []
    for who in participants(p):
        shared = []
        for k in who:
            own[k], moved = train_factors(p, k, (own[k], down), base)
            shared.append((p.weight_of(k), moved))
        down = np.asarray(sum(count * moved for count, moved in shared)) / sum(count for count, _ in shared)
        seen.append(module_output(p, (own[p.evaluated_client], down), base))
    return seen


ADAPTER_RULES: dict[str, Callable[[Problem], list[float]]] = {
    rule.__name__: rule for rule in (lora, ffa, rolora, fedex, flora, svd, fedper)
}


# The papers' lines in plain numbers, one client after the other: what every implementation is compared with.
#
# Nothing is shared with ``fedrift.algorithms``, and nothing is clever. Sources stand in the modules there.

REFERENCES = {**SHARED_MODEL_RULES, **PERSONAL_RULES, **ADAPTER_RULES}


__all__ = ["ADAPTER_RULES", "PERSONAL_RULES", "REFERENCES", "SHARED_MODEL_RULES", "local_training", "participants", "weighted_mean"]
