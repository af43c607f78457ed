"""Reference implementations in plain numbers, with which every implementation is compared.

They follow the papers' equations one client after the other, and they share no code with ``fedrift.algorithms``, whose modules cite the
papers. Each function returns the solution of a problem after every round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from .problems import AdapterProblem, Problem

# The closures below are called within the iteration that defines them, so B023 (late binding of loop variables) does not apply.
# ruff: noqa: B023


Correction = Callable[[float, float], float]  # (y, gradient) -> direction of the local step


def local_training(p: Problem, k: int, x: float, direction: Correction = lambda y, g: g) -> float:
    """Return client k's y after its local steps.

    Args:
        p: The problem.
        k: The client.
        x: Initial y.
        direction: Function of y and its gradient that returns the direction of the step.
    """
    y = x
    for _ in range(p.steps[k]):
        y -= p.lr * direction(y, p.gradient(k, y))
    return y


def participants(p: Problem) -> Iterator[tuple[int, ...]]:
    """Yield the clients of each round that have data."""
    for cohort in p.cohorts:
        yield tuple(k for k in cohort if p.weight_of(k))


def weighted_mean(p: Problem, clients: tuple[int, ...], value: Callable[[int], float]) -> float:
    """Return the mean of a value over clients, weighted by n_k."""
    return sum(p.weight_of(k) * value(k) for k in clients) / sum(p.weight_of(k) for k in clients)


def fedavg(p: Problem) -> list[float]:
    """Solve with FedAvg: average the local models."""
    x, path = p.x0, []
    for cohort in participants(p):
        x = weighted_mean(p, cohort, lambda k: local_training(p, k, x))
        path.append(x)
    return path


def fedsgd(p: Problem) -> list[float]:
    """Solve with FedSGD: take one server step along the mean gradient at x."""
    x, path = p.x0, []
    for cohort in participants(p):
        x -= p.lr * weighted_mean(p, cohort, lambda k: p.gradient(k, x))
        path.append(x)
    return path


def fedprox(p: Problem) -> list[float]:
    """Solve with FedProx: take local steps on F_k(y) + mu/2 (y - w)^2."""
    x, path = p.x0, []
    for cohort in participants(p):
        w = x
        x = weighted_mean(p, cohort, lambda k: local_training(p, k, w, lambda y, g: g + p.options["mu"] * (y - w)))
        path.append(x)
    return path


def scaffold(p: Problem) -> list[float]:
    """Solve with SCAFFOLD, Option II: take local steps along g - c_k + c."""
    x, c, controls, path = p.x0, 0.0, [0.0] * p.num_clients, []
    for cohort in participants(p):
        local_models, new_controls = [], []
        for k in cohort:
            y = local_training(p, k, x, lambda y, g: g - controls[k] + c)
            local_models.append(y)
            new_controls.append(controls[k] - c + (x - y) / (p.steps[k] * p.lr))
        change = sum(new_control - controls[k] for new_control, k in zip(new_controls, cohort, strict=True)) / p.num_clients
        for new_control, k in zip(new_controls, cohort, strict=True):
            controls[k] = new_control
        x, c = sum(local_models) / len(cohort), c + change
        path.append(x)
    return path


def with_server_optimizer(p: Problem, update: Callable[[float, float, float], tuple[float, float, float]], v: float) -> list[float]:
    """Apply a server optimizer to the mean update; ``update(delta, m, v)`` returns (step, m, v)."""
    x, m, path = p.x0, 0.0, []
    for cohort in participants(p):
        step, m, v = update(weighted_mean(p, cohort, lambda k: local_training(p, k, x)) - x, m, v)
        x += p.options["server_lr"] * step
        path.append(x)
    return path


def fedavgm(p: Problem) -> list[float]:
    """Solve with FedAvgM: use heavy-ball momentum on the server."""

    def step(delta: float, m: float, v: float) -> tuple[float, float, float]:
        m = p.options["momentum"] * m + delta
        return m, m, v

    return with_server_optimizer(p, step, 0.0)


def adaptive_server(p: Problem, second_moment: Callable[[float, float], float]) -> list[float]:
    """Solve with an adaptive server optimizer without bias correction; v starts at tau^2."""
    beta, tau = p.options["beta1"], p.options["tau"]

    def step(delta: float, m: float, v: float) -> tuple[float, float, float]:
        m, v = beta * m + (1 - beta) * delta, second_moment(v, delta**2)
        return m / (math.sqrt(v) + tau), m, v

    return with_server_optimizer(p, step, tau**2)


def fedadam(p: Problem) -> list[float]:
    """Solve with FedAdam: v is an exponential mean of the squared updates."""
    return adaptive_server(p, lambda v, d2: p.options["beta2"] * v + (1 - p.options["beta2"]) * d2)


def fedyogi(p: Problem) -> list[float]:
    """Solve with FedYogi: v changes by (1 - beta2) delta^2, with the sign of delta^2 - v."""
    return adaptive_server(p, lambda v, d2: v - (1 - p.options["beta2"]) * d2 * ((v > d2) - (v < d2)))


def fedadagrad(p: Problem) -> list[float]:
    """Solve with FedAdagrad: v is the sum of the squared updates."""
    return adaptive_server(p, lambda v, d2: v + d2)


def fednova(p: Problem) -> list[float]:
    """Solve with FedNova: multiply the mean update per local step by the mean number of local steps."""
    x, path = p.x0, []
    for cohort in participants(p):
        per_step = weighted_mean(p, cohort, lambda k: (x - local_training(p, k, x)) / p.steps[k])
        x -= weighted_mean(p, cohort, lambda k: p.steps[k]) * per_step
        path.append(x)
    return path


def feddyn(p: Problem) -> list[float]:
    """Solve with FedDyn: use a dual variable per client, and h on the server."""
    alpha, x, h, duals, path = p.options["alpha"], p.x0, 0.0, [0.0] * p.num_clients, []
    for cohort in participants(p):
        w, local_models = x, []
        for k in cohort:
            y = local_training(p, k, w, lambda y, g: g - duals[k] + alpha * (y - w))
            duals[k] -= alpha * (y - w)
            local_models.append(y)
        h -= alpha / p.num_clients * sum(y - w for y in local_models)
        x = sum(local_models) / len(local_models) - h / alpha
        path.append(x)
    return path


def qfedavg(p: Problem) -> list[float]:
    """Solve with q-FedAvg: weight the updates by loss^q, and divide by the bound on the step."""
    q, x, path = p.options["q"], p.x0, []
    for cohort in participants(p):
        top = bottom = 0.0
        for k in cohort:
            loss, step = p.loss(k, x), (x - local_training(p, k, x)) / p.lr
            top += p.weight_of(k) * loss**q * step
            bottom += p.weight_of(k) * (q * loss ** (q - 1) * step**2 + loss**q / p.lr)
        x -= top / bottom
        path.append(x)
    return path


def afl(p: Problem) -> list[float]:
    """Solve with AFL: adapt the client weights by projected gradient ascent on the losses."""
    x, weights, path = p.x0, [1 / p.num_clients] * p.num_clients, []
    for cohort in participants(p):
        ascended = [weights[k] + p.options["lambda_lr"] / p.num_clients * p.loss(k, x) for k in range(p.num_clients)]
        local_models = [local_training(p, k, x) for k in cohort]
        x = sum(weights[k] * y for k, y in zip(cohort, local_models, strict=True)) / sum(weights[k] for k in cohort)
        low, high = min(ascended) - 1, max(ascended)
        for _ in range(200):  # the projection onto the simplex, by bisection
            middle = (low + high) / 2
            low, high = (middle, high) if sum(max(r - middle, 0) for r in ascended) > 1 else (low, middle)
        weights = [max(r - low, 0) for r in ascended]
        path.append(x)
    return path


def with_aggregator(p: Problem, aggregate: Callable[[list[float]], float]) -> list[float]:
    """Add an aggregate of the clients' updates to x."""
    x, path = p.x0, []
    for cohort in participants(p):
        x += aggregate([local_training(p, k, x) - x for k in cohort])
        path.append(x)
    return path


