"""Failures injected into complete runs of language models on any testbed, and healthy runs there.

The injected failures are not exact. Each is a setting that is known to break a run (a learning rate that is thirty times too high,
clients that take turns, a client with another domain than the others), at the smallest size that shows it.

Four failures are injected only into quadratics, because the synthetic testbed does not show them (one seed each). Minibatch noise keeps
every control variate of SCAFFOLD 1.2 to 1.3 gradient norms from the gradient at any age. Updates after 32 local steps are only 1.2
times as diverse as in the baseline. A server learning rate that is too high diverges before it oscillates. If cohorts of one and of
three domains alternate, the mean loss oscillates in the baseline too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.calibration.analytic_failures import DRIFT_EFFECTS, OSCILLATION_EFFECTS, DividedByCohort, InjectedFailure
from benchmarks.calibration.testbeds import AlternatingClients, RunRequest, SubsetClients, Testbed
from fedrift.algorithms import LocalOnly, Scaffold
from fedrift.config.schema import ExperimentConfig, edit_config
from fedrift.core.optimizers import AdamW, Sgd
from fedrift.data.corpus import Corpus
from fedrift.diagnosis.finding import RunEvidence, RunInfo
from fedrift.partition import StopwordDrop
from fedrift.partition.base import NumClients, Partition, Severity, document_sizes, document_topics
from fedrift.partition.margins import assign_documents, tokens_per_group, uniform_table


@dataclass(frozen=True)
class MajorityMix:
    """A partition in which, at severity 1, the last client alone holds the last domain and the others share the other domains."""

    num_clients: NumClients = 5
    severity: Severity = 1.0

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        sizes, (topics, names) = document_sizes(corpus, self.num_clients), document_topics(corpus)
        columns, shares = tokens_per_group(topics, sizes), np.zeros((self.num_clients, len(names)))
        shares[:-1, :-1], shares[-1, -1] = 1 / (self.num_clients - 1), 1.0
        full_skew = shares * columns
        return assign_documents(
            (1 - self.severity) * uniform_table(full_skew.sum(axis=1), columns) + self.severity * full_skew, topics, sizes, rng
        )


def with_iid_partition(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with an IID partition of the same documents."""
    iid: ExperimentConfig = edit_config(config, {"partition__severity": 0.0})
    return iid


def scaled_learning_rate(testbed: Testbed, factor: float) -> dict[str, Any]:
    """Return the change that multiplies the learning rate of the base experiment."""
    return {"training__client_optimizer": Sgd(testbed.base.training.client_optimizer.lr * factor)}  # type: ignore[attr-defined]


def strong_local_training(testbed: Testbed) -> dict[str, Any]:
    """Return the change to an optimizer with a visible effect after a few dozen steps."""
    return {"training__client_optimizer": AdamW(testbed.strong_lr)}


def run_with_iid_baseline(testbed: Testbed, config: ExperimentConfig, seed: int, **injection: Any) -> RunEvidence:
    """Run a skewed experiment and its IID baseline with the same injected failure."""
    return testbed.run_with_baseline(RunRequest(config, **injection), RunRequest(with_iid_partition(config), **injection), seed)


def divergence(testbed: Testbed, seed: int) -> RunEvidence:
    """Inject divergence: a learning rate that is thirty times too high."""
    config = testbed.make_config(training__num_rounds=6, evaluation__probes=(), **scaled_learning_rate(testbed, 30))
    return testbed.run_with_baseline(
        RunRequest(config),
        RunRequest(replace(config, training=replace(config.training, client_optimizer=testbed.base.training.client_optimizer))),
        seed,
    )


def alternating_clients(testbed: Testbed, seed: int) -> RunEvidence:
    """Inject domain oscillation: one client per round, in turn, so that each domain is absent most of the time."""
    config = testbed.make_config(
        training__num_rounds=26, training__local_steps=12 * testbed.steps_factor, evaluation__probes=(), **strong_local_training(testbed)
    )
    return run_with_iid_baseline(testbed, config, seed, client_sampler=AlternatingClients())


