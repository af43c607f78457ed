"""Partitioners built from others: combined topic and quantity skew, and severities calibrated to a measured divergence."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from annotated_types import Interval

from ..core.errors import UserError
from ..core.random import numpy_stream
from ..data.corpus import Corpus
from .base import (
    NumClients,
    Partition,
    Partitioner,
    Severity,
    call_partitioner,
    counts_by_client,
    display_name,
    document_sizes,
    document_topics,
    rewritten_texts,
    tokens_by_label,
)
from .heterogeneity import generalized_jsd, normalized_jsd
from .margins import assign_documents, fit_margins, split_by_budget, tokens_per_group, uniform_table
from .size_skew import sample_budget_shares
from .topic_skew import TopicMix, alpha_from_severity, sample_dirichlet, topic_ownership
from .words import count_words


@dataclass(frozen=True)
class Composed:
    """Topic skew and quantity skew combined.

    At severity 0 every client holds an IID sample of the corpus, and all budgets are equal. At severity 1 topic skew has severity
    ``topic_severity`` and quantity skew has severity ``quantity_severity``. In between, both are multiplied by the severity.

    The budgets are exactly those of ``Quantity``. A client whose budget exceeds the tokens of its topics also receives documents of
    other topics, as few as the row and column sums allow.

    Attributes:
        num_clients: N, the number of clients.
        severity: Common factor of both skews, in [0, 1].
        topic_severity: Severity of the topic skew when ``severity`` is 1.
        quantity_severity: Severity of the quantity skew when ``severity`` is 1.
        topic_method: How topics are mixed: ``mix`` as in ``TopicMix``, ``dirichlet`` as in ``Dirichlet``.
        min_share: Smallest budget of a client, as a share of an equal budget.

    Example:
        >>> partition = Composed(num_clients=3, quantity_severity=0.5)(corpus, rng)
        >>> partition.budgets(corpus).tolist()
        [1038, 330, 70]
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    topic_severity: Annotated[float, Interval(ge=0, le=1)] = 1.0
    quantity_severity: Annotated[float, Interval(ge=0, le=1)] = 0.5
    topic_method: Literal["mix", "dirichlet"] = "mix"
    min_share: Annotated[float, Interval(ge=0, le=1)] = 0.02

    @property
    def name_detail(self) -> str:
        """Return the topic method and the two severities, for the display name."""
        return f"{self.topic_method} {self.topic_severity:g} quantity {self.quantity_severity:g}"

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        group, names = document_topics(corpus)
        columns = tokens_per_group(group, size)
        share = sample_budget_shares(self.num_clients, self.severity * self.quantity_severity, self.min_share, rng.random(self.num_clients))
        rows = share * columns.sum()
        uniform = rng.random((self.num_clients, len(names)))
        table = uniform_table(rows, columns)
        severity = self.severity * self.topic_severity
        if self.topic_method == "mix":
            own_topics = topic_ownership(self.num_clients, len(names)) * columns
            own_topics = own_topics * (rows / own_topics.sum(axis=1))[:, None]
            table = fit_margins((1 - severity) * table + severity * own_topics, rows, columns)
        elif severity > 0:
            topic_shares = sample_dirichlet(alpha_from_severity(severity) * len(names) * columns / columns.sum(), uniform)
            table = fit_margins(topic_shares * rows[:, None], rows, columns)
        return assign_documents(table, group, size, rng)


# Calibration: find the severity at which a partitioner reaches a given measured divergence, so that different partitioners can be
# compared at equal heterogeneity.

PartitionerT = TypeVar("PartitionerT", bound=Partitioner)
SeverityMeasure = Callable[[Corpus, Partition], float]


def label_severity(corpus: Corpus, partition: Partition) -> float:
    """Return the normalized Jensen-Shannon divergence of the clients' topic distributions.

    The divergence is divided by its maximum, so the value lies in [0, 1].
    """
    owner = partition.document_owners(len(corpus))
    rows = np.flatnonzero(owner >= 0)
    assigned = corpus.take(rows)
    return float(normalized_jsd(tokens_by_label(assigned, document_sizes(assigned, 1), owner[rows], len(partition))))


def token_severity(corpus: Corpus, partition: Partition) -> float:
    """Return the Jensen-Shannon divergence of the clients' word distributions in excess of chance, normalized to at most 1.

    With divergence J and chance level J0 the value is (J - J0) / (log2 N - J0). J0 is the divergence of one random partition of the
    same rewritten documents with the same budgets. That partition is drawn from a fixed random stream.
    """
    owner = partition.document_owners(len(corpus))
    rows = np.flatnonzero(owner >= 0)
    assigned, owner, num_clients = corpus.take(rows), owner[rows], len(partition)
    counts = count_words(rewritten_texts(assigned, partition, owner)).counts
    size = np.maximum(counts.sum(axis=1), 1.0)
    order = numpy_stream(0, "token severity").permutation(len(owner))
    chance_owner = np.empty_like(owner)
    chance_owner[order] = split_by_budget(size[order], np.bincount(owner, weights=size, minlength=num_clients))
    measured, chance_level = (generalized_jsd(counts_by_client(counts, owners, num_clients)) for owners in (owner, chance_owner))
    maximum = np.log2(num_clients) if num_clients > 1 else 1.0
    return float((measured - chance_level) / max(maximum - chance_level, 1e-12))