def median(p: Problem) -> list[float]:
    """Solve with the median of the updates, which is the trimmed mean of the middle one or two."""
    return with_trimmed_mean(p, lambda count: (count - 1) // 2)


def with_trimmed_mean(p: Problem, num_trimmed: Callable[[int], int]) -> list[float]:
    """Aggregate with a trimmed mean; ``num_trimmed`` returns how many values to drop at each end."""

    def aggregate(changes: list[float]) -> float:
        cut = num_trimmed(len(changes))
        remaining = sorted(changes)[cut : len(changes) - cut]
        return sum(remaining) / len(remaining)

    return with_aggregator(p, aggregate)


def trimmed_mean(p: Problem) -> list[float]:
    """Solve with the trimmed mean of the updates."""
    return with_trimmed_mean(p, lambda count: int(p.options["trim_fraction"] * count + 1e-9))


def krum(p: Problem) -> list[float]:
    """Solve with Krum or Multi-Krum: average the updates with the lowest scores."""

    def aggregate(changes: list[float]) -> float:
        def score(i: int) -> float:
            distances = sorted((changes[i] - other) ** 2 for j, other in enumerate(changes) if j != i)
            return sum(distances[: len(changes) - int(p.options["num_byzantine"]) - 2])

        selected = sorted(range(len(changes)), key=score)[: int(p.options["num_selected"])]
        return sum(changes[i] for i in selected) / len(selected)

    return with_aggregator(p, aggregate)


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


# Personalized models: the solution is the model of the client ``Problem.evaluated_client``. A client that has not participated yet has
# the initial model.


def ditto(p: Problem) -> list[float]:
    """Solve with Ditto: v_k <- v_k - lr (g_k(v_k) + lam (v_k - w)), next to FedAvg on w."""
    x, own, path = p.x0, [p.x0] * p.num_clients, []
    for cohort in participants(p):
        w = x
        x = weighted_mean(p, cohort, lambda k: local_training(p, k, w))
        for k in cohort:
            for _ in range(p.steps[k]):
                own[k] -= p.lr * (p.gradient(k, own[k]) + p.options["lam"] * (own[k] - w))
        path.append(own[p.evaluated_client])
    return path


def fine_tuned(p: Problem) -> list[float]:
    """Solve with FedAvg and fine-tuning: a client's model is the result of its last local steps."""
    x, own, path = p.x0, [p.x0] * p.num_clients, []
    for cohort in participants(p):
        for k in cohort:
            own[k] = local_training(p, k, x)
        x = weighted_mean(p, cohort, lambda k: own[k])
        path.append(own[p.evaluated_client])
    return path


def pfedme(p: Problem) -> list[float]:
    """Solve with pFedMe: theta continues from its last value, and an incomplete inner solve counts."""
    lam, x, own, path = p.options["lam"], p.x0, [p.x0] * p.num_clients, []
    for cohort in participants(p):
        local_models = {}
        for k in cohort:
            theta = y = x
            for step in range(1, p.steps[k] + 1):
                theta -= p.lr * (p.gradient(k, theta) + lam * (theta - y))
                if step % p.options["inner"] == 0 or step == p.steps[k]:
                    y -= p.options["eta"] * lam * (y - theta)
            own[k], local_models[k] = theta, y
        x = (1 - p.options["beta"]) * x + p.options["beta"] * weighted_mean(p, cohort, lambda k: local_models[k])
        path.append(x if p.evaluated_client < 0 else own[p.evaluated_client])
    return path


PERSONAL_RULES: dict[str, Callable[[Problem], list[float]]] = {rule.__name__: rule for rule in (ditto, fine_tuned, pfedme)}


# Aggregation of adapters: the solution is u^T W v with W = s (base + B A).

Factors = tuple[np.ndarray, np.ndarray]  # B [O, R], A [R, I]
AggregateFn = Callable[[int, list[float], list[Factors], np.ndarray], tuple[Factors, np.ndarray]]
"""``(round, client weights, factors of the clients, base) -> (factors of the server, base)``"""


def train_factors(p: Problem, k: int, start: Factors, base: np.ndarray, frozen_factor: str = "") -> Factors:
    """Return client k's factors after its local steps on a_k/2 |s (base + B A) - T_k|^2.

    ``frozen_factor`` names a factor that is not trained.
    """
    adapters = adapters_of(p)
    (up, down), target = start, np.array(adapters.targets[k])
    for _ in range(p.steps[k]):
        gradient = p.a[k] * adapters.scale * (adapters.scale * (base + up @ down) - target)
        up, down = (
            up if frozen_factor == "B" else up - p.lr * gradient @ down.T,
            down if frozen_factor == "A" else down - p.lr * up.T @ gradient,
        )
    return up, down


def adapters_of(p: Problem) -> AdapterProblem:
    """Return the adapters of a problem that has them."""
    assert p.adapters is not None
    return p.adapters


def module_output(p: Problem, factors: Factors, base: np.ndarray) -> float:
    """Return u^T s (base + B A) v."""
    adapters = adapters_of(p)
    return float(np.array(adapters.u) @ (adapters.scale * (base + factors[0] @ factors[1])) @ np.array(adapters.v))


def run_rounds(p: Problem, aggregate: AggregateFn, frozen_factor: Callable[[int], str] = lambda round: "") -> list[float]:
    """Run all rounds with an aggregation function; ``frozen_factor`` returns the factor that is not trained in a round."""
    adapters = adapters_of(p)
    factors, base, path = (np.array(adapters.up), np.array(adapters.down)), np.zeros_like(np.array(adapters.targets[0])), []
    for round, cohort in enumerate(participants(p)):
        client_factors = [train_factors(p, k, factors, base, frozen_factor(round)) for k in cohort]
        client_weights = [p.weight_of(k) / sum(p.weight_of(j) for j in cohort) for k in cohort]
        factors, base = aggregate(round, client_weights, client_factors, base)
        path.append(module_output(p, factors, base))
    return path


def mean_factors(client_weights: list[float], client_factors: list[Factors]) -> Factors:
    """Return the separate weighted means of B and A."""
    up, down = (sum(weight * factors[i] for weight, factors in zip(client_weights, client_factors, strict=True)) for i in (0, 1))
    return np.asarray(up), np.asarray(down)


def mean_product(client_weights: list[float], client_factors: list[Factors]) -> np.ndarray:
    """Return sum_k p_k B_k A_k."""
    return np.asarray(sum(weight * up @ down for weight, (up, down) in zip(client_weights, client_factors, strict=True)))


def lora(p: Problem) -> list[float]:
    """Solve with separate means of B and A."""
    return run_rounds(p, lambda round, weights, factors, base: (mean_factors(weights, factors), base))


def ffa(p: Problem) -> list[float]:
    """Solve with FFA-LoRA: A is frozen."""
    return run_rounds(p, lambda round, weights, factors, base: (mean_factors(weights, factors), base), lambda round: "A")


def rolora(p: Problem) -> list[float]:
    """Solve with RoLoRA: train B and A in alternate rounds, B first."""
    return run_rounds(p, lambda round, weights, factors, base: (mean_factors(weights, factors), base), lambda round: "AB"[round % 2])


def fedex(p: Problem) -> list[float]:
    """Solve with FedEx-LoRA: use separate means, and add the residual of the product to the base weights."""

    def aggregate(round: int, weights: list[float], factors: list[Factors], base: np.ndarray) -> tuple[Factors, np.ndarray]:
        up, down = mean_factors(weights, factors)
        return (up, down), base + mean_product(weights, factors) - up @ down

    return run_rounds(p, aggregate)


def flora(p: Problem) -> list[float]:
    """Solve with FLoRA: add the mean product to the base weights and reset B to zero.

    The reference covers only the first round, because each implementation draws a new A after it.
    """

    def aggregate(round: int, weights: list[float], factors: list[Factors], base: np.ndarray) -> tuple[Factors, np.ndarray]:
        up, down = factors[0]
        return (up * 0, down), base + mean_product(weights, factors)

    return run_rounds(p, aggregate)


def svd(p: Problem) -> list[float]:
    """Solve with FlexLoRA: take the nearest product of the same rank, with the singular values split between both factors."""

    def aggregate(round: int, weights: list[float], factors: list[Factors], base: np.ndarray) -> tuple[Factors, np.ndarray]:
        left, values, right = np.linalg.svd(mean_product(weights, factors))
        rank = factors[0][1].shape[0]
        root = np.sqrt(values[:rank])
        return (left[:, :rank] * root, root[:, None] * right[:rank]), base

    return run_rounds(p, aggregate)


def fedper(p: Problem) -> list[float]:
    """Solve with FedPer: average A, while every client keeps its own B."""
    adapters = adapters_of(p)
    down, base = np.array(adapters.down), np.zeros_like(np.array(adapters.targets[0]))
    own, path = [np.array(adapters.up)] * p.num_clients, []
    for cohort in participants(p):
        trained = []
        for k in cohort:
            own[k], client_down = train_factors(p, k, (own[k], down), base)
            trained.append((p.weight_of(k), client_down))
        down = np.asarray(sum(weight * client_down for weight, client_down in trained)) / sum(weight for weight, _ in trained)
        path.append(module_output(p, (own[p.evaluated_client], down), base))
    return path


ADAPTER_RULES: dict[str, Callable[[Problem], list[float]]] = {
    rule.__name__: rule for rule in (lora, ffa, rolora, fedex, flora, svd, fedper)
}


REFERENCES = {**SHARED_MODEL_RULES, **PERSONAL_RULES, **ADAPTER_RULES}
