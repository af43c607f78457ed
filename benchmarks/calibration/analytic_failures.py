"""Failures planted on purpose, each exact or nearly so: what must be found, and what may be found beside it.

Where the skew is the plant, the control is the same world dealt IID; where something else is (a mistake, a learning rate), the
control is the same world without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.calibration import analytic
from benchmarks.calibration.analytic import QuadraticFederation, make_mixtures, run_quadratics
from fedrift.algorithms import FedAvg, FedDyn, FedProx, FedSGD, LocalOnly, Scaffold
from fedrift.algorithms.aggregators.mean import cluster_sum
from fedrift.core.optimizers import Sgd
from fedrift.core.types import CohortUpdate, FederatedState, ServerState
from fedrift.diagnosis.failures import find_runaway
from fedrift.diagnosis.finding import THRESHOLDS, RunEvidence, RunInfo


@dataclass(frozen=True)
class InjectedFailure:
    """``make_evidence(seed)`` holds the failure ``failure``; ``side_effects`` come with it and are no false alarms."""

    name: str
    failure: str
    make_evidence: Callable[[int], RunEvidence]
    side_effects: frozenset[str] = frozenset()
    onset_round: int = 0  # the round from which on it is there


@dataclass(frozen=True)
class DividedByCohort(Scaffold):
    """c divided by the cohort, not by the fleet."""

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        shared = server.broadcast + cluster_sum(report.state_delta, report) / len(report.weight)
        return replace(super().server_update(server, report), broadcast=shared)


def with_iid_mixtures(federation: QuadraticFederation) -> QuadraticFederation:
    """The same documents, dealt alike."""
    pool = np.asarray(federation.mixtures).mean(axis=0)
    return replace(federation, mixtures=(tuple(pool.tolist()),) * federation.num_clients)


def run_with_control(
    federation: QuadraticFederation, control: QuadraticFederation | None = None, seed: int = 0, **anchors: QuadraticFederation
) -> RunEvidence:
    """A world beside its control, and anchors by their field in ``RunEvidence``."""
    worlds = {"run": federation, "iid_baseline": control or with_iid_mixtures(federation), **anchors}
    runs = {field: run_quadratics(replace(each, seed=seed)) for field, each in worlds.items()}
    return RunEvidence(**runs, info=RunInfo(federation.local_steps, federation.domain_names, federation.mixtures), seed=seed)  # type: ignore[arg-type]


def divergence(seed: int) -> RunEvidence:
    """Mean factor of a round 1.225 with the curvatures 1 and 9.5 apart, 8e-9 with them mixed: only the skewed run diverges."""
    return run_with_control(QuadraticFederation(a=(1.0, 9.5), lr=0.22, optimum_spread=0.3), seed=seed)


def is_divergent(is_skewed: bool, seed: int, lr: float) -> bool:
    """Whether curvatures 1 and 9.5 diverge at a rate, apart or mixed: the boundaries are .2176 and 2 / 5.25 = .381."""
    world = QuadraticFederation(a=(1.0, 9.5), lr=lr, optimum_spread=0.3, num_rounds=60, seed=seed)
    return bool(find_runaway(run_quadratics(world if is_skewed else with_iid_mixtures(world)), THRESHOLDS)[0])


def oscillation(seed: int) -> RunEvidence:
    """One of two clients a round: x has a standard deviation of .406 about its mean, and comes to rest if dealt IID."""
    return run_with_control(QuadraticFederation(x0=2.0, cohort_size=1, optimum_spread=0.1, num_rounds=80), seed=seed)


def client_drift(seed: int) -> RunEvidence:
    """f1 = x^2 + G x, f2 = -G x: FedAvg ends G K lr / (1 - r) - G / 2 off the optimum 0 (SCAFFOLD, section 7)."""
    world = QuadraticFederation(a=(2.0, 0.0), b=(0.0, 0.0), slope=(2.0, -2.0), x0=5.0, noise=0.1)
    made = run_with_control(world, seed=seed, fedsgd=replace(world, algorithm=FedSGD(Sgd(0.1)), local_steps=10))
    sweep = {steps: run_quadratics(replace(world, local_steps=steps, seed=seed)) for steps in (2, 5)}
    return replace(made, local_steps_sweep=sweep)


def large_proximal_term(seed: int) -> RunEvidence:
    """Solved exactly, mu = 100 leaves 97.6 % of the way after each round."""
    world = QuadraticFederation(optimum_spread=0.1, num_rounds=60, noise=0.05)
    control = with_iid_mixtures(world)
    return run_with_control(replace(world, algorithm=FedProx(mu=100.0, proximal="prox_step")), control, seed, best_lr=world)


def small_learning_rate(seed: int) -> RunEvidence:
    """A thousandth of the learning rate."""
    world = QuadraticFederation(optimum_spread=0.1, noise=0.05)
    return run_with_control(replace(world, lr=world.lr / 1000), with_iid_mixtures(world), seed, best_lr=world)


def wrong_control_variates(seed: int) -> RunEvidence:
    """SCAFFOLD's c divided by the cohort, not by the fleet: a mistake of public code."""
    world = QuadraticFederation(
        a=(1.0, 2.0, 3.0, 4.0),
        b=(-1.0, 0.0, 1.0, 2.0),
        mixtures=make_mixtures(4, 8, 0.5),
        cohort_size=2,
        noise=0.2,
        lr=0.02,
        algorithm=DividedByCohort(),
    )
    return run_with_control(world, replace(world, algorithm=Scaffold()), seed)


