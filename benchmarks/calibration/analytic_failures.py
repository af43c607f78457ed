"""Failures injected into analytic federations, and healthy runs of them.

Each injected failure is exact or nearly exact. If the failure is caused by heterogeneity, the control is the same federation with IID
clients. If it has another cause (a bug, a learning rate), the control is the same federation without that cause.
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
from fedrift.diagnosis.failures import find_training_divergence
from fedrift.diagnosis.finding import THRESHOLDS, RunEvidence, RunInfo


@dataclass(frozen=True)
class InjectedFailure:
    """A failure that a detector must find.

    Attributes:
        name: The name of the injected failure.
        failure: The failure that a detector must report.
        make_evidence: Computes the run and its control, given a seed.
        side_effects: Failures that occur together with it and are no false alarms.
        onset_round: The round in which the failure starts.
    """

    name: str
    failure: str
    make_evidence: Callable[[int], RunEvidence]
    side_effects: frozenset[str] = frozenset()
    onset_round: int = 0


@dataclass(frozen=True)
class DividedByCohort(Scaffold):
    """SCAFFOLD with a bug: the update of c is divided by the size of the cohort instead of the number of all clients."""

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        """Update the server with the wrong divisor."""
        broadcast = server.broadcast + cluster_sum(update.state_delta, update) / len(update.weight)
        return replace(super().server_update(server, update), broadcast=broadcast)


def with_iid_mixtures(federation: QuadraticFederation) -> QuadraticFederation:
    """Return the federation with the same mixture of domains for all clients."""
    mean_mixture = np.asarray(federation.mixtures).mean(axis=0)
    return replace(federation, mixtures=(tuple(mean_mixture.tolist()),) * federation.num_clients)


def run_with_control(
    federation: QuadraticFederation, control: QuadraticFederation | None = None, seed: int = 0, **anchors: QuadraticFederation
) -> RunEvidence:
    """Run a federation, its control and further reference runs with one seed.

    Args:
        federation: The federation with the injected failure.
        control: The control; None uses the federation with IID clients.
        seed: The seed of all runs.
        anchors: Further reference runs, by their field in ``RunEvidence``.
    """
    federations = {"run": federation, "iid_baseline": control or with_iid_mixtures(federation), **anchors}
    runs = {field: run_quadratics(replace(one, seed=seed)) for field, one in federations.items()}
    return RunEvidence(**runs, info=RunInfo(federation.local_steps, federation.domain_names, federation.mixtures), seed=seed)  # type: ignore[arg-type]


def divergence(seed: int) -> RunEvidence:
    """Inject divergence: curvatures 1 and 9.5 on separate clients.

    A round multiplies x by 1.225 on average, but by 8e-9 in the IID run, so only the skewed run diverges.
    """
    return run_with_control(QuadraticFederation(a=(1.0, 9.5), lr=0.22, optimum_spread=0.3), seed=seed)


def is_divergent(is_skewed: bool, seed: int, lr: float) -> bool:
    """Return whether a federation with curvatures 1 and 9.5 diverges at a learning rate.

    The exact boundaries are 0.2176 with one curvature per client (skewed), and 2 / 5.25 = 0.381 with both on every client (IID).
    """
    federation = QuadraticFederation(a=(1.0, 9.5), lr=lr, optimum_spread=0.3, num_rounds=60, seed=seed)
    return bool(find_training_divergence(run_quadratics(federation if is_skewed else with_iid_mixtures(federation)), THRESHOLDS)[0])


def oscillation(seed: int) -> RunEvidence:
    """Inject oscillation: with one of two clients per round, x has a standard deviation of 0.406, and converges in the IID run."""
    return run_with_control(QuadraticFederation(x0=2.0, cohort_size=1, optimum_spread=0.1, num_rounds=80), seed=seed)


def client_drift(seed: int) -> RunEvidence:
    """Inject client drift: f1 = x^2 + G x and f2 = -G x.

    FedAvg ends at the distance G K lr / (1 - r) - G / 2 from the optimum 0 (SCAFFOLD paper, section 7).
    """
    federation = QuadraticFederation(a=(2.0, 0.0), b=(0.0, 0.0), slope=(2.0, -2.0), x0=5.0, noise=0.1)
    evidence = run_with_control(federation, seed=seed, fedsgd=replace(federation, algorithm=FedSGD(Sgd(0.1)), local_steps=10))
    sweep = {steps: run_quadratics(replace(federation, local_steps=steps, seed=seed)) for steps in (2, 5)}
    return replace(evidence, local_steps_sweep=sweep)


def large_proximal_term(seed: int) -> RunEvidence:
    """Inject stalled convergence: with mu = 100 and exact proximal steps, 97.6 % of the distance remain after each round."""
    federation = QuadraticFederation(optimum_spread=0.1, num_rounds=60, noise=0.05)
    control = with_iid_mixtures(federation)
    return run_with_control(replace(federation, algorithm=FedProx(mu=100.0, proximal="prox_step")), control, seed, best_lr=federation)


def small_learning_rate(seed: int) -> RunEvidence:
    """Inject stalled convergence: a learning rate that is a thousand times too low."""
    federation = QuadraticFederation(optimum_spread=0.1, noise=0.05)
    return run_with_control(replace(federation, lr=federation.lr / 1000), with_iid_mixtures(federation), seed, best_lr=federation)


def wrong_control_variates(seed: int) -> RunEvidence:
    """Inject a bug of public code: SCAFFOLD's update of c is divided by the size of the cohort instead of the number of all clients."""
    federation = QuadraticFederation(
        a=(1.0, 2.0, 3.0, 4.0),
        b=(-1.0, 0.0, 1.0, 2.0),
        mixtures=make_mixtures(4, 8, 0.5),
        cohort_size=2,
        noise=0.2,
        lr=0.02,
        algorithm=DividedByCohort(),
    )
    return run_with_control(federation, replace(federation, algorithm=Scaffold()), seed)


