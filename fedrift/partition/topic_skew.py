"""Topic skew, the plain dial: from the corpus in small to one topic a client.

q_k(s) = (1 - s) pi + s e_d(k), d(k) = k mod T, where pi is the pool's mix of T topics and e_d is topic d
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt
from scipy.special import gammaincinv, gammaln

from ..core.errors import UserError
from ..data.corpus import Corpus
from ..data.tables import format_columns
from .base import NumClients, Partition, Severity, document_sizes, document_topics
from .margins import assign_documents, fit_columns, fit_margins, tokens_per_group, uniform_table


@dataclass(frozen=True)
class TopicMix:
    """Severity 0: every client is the corpus in small. Severity 1: client k holds topic k mod T alone.

    With fewer clients than topics, topic t belongs to client t mod N, so that a client has several topics of
    its own.

    A pool whose topics differ in size cannot at once be dealt whole, in equal budgets, and one topic a
    client. ``budgets`` says what gives way; whichever it is, budgets and pool are the same at every severity:

    - ``domain``: a client's budget is its share of its own topics. Nothing is left out, severity 1 is pure.
    - ``equal``: all budgets are equal. Nothing is left out, but at severity 1 clients of small topics are
      filled up from large ones, as little as the sums allow.
    - ``trimmed``: all budgets are equal and severity 1 is pure. Documents of the larger topics are left out,
      drawn once and the same ones at every severity.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    budgets: Literal["domain", "equal", "trimmed"] = "domain"

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        topic, names = document_topics(corpus)
        own = topic_ownership(self.num_clients, len(names))
        if self.budgets == "trimmed":
            rows = trim_to_proportions(topic, size, (own / own.sum(axis=1, keepdims=True)).sum(axis=0), rng)
            if len(rows) < self.num_clients:
                raise UserError(
                    f"trimmed to equal topics, corpus {corpus.name!r} has {len(rows)} documents for "
                    f"{self.num_clients} clients. Ask for fewer clients, drop its smallest domain, or choose "
                    "budgets 'domain' or 'equal'."
                )
            topic, size = topic[rows], size[rows]
            dealt = assign_documents(self._target_table(own, tokens_per_group(topic, size)), topic, size, rng)
            return Partition(tuple(rows[held] for held in dealt.rows))
        return assign_documents(self._target_table(own, tokens_per_group(topic, size)), topic, size, rng)

    def _target_table(self, own: np.ndarray, topic_tokens: np.ndarray) -> np.ndarray:
        """Tokens of each client and topic, [N, T]."""
        pure = own * (topic_tokens / own.sum(axis=0))  # each topic in equal parts to its holders
        if self.budgets != "equal":
            return (1 - self.severity) * uniform_table(pure.sum(axis=1), topic_tokens) + self.severity * pure
        rows = np.full(self.num_clients, topic_tokens.sum() / self.num_clients)
        pure = pure * (rows / pure.sum(axis=1))[:, None]
        return fit_margins((1 - self.severity) * uniform_table(rows, topic_tokens) + self.severity * pure, rows, topic_tokens)


def topic_ownership(num_clients: int, num_topics: int) -> np.ndarray:
    """Which topics are a client's own, [N, T] bool: k mod T, or, with N < T, all t with t mod N = k."""
    return (np.arange(num_clients)[:, None] - np.arange(num_topics)) % min(num_clients, num_topics) == 0