def single_domain(testbed: Testbed, seed: int) -> RunEvidence:
    """Inject forgetting of general text: only the client of one domain participates."""
    config = testbed.make_config(
        training__num_rounds=6,
        training__local_steps=25,
        evaluation__expensive_interval=3,
        training__client_optimizer=AdamW(testbed.damaging_lr),
    )
    return run_with_iid_baseline(testbed, config, seed, client_sampler=SubsetClients((0,)))


def no_function_words(testbed: Testbed, seed: int) -> RunEvidence:
    """Inject forgetting of syntax: only a client whose texts have no function words participates."""
    clients = testbed.base.partition.num_clients
    config = testbed.make_config(
        training__num_rounds=6,
        training__local_steps=16,
        evaluation__expensive_interval=3,
        partition=StopwordDrop(clients, 1.0),
        training__client_optimizer=AdamW(0.2 * testbed.strong_lr),
    )  # with a higher learning rate, the IID baseline loses syntax too
    return run_with_iid_baseline(testbed, config, seed, client_sampler=SubsetClients((1,)))


def excluded_minority(testbed: Testbed, seed: int) -> RunEvidence:
    """Inject unfairness: four clients share some domains, and a client with another domain never participates."""
    config = testbed.make_config(
        training__num_rounds=8, training__local_steps=16, partition=MajorityMix(), evaluation__probes=(), **strong_local_training(testbed)
    )
    majority = SubsetClients((0, 1, 2, 3))
    return testbed.run_with_baseline(
        RunRequest(config, client_sampler=majority),
        RunRequest(with_iid_partition(config), client_sampler=majority),
        seed,
        local_only=RunRequest(replace(config, algorithm=LocalOnly())),
    )


def nan_client(testbed: Testbed, seed: int) -> RunEvidence:
    """Inject a failed client: its losses are NaN, so the server must exclude and report it."""
    config = with_iid_partition(testbed.make_config(training__num_rounds=6, evaluation__probes=()))
    return testbed.run_with_baseline(RunRequest(config, nan_clients=(1,)), RunRequest(config), seed)


def flipped_factors(testbed: Testbed, seed: int) -> RunEvidence:
    """Inject an aggregation error: every second client flips the signs of both factors, so that the means of the factors cancel.

    Fifty local steps alone, as in the analytic case, give an error of 44 % of a round on the synthetic testbed but no cost: the exact
    mean is worse there by 0.03 nats per token.
    """
    config = with_iid_partition(
        testbed.make_config(
            training__num_rounds=6,
            training__local_steps=10,
            evaluation__probes=("adapters",),
            evaluation__expensive_interval=1,
            **strong_local_training(testbed),
        )
    )
    return testbed.run_with_baseline(RunRequest(config, has_flipped_signs=True), RunRequest(config), seed)


def collapsed_states(testbed: Testbed, seed: int) -> RunEvidence:
    """Inject representation collapse: the states of the last block are projected onto one direction."""
    config = with_iid_partition(
        testbed.make_config(training__num_rounds=6, evaluation__probes=("hidden",), evaluation__expensive_interval=2)
    )
    return testbed.run_with_baseline(RunRequest(config, collapse_strength=0.98), RunRequest(config), seed)


def wrong_control_variates(testbed: Testbed, seed: int) -> RunEvidence:
    """Inject a bug: SCAFFOLD's update of c is divided by the size of the cohort."""
    config = testbed.make_config(
        training__num_rounds=8, training__participation_rate=0.5, evaluation__probes=("updates",), algorithm=DividedByCohort()
    )
    return testbed.run_with_baseline(RunRequest(config), RunRequest(replace(config, algorithm=Scaffold())), seed)