def stale_control_variates(seed: int) -> RunEvidence:
    """Inject stale control variates: two of 24 clients per round, far from the optimum; the control has cohorts of sixteen.

    When a c_k is used again, the gradient has shrunk to a fraction of it. After convergence, age would be harmless, because c_k
    stays valid.
    """
    federation = QuadraticFederation(
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
    return run_with_control(federation, replace(federation, cohort_size=16), seed)


def overshoot(seed: int) -> RunEvidence:
    """Inject server overshoot: heavy-ball momentum on the server just above its stable rate 2 (1 + beta) / (1 - r) = 4.62.

    FedDyn with a tiny alpha is not suitable, because it overshoots only once: |h| / alpha is largest after the first round.
    """
    federation = QuadraticFederation(
        optimum_spread=0.1, noise=0.05, algorithm=FedAvg(server_optimizer=Sgd(4.65, momentum=0.9)), num_rounds=30, x0=2.0
    )
    return run_with_control(federation, replace(federation, algorithm=FedAvg(server_optimizer=Sgd(0.5, momentum=0.9))), seed)


def averaged_factors(seed: int) -> RunEvidence:
    """Inject an aggregation error: after 50 local steps, the product of the mean factors differs from the mean of the products."""
    run, control = (
        analytic.run_adapters(analytic.AdapterFederation(map_distance, num_rounds=6, lr=0.02, seed=seed)) for map_distance in (1.0, 0.0)
    )
    return RunEvidence(run, control, info=RunInfo(50), seed=seed)


def nine_to_one(seed: int) -> RunEvidence:
    """Inject unfairness: nine clients hold one domain and the tenth client another, so the model fits the nine."""
    federation = QuadraticFederation(a=(1.0, 1.0), b=(0.0, 2.0), mixtures=((1.0, 0.0),) * 9 + ((0.0, 1.0),), noise=0.1, optimum_spread=0.1)
    return run_with_control(federation, seed=seed, local_only=replace(federation, algorithm=LocalOnly()))


def nan_client(seed: int) -> RunEvidence:
    """Inject a failed client: its gradients are NaN, so the server must exclude and report it."""
    federation = QuadraticFederation(optimum_spread=0.1, mixtures=make_mixtures(2, 6, 0.0), noise=0.1)
    return run_with_control(replace(federation, nan_clients=(3,)), federation, seed)


def sample_with_absence(state: FederatedState, cohort_size: int, seed: int) -> Tensor:
    """Sample all clients except those of one of four domains, which are absent for three rounds in turn."""
    absent_domain = state.round // 3 % 4
    return torch.tensor([client for client in range(len(state.cluster_ids)) if client % 4 != absent_domain])


def scheduled_absence(seed: int) -> RunEvidence:
    """Inject forgetting during absence: each of four domains is absent in three of twelve rounds."""
    federation = QuadraticFederation(
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
    return run_with_control(federation, seed=seed)


def sample_first_domain(state: FederatedState, cohort_size: int, seed: int) -> Tensor:
    """Sample only the clients of domain 0."""
    return torch.arange(0, len(state.cluster_ids), 2)


def single_domain(seed: int) -> RunEvidence:
    """Inject forgetting: only one of two domains is trained, so the model moves away from the optimum of general text between them."""
    federation = QuadraticFederation(
        a=(1.0, 1.0),
        b=(-1.0, 1.0),
        mixtures=make_mixtures(2, 8, 1.0),
        x0=0.0,
        noise=0.1,
        general_optimum=0.0,
        client_sampler=sample_first_domain,
    )
    return run_with_control(federation, seed=seed)


def collapsed_states(seed: int) -> RunEvidence:
    """Inject representation collapse: the states are projected almost completely onto one direction."""
    run, control = (analytic.run_states(analytic.CollapsingStates(strength, seed=seed)) for strength in (0.98, 0.0))
    return RunEvidence(run, control, seed=seed)


OSCILLATION_EFFECTS = frozenset({"domain oscillation", "loss gap", "domain gap", "forgetting during absence", "oscillation"})
DRIFT_EFFECTS = frozenset({"client drift", "unfairness", "loss gap", "domain gap", "stalled convergence"})
FORGETTING_EFFECTS = DRIFT_EFFECTS | {"divergence"}  # training starts at the optimum of all domains, so that the loss ends above its start

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
    InjectedFailure(  # the model passes near zero, so that some updates are many times larger than the model
        "scheduled absence", "forgetting during absence", scheduled_absence, OSCILLATION_EFFECTS | {"exploding updates"}
    ),
    InjectedFailure("one domain only", "forgetting of general text", single_domain, FORGETTING_EFFECTS | {"forgetting of syntax"}),
    InjectedFailure("one domain only", "forgetting of syntax", single_domain, FORGETTING_EFFECTS | {"forgetting of general text"}),
    InjectedFailure("onto one direction", "representation collapse", collapsed_states, onset_round=5),
)


# Healthy runs: all clients have the same mixture, so every finding about heterogeneity is a false alarm. The control is the same
# federation with other noise and cohorts. The table of domains per client is invented, so that detectors that need it are tested too.

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
    """Run a healthy federation and its control."""
    federation = replace(NULL_FEDERATIONS[name], seed=seed)
    info = RunInfo(federation.local_steps, federation.domain_names, make_mixtures(4, 8, 1.0))
    return RunEvidence(run_quadratics(federation), run_quadratics(replace(federation, replicate=1)), info=info, seed=seed)


def adapter_null_run(seed: int) -> RunEvidence:
    """Run adapters of clients with the same target map and few local steps, and their control."""
    run, control = (
        analytic.run_adapters(analytic.AdapterFederation(0.0, local_steps=5, seed=run_seed)) for run_seed in (seed, seed + 5000)
    )
    return RunEvidence(run, control, info=RunInfo(5), seed=seed)


def state_null_run(seed: int) -> RunEvidence:
    """Create hidden states with noise but without collapse, and their control."""
    run, control = (analytic.run_states(analytic.CollapsingStates(0.0, seed=run_seed)) for run_seed in (seed, seed + 5000))
    return RunEvidence(run, control, seed=seed)


NULL_RUNS: dict[str, Callable[[int], RunEvidence]] = {
    **{name: partial(quadratic_null_run, name) for name in NULL_FEDERATIONS},
    "adapters": adapter_null_run,
    "hidden states": state_null_run,
}