def calibrate_severity(
    partitioner: PartitionerT,
    corpus: Corpus,
    target: float,
    make_rng: Callable[[], np.random.Generator],
    *,
    measure: SeverityMeasure = label_severity,
    tolerance: float = 0.01,
    max_trials: int = 30,
    allow_nearest: bool = False,
) -> PartitionerT:
    """Return the partitioner with the severity at which ``measure`` equals ``target``, found by bisection.

    Args:
        partitioner: The partitioner; its own severity is ignored.
        corpus: The documents to partition in each trial.
        target: Value that ``measure`` should have.
        make_rng: Returns a fresh generator of the same random stream at each call, so that only the severity changes between trials.
        measure: Function from corpus and partition to a divergence that grows with the severity.
        tolerance: Largest accepted absolute difference from ``target``.
        max_trials: Largest number of bisection steps.
        allow_nearest: Whether to return the nearest severity if no trial reaches ``target`` within ``tolerance``.

    Raises:
        UserError: No trial reaches ``target`` within ``tolerance``, and ``allow_nearest`` is False. The message names the
            values that the partitioner reaches.
    """
    dataclass_instance: Any = partitioner

    def run_trial(severity: float) -> tuple[PartitionerT, float]:
        trial = replace(dataclass_instance, severity=severity)
        return trial, measure(corpus, call_partitioner(trial, corpus, make_rng()))

    low, high = 0.0, 1.0
    trials = [run_trial(low), run_trial(high)]
    is_reachable = trials[0][1] - tolerance <= target <= trials[1][1] + tolerance
    for _ in range(max_trials if is_reachable else 0):
        best, measured = min(trials, key=lambda trial: abs(trial[1] - target))
        if abs(measured - target) <= tolerance:
            return best
        middle = (low + high) / 2
        trials.append(run_trial(middle))
        low, high = (middle, high) if trials[-1][1] < target else (low, middle)
    best, measured = min(trials, key=lambda trial: abs(trial[1] - target))
    if allow_nearest or abs(measured - target) <= tolerance:
        return best
    raise UserError(
        f"No severity of {type(partitioner).__name__} gives a measured divergence of {target:.3f} on corpus {corpus.name!r}. The "
        f"divergence is {trials[0][1]:.3f} at severity 0 and {trials[1][1]:.3f} at severity 1, and the nearest value is "
        f"{measured:.3f} (at severity {best.severity:.3f}). Choose a target that is reached, another partition, or another corpus."
    )


# A partitioner whose severity is the measured divergence instead of the partitioner's own parameter.

SEVERITY_MEASURES = {"domains": label_severity, "words": token_severity}


@dataclass(frozen=True)
class Calibrated:
    """Another partitioner whose severity is calibrated to a measured divergence.

    At severity 0 this is the IID baseline of ``base``. At severity s the severity of ``base`` is chosen so that the clients'
    divergence equals s within 0.01. The bisection uses the same documents and the same random stream as the final partition.

    Attributes:
        num_clients: N, the number of clients. ``base`` must not set a different one.
        severity: Target divergence, in [0, 1]. ``base`` must not set a different severity.
        base: The partitioner to calibrate.
        measure: The divergence as a share of its maximum: of the clients' domains (``domains``), or of their words in excess of
            chance (``words``).
        if_unreachable: What happens if ``base`` cannot reach the divergence. ``refuse`` raises an error that names the reachable
            values, and ``nearest`` uses the nearest reachable value.

    Example:
        >>> base = TopicMix(num_clients=3)
        >>> partition = Calibrated(num_clients=3, severity=0.5, base=base, if_unreachable="nearest")(corpus, rng)
        >>> [np.bincount(corpus.label[rows], minlength=3).tolist() for rows in partition.rows]
        [[16, 2, 2], [2, 17, 1], [2, 1, 17]]
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    base: Partitioner = TopicMix()
    measure: Literal["domains", "words"] = "domains"
    if_unreachable: Literal["refuse", "nearest"] = "refuse"

    @property
    def name_detail(self) -> str:
        """Return the display name of the calibrated partitioner."""
        return display_name(self.base)

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        return self.resolve(corpus, rng)(corpus, rng)

    def resolve(self, corpus: Corpus, rng: np.random.Generator) -> Partitioner:
        """Return ``base`` with its calibrated severity.

        Args:
            corpus: The documents to partition.
            rng: Random generator; it is copied, so its state does not change.

        Raises:
            UserError: ``base`` sets its own number of clients or severity, or the divergence cannot be reached.
        """
        base: Any = self.base
        default = type(base)()
        for name in ("num_clients", "severity"):
            if getattr(base, name) not in (getattr(default, name), getattr(self, name)):
                raise UserError(
                    f"partition.base.{name} is {getattr(base, name)}, but partition.{name} is {getattr(self, name)}. "
                    f"Remove partition.base.{name}, because Calibrated sets it."
                )
        iid_baseline: Partitioner = replace(base, num_clients=self.num_clients, severity=0.0)
        if self.severity == 0:
            return iid_baseline
        return calibrate_severity(
            iid_baseline,
            corpus,
            self.severity,
            lambda: deepcopy(rng),
            measure=SEVERITY_MEASURES[self.measure],
            allow_nearest=self.if_unreachable == "nearest",
        )