def stale_control_variates(seed: int) -> RunEvidence:
    """SCAFFOLD far from its goal, two of 24 a round: by the time c_k is used again the gradient is a fraction of it. The
    control is the same with sixteen.

    (Where the run has come to rest a c_k lasts, the longer the more the clients differ: age is harmless there.)
    """
    world = QuadraticFederation(
        a=(1.0, 2.0, 3.0, 4.0),
        b=(-1.0, 0.0, 1.0, 2.0),
        mixtures=make_mixtures(4, 24, 0.1),
        cohort_size=2,
        noise=0.1,
        optimum_spread=0.2,
        width=4,
        x0=20.0,
        lr=0.01,
        num_rounds=36,
        algorithm=Scaffold(),
    )
    return run_with_control(world, replace(world, cohort_size=16), seed)


def overshoot(seed: int) -> RunEvidence:
    """Heavy ball on the server, just past its stable rate 2 (1 + beta) / (1 - r) = 4.62: every step throws it further back.

    (FedDyn with a tiny alpha overshoots too, but once: |h| / alpha is largest after the first round and never grows.)
    """
    world = QuadraticFederation(
        optimum_spread=0.1, noise=0.05, algorithm=FedAvg(server_optimizer=Sgd(4.65, momentum=0.9)), num_rounds=30, x0=2.0
    )
    return run_with_control(world, replace(world, algorithm=FedAvg(server_optimizer=Sgd(0.5, momentum=0.9))), seed)


def averaged_factors(seed: int) -> RunEvidence:
    """Adapters after 50 local steps: the mean of the factors is far from the mean of the products."""
    run, twin = (analytic.run_adapters(analytic.AdapterFederation(apart, num_rounds=6, lr=0.02, seed=seed)) for apart in (1.0, 0.0))
    return RunEvidence(run, twin, info=RunInfo(50), seed=seed)


def nine_to_one(seed: int) -> RunEvidence:
    """Nine clients hold one domain, the tenth another: the model is the nine's."""
    world = QuadraticFederation(a=(1.0, 1.0), b=(0.0, 2.0), mixtures=((1.0, 0.0),) * 9 + ((0.0, 1.0),), noise=0.1, optimum_spread=0.1)
    return run_with_control(world, seed=seed, local_only=replace(world, algorithm=LocalOnly()))


def nan_client(seed: int) -> RunEvidence:
    """One client's gradients are not numbers; the server must leave it out and say so."""
    world = QuadraticFederation(optimum_spread=0.1, mixtures=make_mixtures(2, 6, 0.0), noise=0.1)
    return run_with_control(replace(world, nan_clients=(3,)), world, seed)


def sample_with_absence(state: FederatedState, cohort_size: int, seed: int) -> Tensor:
    """In turn, all holders of one of four domains sit out for three rounds."""
    away = state.round // 3 % 4
    return torch.tensor([client for client in range(len(state.cluster_ids)) if client % 4 != away])


def scheduled_absence(seed: int) -> RunEvidence:
    """Each of four domains sits out for three rounds in twelve: what it taught is unlearned meanwhile."""
    world = QuadraticFederation(
        a=(1.0, 1.0, 1.0, 1.0),
        b=(-2.0, -1.0, 1.0, 2.0),
        mixtures=make_mixtures(4, 8, 1.0),
        lr=0.05,
        local_steps=5,
        noise=0.1,
        optimum_spread=0.1,
        x0=0.5,
        num_rounds=96,
        client_sampler=sample_with_absence,
    )
    return run_with_control(world, seed=seed)


def sample_first_domain(state: FederatedState, cohort_size: int, seed: int) -> Tensor:
    """Nobody but the holders of domain 0."""
    return torch.arange(0, len(state.cluster_ids), 2)


def single_domain(seed: int) -> RunEvidence:
    """Only one of two domains is ever trained on: the model leaves the middle, where general text is, for that domain."""
    world = QuadraticFederation(
        a=(1.0, 1.0),
        b=(-1.0, 1.0),
        mixtures=make_mixtures(2, 8, 1.0),
        x0=0.0,
        noise=0.1,
        general_optimum=0.0,
        client_sampler=sample_first_domain,
    )
    return run_with_control(world, seed=seed)


def collapsed_states(seed: int) -> RunEvidence:
    """States drawn onto one direction, nearly all of the way."""
    run, twin = (analytic.run_states(analytic.CollapsingStates(strength, seed=seed)) for strength in (0.98, 0.0))
    return RunEvidence(run, twin, seed=seed)