def small_learning_rate(testbed: Testbed, seed: int) -> RunEvidence:
    """Inject stalled convergence: a learning rate that is a thousand times too low."""
    config = testbed.make_config(
        training__num_rounds=12 * testbed.steps_factor, training__local_steps=10, evaluation__probes=(), **strong_local_training(testbed)
    )
    slow_config = replace(config, training=replace(config.training, client_optimizer=AdamW(testbed.strong_lr / 1000)))
    return testbed.run_with_baseline(RunRequest(slow_config), RunRequest(with_iid_partition(config)), seed, best_lr=RunRequest(config))


SIDE_EFFECTS = DRIFT_EFFECTS | OSCILLATION_EFFECTS
LM_FAILURES: tuple[tuple[str, str, Callable[[Testbed, int], RunEvidence], frozenset[str]], ...] = (
    # Weights that grow without bound come from exploding updates, and some become infinite.
    ("lr x 30", "divergence", divergence, SIDE_EFFECTS | {"exploding updates", "failed clients"}),
    ("one client a round, in turn", "domain oscillation", alternating_clients, SIDE_EFFECTS),
    ("one client a round, in turn", "forgetting during absence", alternating_clients, SIDE_EFFECTS),
    # The model is pretrained: with one kind of text only, the loss over all domains ends above that of the untrained model.
    ("one domain only", "forgetting of general text", single_domain, SIDE_EFFECTS | {"forgetting of syntax", "divergence"}),
    # Without function words, the hidden states also become more similar: the cosine rises by 0.13 to 0.18 (threshold 0.15), in the IID
    # baseline by 0.01.
    (
        "no function words",
        "forgetting of syntax",
        no_function_words,
        SIDE_EFFECTS | {"forgetting of general text", "representation collapse", "divergence"},
    ),
    ("four to one", "unfairness", excluded_minority, SIDE_EFFECTS),
    ("a client that is NaN", "failed clients", nan_client, frozenset()),
    ("factors turned", "aggregation error", flipped_factors, SIDE_EFFECTS),
    ("onto one direction", "representation collapse", collapsed_states, SIDE_EFFECTS | {"divergence"}),
    (
        "c divided by the cohort",
        "control-variate invariant violated",
        wrong_control_variates,
        SIDE_EFFECTS | {"stale control variates", "divergence"},
    ),
    ("lr / 1000", "stalled convergence", small_learning_rate, SIDE_EFFECTS),
)


def make_failures(testbed: Testbed) -> tuple[InjectedFailure, ...]:
    """Return all injected failures on a testbed."""
    return tuple(InjectedFailure(name, failure, partial(make, testbed), side_effects) for name, failure, make, side_effects in LM_FAILURES)


def null_run(testbed: Testbed, changes: dict[str, Any], seed: int) -> RunEvidence:
    """Run two IID experiments with different seeds, of which the second is the control.

    The table of domains per client is invented, so that detectors that need it are tested too.
    """
    config = with_iid_partition(
        testbed.make_config(training__num_rounds=22, training__local_steps=2, evaluation__expensive_interval=11, **changes)
    )
    run, info = testbed.run_cached(RunRequest(config), seed)
    control, _ = testbed.run_cached(RunRequest(config), seed + 5000)
    num_domains = len(info.domains)
    domain_shares = np.eye(num_domains)[np.arange(config.partition.num_clients) % num_domains]
    return RunEvidence(run, control, info=RunInfo(info.local_steps, info.domains, tuple(map(tuple, domain_shares.tolist()))), seed=seed)


def make_null_runs(testbed: Testbed) -> dict[str, Callable[[int], RunEvidence]]:
    """Return the healthy runs of a testbed by name."""
    kinds: dict[str, dict[str, Any]] = {
        f"{testbed.name}, FedAvg": {},
        f"{testbed.name}, SCAFFOLD, two take part": {
            "algorithm": Scaffold(),
            "training__participation_rate": 2 / testbed.base.partition.num_clients,
        },
    }
    return {name: partial(null_run, testbed, changes) for name, changes in kinds.items()}
