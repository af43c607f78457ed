"""Topic skew and quantity skew at once: some clients are small, and all are one-sided."""

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
    counts_by_client,
    display_name,
    document_sizes,
    document_topics,
    rewritten_texts,
    tokens_by_label,
)
from .divergence import generalized_jsd, normalized_jsd
from .margins import assign_documents, fit_margins, split_by_budget, tokens_per_group, uniform_table
from .size_skew import sample_budget_shares
from .topic_skew import TopicMix, alpha_from_severity, sample_dirichlet, topic_ownership
from .words import count_words


@dataclass(frozen=True)
class Composed:
    """Severity 0: the corpus in small, equal budgets. Severity 1: topic and quantity skew in full.

    ``topic_severity`` and ``quantity_severity`` are those of the two skews at severity 1; in between both are scaled
    by s. ``topic_method`` says how topics are mixed: ``mix`` as TopicMix does, ``dirichlet`` as Dirichlet does. Budgets
    are those of Quantity exactly; a client that is larger than its topic is filled up with others, as little
    as the sums allow.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    topic_severity: Annotated[float, Interval(ge=0, le=1)] = 1.0
    quantity_severity: Annotated[float, Interval(ge=0, le=1)] = 0.5
    topic_method: Literal["mix", "dirichlet"] = "mix"
    min_share: Annotated[float, Interval(ge=0, le=1)] = 0.02

    @property
    def name_detail(self) -> str:
        """How much of what is composed."""
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
            own = topic_ownership(self.num_clients, len(names)) * columns
            own = own * (rows / own.sum(axis=1))[:, None]
            table = fit_margins((1 - severity) * table + severity * own, rows, columns)
        elif severity > 0:
            drawn = sample_dirichlet(alpha_from_severity(severity) * len(names) * columns / columns.sum(), uniform)
            table = fit_margins(drawn * rows[:, None], rows, columns)
        return assign_documents(table, group, size, rng)


# Severity in common units: the dial of one regime set so that it measures as much as the dial of another.

PartitionerT = TypeVar("PartitionerT", bound=Partitioner)
SeverityMeasure = Callable[[Corpus, Partition], float]


def label_severity(corpus: Corpus, partition: Partition) -> float:
    """Jensen-Shannon divergence of the clients' topics over the most that it can be, in [0, 1]."""
    owner = partition.document_owners(len(corpus))
    held = np.flatnonzero(owner >= 0)
    dealt = corpus.take(held)
    return float(normalized_jsd(tokens_by_label(dealt, document_sizes(dealt, 1), owner[held], len(partition))))


def token_severity(corpus: Corpus, partition: Partition) -> float:
    """Jensen-Shannon divergence of the clients' words above a chance deal's, over log2 N less that: 0 to 1.

    The chance deal has the same documents, as their owners write them, and the same budgets; its cut is
    always the same one.
    """
    owner = partition.document_owners(len(corpus))
    held = np.flatnonzero(owner >= 0)
    dealt, owner, clients = corpus.take(held), owner[held], len(partition)
    counts = count_words(rewritten_texts(dealt, partition, owner)).counts
    size = np.maximum(counts.sum(axis=1), 1.0)
    mixed = numpy_stream(0, "token severity").permutation(len(owner))
    chance = np.empty_like(owner)
    chance[mixed] = split_by_budget(size[mixed], np.bincount(owner, weights=size, minlength=clients))
    found, null = (generalized_jsd(counts_by_client(counts, who, clients)) for who in (owner, chance))
    most = np.log2(clients) if clients > 1 else 1.0
    return float((found - null) / max(most - null, 1e-12))


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
    """The same regime with the dial where ``measure`` gives ``target``, within ``tolerance``; by bisection.

    ``make_rng`` gives a fresh generator of one name at each call, so that only the dial changes from trial to
    trial. A target that the regime does not reach, or steps over, is refused with what it can measure;
    ``allow_nearest`` takes the nearest dial instead.
    """
    changeable: Any = partitioner

    def at(dial: float) -> tuple[PartitionerT, float]:
        trial = replace(changeable, severity=dial)
        return trial, measure(corpus, trial(corpus, make_rng()))

    low, high = 0.0, 1.0
    tried = [at(low), at(high)]
    within = tried[0][1] - tolerance <= target <= tried[1][1] + tolerance
    for _ in range(max_trials if within else 0):
        best, found = min(tried, key=lambda trial: abs(trial[1] - target))
        if abs(found - target) <= tolerance:
            return best
        middle = (low + high) / 2
        tried.append(at(middle))
        low, high = (middle, high) if tried[-1][1] < target else (low, middle)
    best, found = min(tried, key=lambda trial: abs(trial[1] - target))
    if allow_nearest or abs(found - target) <= tolerance:
        return best
    raise UserError(
        f"{type(partitioner).__name__} cannot be set to measure {target:.3f} on corpus {corpus.name!r}: it "
        f"measures {tried[0][1]:.3f} at severity 0, {tried[1][1]:.3f} at 1, and at the nearest {found:.3f} "
        f"(severity {best.severity:.3f}). Choose such a target, another regime, or another corpus."
    )


# Any regime with its severity in common units: the dial is what is measured, not what is nominal.

SEVERITY_MEASURES = {"domains": label_severity, "words": token_severity}


@dataclass(frozen=True)
class Calibrated:
    """Severity 0: the IID baseline of ``base``. Severity s: its dial where the clients' divergence measures s, within 0.01.

    ``measure``: the divergence of the clients' domains, or of their words above chance, each as a share of the
    most there can be. The dial is found by bisection on the very documents and draws of the deal.
    ``num_clients`` and ``severity`` are said here, and ``base`` has neither. A severity that the regime cannot measure
    is refused with what it can; ``if_unreachable: nearest`` takes the nearest it can.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    base: Partitioner = TopicMix()
    measure: Literal["domains", "words"] = "domains"
    if_unreachable: Literal["refuse", "nearest"] = "refuse"

    @property
    def name_detail(self) -> str:
        """What is calibrated."""
        return display_name(self.base)

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        return self.resolve(corpus, rng)(corpus, rng)

    def resolve(self, corpus: Corpus, rng: np.random.Generator) -> Partitioner:
        """The regime with its dial set; ``rng`` stays as it was."""
        regime: Any = self.base
        plain = type(regime)()
        for name in ("num_clients", "severity"):
            if getattr(regime, name) not in (getattr(plain, name), getattr(self, name)):
                raise UserError(
                    f"partition.base.{name} is {getattr(regime, name)}, partition.{name} "
                    f"{getattr(self, name)}: say it once, as partition.{name}"
                )
        start: Partitioner = replace(regime, num_clients=self.num_clients, severity=0.0)
        if self.severity == 0:
            return start
        return calibrate_severity(
            start,
            corpus,
            self.severity,
            lambda: deepcopy(rng),
            measure=SEVERITY_MEASURES[self.measure],
            allow_nearest=self.if_unreachable == "nearest",
        )