def trim_to_proportions(group: np.ndarray, size: np.ndarray, proportions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows to keep so that the groups' tokens stand as ``proportions`` [T]; at least one row of each."""
    columns = tokens_per_group(group, size)
    keep = proportions * (columns / proportions).min()
    mixed = rng.permutation(len(group))
    mixed = mixed[np.argsort(group[mixed], kind="stable")]
    middle = np.cumsum(size[mixed]) - size[mixed] / 2 - (np.cumsum(columns) - columns)[group[mixed]]
    first = np.diff(group[mixed], prepend=-1) > 0
    return np.sort(mixed[first | (middle < keep[group[mixed]])])


# Topic skew by count: each client holds k of the T topics, from all of them down to one.
#
# The "pathological" split of McMahan et al., "Communication-Efficient Learning of Deep Networks from
# Decentralized Data", AISTATS 2017, arXiv:1602.05629, section 3 (there: two digits a client), dealt round-robin
# instead of by chance.


@dataclass(frozen=True)
class KDomains:
    """Severity 0: all T topics. Severity 1: one topic a client, or as few as N clients need to hold all T.

    Severity s is k = T - s (T - 1) topics, rounded. Each topic has equally many holders where T divides N k.
    Where T divides N, a client's budget is its share of the topic that it holds at severity 1, the same at
    every severity; elsewhere budgets are as equal as k topics a client allow. Topics of one size: equal
    budgets.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        topic, names = document_topics(corpus)
        columns = tokens_per_group(topic, size)
        rows = np.full(self.num_clients, columns.sum() / self.num_clients)
        if self.num_clients % len(names) == 0:
            rows = np.resize(columns, self.num_clients) * len(names) / self.num_clients
        held = assign_round_robin(self.num_clients, len(names), self.topics_per_client(len(names)))
        return assign_documents(fit_columns(held * columns, rows, columns), topic, size, rng)

    def topics_per_client(self, num_topics: int) -> int:
        """How many of ``num_topics`` topics a client holds."""
        fewest = -(-num_topics // self.num_clients)  # all topics have to be somewhere
        return max(fewest, round(num_topics - self.severity * (num_topics - 1)))


def assign_round_robin(num_clients: int, num_topics: int, topics_per_client: int) -> np.ndarray:
    """Which topics each client holds, [N, T] bool: ``topics_per_client`` in a row (mod T), from where the last one ended.

    Where T divides N the clients begin one topic apart instead: holders are as equal, and k topics contain k
    - 1.
    """
    start = np.arange(num_clients) * (1 if num_clients % num_topics == 0 else topics_per_client)
    held = np.zeros((num_clients, num_topics), dtype=bool)
    held[np.arange(num_clients)[:, None], (start[:, None] + np.arange(topics_per_client)) % num_topics] = True
    return held


# Topic skew by chance: each client's mix of topics is one draw from a Dirichlet distribution.
#
# q_k ~ Dir(alpha T pi), alpha = 100^(1 - s) 0.01^s. Hsu, Qi & Brown, "Measuring the Effects of Non-Identical
# Data Distribution for Federated Visual Classification", 2019, arXiv:1909.06335.


@dataclass(frozen=True)
class Dirichlet:
    """Severity 0: every client is the corpus in small. Severity 1: alpha 0.01, nearly one topic per client.
    ``alpha`` sets the concentration of the papers directly (``severity`` then stays 1): q_k ~ Dir(alpha T pi), and
    ``alpha: 0.1`` is severity 0.75. The IID baseline of a run with ``alpha`` has severity 0, where ``alpha`` does not count.

    Budgets are equal. The drawn table is fitted to them and to the topics' tokens, and never drawn again. The
    same stream gives the same uniform numbers at every severity, so that the clients' mixes grow apart, not
    elsewhere. Severity 0 is alpha = infinity and not 100, which is already 0.03 in total variation from the
    pool.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    alpha: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and self.severity not in (0, 1):
            raise UserError(
                f"partition: Dirichlet takes `severity` or `alpha`, and got severity {self.severity:g} with alpha "
                f"{self.alpha:g}. Leave `severity` out; the IID baseline sets it to 0"
            )

    @property
    def concentration(self) -> float:
        """The alpha that papers quote: near 100 at severity 0+, 1 at 0.5, 0.1 at 0.75, 0.01 at 1; infinite at severity 0."""
        return alpha_from_severity(self.severity) if self.alpha is None or self.severity == 0 else self.alpha

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        topic, names = document_topics(corpus)
        columns = tokens_per_group(topic, size)
        rows = np.full(self.num_clients, columns.sum() / self.num_clients)
        uniform = rng.random((self.num_clients, len(names)))
        table = uniform_table(rows, columns)
        if self.severity > 0:
            share = sample_dirichlet(self.concentration * len(names) * columns / columns.sum(), uniform)
            table = fit_margins(share * rows[:, None], rows, columns)
        return assign_documents(table, topic, size, rng)


def alpha_from_severity(severity: float) -> float:
    """100^(1 - s) 0.01^s; infinite at severity 0."""
    return 100 ** (1 - severity) * 0.01**severity if severity > 0 else np.inf


def sample_dirichlet(concentration: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draws from Dir(concentration [T]) made of uniform numbers [..., T] by inversion; rows sum to one.

    In logarithms, because a gamma variable of shape 0.01 is often smaller than the smallest float: there
    P(a, x) = x^a / Gamma(a + 1) to first order, so log x = (log u + log Gamma(a + 1)) / a.
    """
    uniform = np.clip(uniform, 1e-300, 1 - 1e-16)
    shape = np.broadcast_to(concentration, uniform.shape)
    small = (np.log(uniform) + gammaln(shape + 1)) / shape
    plain = np.log(np.maximum(gammaincinv(shape, uniform), 1e-300))
    drawn = np.where(small < -30, small, plain)
    share = np.exp(drawn - drawn.max(axis=-1, keepdims=True))
    return share / share.sum(axis=-1, keepdims=True)


# Natural clients: who wrote or published a text holds it, as in the public benchmarks of federated text.
#
# LEAF (Caldas et al., 2018, arXiv:1812.01097) makes a client of each Reddit user, McMahan et al. (2017,
# arXiv:1602.05629, section 3) of each author of posts; here a client is a source of the corpus, such as a subreddit.


@dataclass(frozen=True)
class BySource:
    """Severity 0: every client is the corpus in small. Severity 1: client k holds source k mod S alone.

    In between it has s of its own and 1 - s of the pool's mix. Its budget is that of its source at every severity,
    so the sizes of natural clients stay skewed in the IID baseline. With fewer clients than sources, source t belongs
    to client t mod N; with more, clients share a source. ``dataset.source_column`` names the column that says who wrote or
    published a text (default: ``source``).
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        names, source = np.unique(corpus.source.astype(str), return_inverse=True)
        name, columns = corpus.name, f"its columns: {format_columns(corpus.columns)}"
        if not corpus.has_source:
            raise UserError(
                f"a deal by source needs a column that says who wrote or published a text: corpus {name!r} has no "
                f"column 'source' ({columns}). Name the right one with dataset.source_column"
            )
        if missing := int((corpus.source == "").sum()):
            raise UserError(
                f"a deal by source needs a source for every document, but {missing} of the {len(corpus)} documents "
                f"of corpus {name!r} have none ({columns}). Name another column with dataset.source_column"
            )
        if len(names) < 2:
            raise UserError(
                f"a deal by source needs at least 2 sources, but corpus {name!r} has 1, {names[0][:80]!r} "
                f"({columns}). Name another column with dataset.source_column"
            )
        if 2 * len(names) > len(corpus):
            raise UserError(
                f"corpus {name!r} names {len(names)} sources for {len(corpus)} documents: hardly one has two, "
                "so none makes a client. Name the column that says who wrote or published a text with dataset.source_column "
                f"({columns}), take another corpus (reddit_posts: the subreddit), or deal by topic: TopicMix, Dirichlet."
            )
        # Topics of a source are dealt in proportion, so that those who share one are alike.
        kinds, kind = np.unique(np.stack([source, corpus.label]), axis=1, return_inverse=True)
        own = topic_ownership(self.num_clients, len(names))
        tokens = tokens_per_group(kind.ravel(), size)
        pure = (own / own.sum(axis=0))[:, kinds[0]] * tokens
        table = (1 - self.severity) * uniform_table(pure.sum(axis=1), tokens) + self.severity * pure
        return assign_documents(table, kind.ravel(), size, rng)