OSCILLATION_EFFECTS = frozenset({"domain oscillation", "loss gap", "domain gap", "forgetting during absence", "oscillation"})
DRIFT_EFFECTS = frozenset({"client drift", "unfairness", "loss gap", "domain gap", "stalled convergence"})

INJECTED_FAILURES = (
    InjectedFailure("curvatures 1 and 9.5", "divergence", divergence, frozenset({"client drift"})),
    InjectedFailure("one of two a round", "oscillation", oscillation, OSCILLATION_EFFECTS),
    InjectedFailure("lower-bound pair", "client drift", client_drift, DRIFT_EFFECTS),
    InjectedFailure("mu = 100, exact", "stalled convergence", large_proximal_term, DRIFT_EFFECTS),
    InjectedFailure("lr / 1000", "stalled convergence", small_learning_rate, DRIFT_EFFECTS),
    InjectedFailure(
        "c divided by the cohort",
        "control-variate invariant violated",
        wrong_control_variates,
        OSCILLATION_EFFECTS | {"stale control variates", "divergence"},
    ),
    InjectedFailure("two of 24 a round", "stale control variates", stale_control_variates, OSCILLATION_EFFECTS | DRIFT_EFFECTS),
    InjectedFailure("server rate 4.65, momentum .9", "server overshoot", overshoot, OSCILLATION_EFFECTS | DRIFT_EFFECTS | {"divergence"}),
    InjectedFailure("adapters, 50 steps", "aggregation error", averaged_factors, DRIFT_EFFECTS),
    InjectedFailure("nine to one", "unfairness", nine_to_one, DRIFT_EFFECTS),
    InjectedFailure("a client that is NaN", "failed clients", nan_client),
    InjectedFailure("scheduled absence", "forgetting during absence", scheduled_absence, OSCILLATION_EFFECTS),
    InjectedFailure(
        "one domain only", "forgetting of general text", single_domain, DRIFT_EFFECTS | {"forgetting of syntax", "stalled convergence"}
    ),
    InjectedFailure(
        "one domain only", "forgetting of syntax", single_domain, DRIFT_EFFECTS | {"forgetting of general text", "stalled convergence"}
    ),
    InjectedFailure("onto one direction", "representation collapse", collapsed_states, onset_round=5),
)


# Healthy runs: every client holds the same, so whatever a detector says of the skew is a false alarm.
#
# The control of each is the same world with other draws of noise and cohorts: a placebo, as if tags of skewed and IID had been
# given at random. Who holds which domain is made up, so that detectors which ask for it are asked too.

NULL_FEDERATION = QuadraticFederation(
    a=(1.0, 2.0, 3.0, 4.0),
    b=(-1.0, 0.0, 1.0, 2.0),
    mixtures=make_mixtures(4, 8, 0.0),
    noise=0.3,
    optimum_spread=0.2,
    width=4,
    x0=3.0,
    lr=0.05,
    local_steps=5,
    num_rounds=50,
    cohort_size=4,
    general_optimum=2.5,
)

NULL_FEDERATIONS = {
    "FedAvg": replace(NULL_FEDERATION, cohort_size=0),
    "FedAvg, half take part": NULL_FEDERATION,
    "FedAvgM": replace(NULL_FEDERATION, algorithm=FedAvg(server_optimizer=Sgd(0.5, momentum=0.9))),
    "FedProx": replace(NULL_FEDERATION, algorithm=FedProx(mu=1.0)),
    "SCAFFOLD": replace(NULL_FEDERATION, algorithm=Scaffold()),
    "FedDyn": replace(NULL_FEDERATION, algorithm=FedDyn(alpha=1.0)),
}


def quadratic_null_run(name: str, seed: int) -> RunEvidence:
    """A healthy world and its placebo."""
    world = replace(NULL_FEDERATIONS[name], seed=seed)
    facts = RunInfo(world.local_steps, world.domain_names, make_mixtures(4, 8, 1.0))
    return RunEvidence(run_quadratics(world), run_quadratics(replace(world, replicate=1)), info=facts, seed=seed)


def adapter_null_run(seed: int) -> RunEvidence:
    """Adapters of clients with one map, few local steps."""
    run, twin = (analytic.run_adapters(analytic.AdapterFederation(0.0, local_steps=5, seed=each)) for each in (seed, seed + 5000))
    return RunEvidence(run, twin, info=RunInfo(5), seed=seed)


def state_null_run(seed: int) -> RunEvidence:
    """Hidden states that jitter and stay."""
    run, twin = (analytic.run_states(analytic.CollapsingStates(0.0, seed=each)) for each in (seed, seed + 5000))
    return RunEvidence(run, twin, seed=seed)


NULL_RUNS: dict[str, Callable[[int], RunEvidence]] = {
    **{name: partial(quadratic_null_run, name) for name in NULL_FEDERATIONS},
    "adapters": adapter_null_run,
    "hidden states": state_null_run,
}
