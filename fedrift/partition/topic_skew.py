"""Topic skew: clients hold different topics, authors or publishers.

``TopicMix`` uses the mixture q_k(s) = (1 - s) pi + s e_d(k) with d(k) = k mod T. Here pi is the corpus's distribution over T topics,
and e_d is topic d alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Gt

from ..core.errors import UserError
from ..core.lazy_imports import special
from ..data.corpus import Corpus
from ..data.tables import format_columns
from .base import NumClients, Partition, Severity, document_sizes, document_topics
from .margins import argsort_by_group, assign_documents, fit_columns, fit_margins, tokens_per_group, uniform_table


@dataclass(frozen=True)
class TopicMix:
    """Topic skew by a linear mixture: from an IID sample of the corpus (severity 0) to only topic k mod T for client k (severity 1).

    If there are fewer clients than topics, topic t belongs to client t mod N, so a client owns several topics.

    If topics differ in size, three properties conflict: using all documents, equal budgets, and one topic per client. ``budgets``
    selects which of them to give up. With each choice, the budgets and the set of documents are the same at every severity.

    - ``domain``: The budget of a client is its share of its own topics. All documents are used, and severity 1 is pure.
    - ``equal``: All budgets are equal, and all documents are used. At severity 1 clients of small topics also receive documents
      of large topics, as few as the row and column sums allow.
    - ``trimmed``: All budgets are equal, and severity 1 is pure. Documents of the larger topics are left out; they are drawn once
      and are the same at every severity.

    Attributes:
        num_clients: N, the number of clients.
        severity: Share of a client's own topics in its mixture, in [0, 1].
        budgets: Rule for the clients' budgets, as listed above.

    Example:
        >>> partition = TopicMix(num_clients=3, severity=1.0)(corpus, rng)
        >>> [sorted(set(corpus.label[rows].tolist())) for rows in partition.rows]
        [[0], [1], [2]]
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    budgets: Literal["domain", "equal", "trimmed"] = "domain"

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        topic, names = document_topics(corpus)
        owned_topics = topic_ownership(self.num_clients, len(names))
        if self.budgets == "trimmed":
            rows = trim_to_proportions(topic, size, (owned_topics / owned_topics.sum(axis=1, keepdims=True)).sum(axis=0), rng)
            if len(rows) < self.num_clients:
                raise UserError(
                    f"partition.budgets 'trimmed' reduces corpus {corpus.name!r} to {len(rows)} documents, which is too few for "
                    f"{self.num_clients} clients. Set a smaller partition.num_clients, drop the corpus's smallest domain, or set "
                    "partition.budgets to 'domain' or 'equal'."
                )
            topic, size = topic[rows], size[rows]
            partition = assign_documents(self._target_table(owned_topics, tokens_per_group(topic, size)), topic, size, rng)
            return Partition(tuple(rows[documents] for documents in partition.rows))
        return assign_documents(self._target_table(owned_topics, tokens_per_group(topic, size)), topic, size, rng)

    def _target_table(self, ownership: np.ndarray, topic_tokens: np.ndarray) -> np.ndarray:
        """Return the target number of tokens of each client and topic, [N, T]."""
        pure = ownership * (topic_tokens / ownership.sum(axis=0))  # each topic is divided equally among its owners
        if self.budgets != "equal":
            return (1 - self.severity) * uniform_table(pure.sum(axis=1), topic_tokens) + self.severity * pure
        rows = np.full(self.num_clients, topic_tokens.sum() / self.num_clients)
        pure = pure * (rows / pure.sum(axis=1))[:, None]
        return fit_margins((1 - self.severity) * uniform_table(rows, topic_tokens) + self.severity * pure, rows, topic_tokens)


def topic_ownership(num_clients: int, num_topics: int) -> np.ndarray:
    """Return which topics each client owns, [N, T] bool: k mod T, or all t with t mod N = k if N < T."""
    return (np.arange(num_clients)[:, None] - np.arange(num_topics)) % min(num_clients, num_topics) == 0


def trim_to_proportions(group: np.ndarray, size: np.ndarray, proportions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the sorted indices of the documents to keep so that the groups' tokens have the given proportions.

    At least one document of each group is kept.

    Args:
        group: Group of each document, [D].
        size: Tokens of each document, [D].
        proportions: Relative size of each group after trimming, [T].
        rng: Random generator that chooses the documents.
    """
    columns = tokens_per_group(group, size)
    keep = proportions * (columns / proportions).min()
    order = rng.permutation(len(group))
    order = order[argsort_by_group(group[order])]
    middle = np.cumsum(size[order]) - size[order] / 2 - (np.cumsum(columns) - columns)[group[order]]
    is_first = np.diff(group[order], prepend=-1) > 0
    return np.sort(order[is_first | (middle < keep[group[order]])])


# Topic skew by count: the "pathological" split of McMahan et al., "Communication-Efficient Learning of Deep Networks from
# Decentralized Data", AISTATS 2017, arXiv:1602.05629, section 3. There each client holds two digits, which are assigned randomly;
# here topics are assigned round-robin.


@dataclass(frozen=True)
class KDomains:
    """Topic skew by count: each client holds k of the T topics.

    At severity 0 k is T. At severity 1 k is 1, or the smallest number with which N clients can hold all T topics. In between
    k = T - s (T - 1), rounded.

    Each topic belongs to equally many clients if T divides N k. If T divides N, a client's budget is its share of the topic that it
    holds at severity 1, and it is the same at every severity. Otherwise budgets are as equal as k topics per client allow. If all
    topics have the same size, all budgets are equal.

    Attributes:
        num_clients: N, the number of clients.
        severity: Degree of the skew, in [0, 1].

    Example:
        >>> partition = KDomains(num_clients=3, severity=0.5)(corpus, rng)
        >>> [sorted(set(corpus.label[rows].tolist())) for rows in partition.rows]
        [[0, 1], [1, 2], [0, 2]]
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
        owned_topics = assign_round_robin(self.num_clients, len(names), self.topics_per_client(len(names)))
        return assign_documents(fit_columns(owned_topics * columns, rows, columns), topic, size, rng)

    def topics_per_client(self, num_topics: int) -> int:
        """Return the number of topics that each client holds, given the number of topics in the corpus."""
        fewest = -(-num_topics // self.num_clients)  # every topic needs a client
        return max(fewest, round(num_topics - self.severity * (num_topics - 1)))


def assign_round_robin(num_clients: int, num_topics: int, topics_per_client: int) -> np.ndarray:
    """Assign ``topics_per_client`` consecutive topics (mod T) to each client, starting after the last topic of the previous client.

    If T divides N, consecutive clients start one topic apart instead. The topics then still belong to equally many clients, and the
    k topics of a client contain its k - 1 topics of a higher severity.

    Args:
        num_clients: N, the number of clients.
        num_topics: T, the number of topics.
        topics_per_client: k, the number of topics of each client.

    Returns:
        Which topics each client holds, [N, T] bool.
    """
    start = np.arange(num_clients) * (1 if num_clients % num_topics == 0 else topics_per_client)
    owned_topics = np.zeros((num_clients, num_topics), dtype=bool)
    owned_topics[np.arange(num_clients)[:, None], (start[:, None] + np.arange(topics_per_client)) % num_topics] = True
    return owned_topics


# Topic skew by Dirichlet draws: q_k ~ Dir(alpha T pi) with alpha = 100^(1 - s) 0.01^s. Hsu, Qi & Brown, "Measuring the Effects of
# Non-Identical Data Distribution for Federated Visual Classification", 2019, arXiv:1909.06335.


@dataclass(frozen=True)
class Dirichlet:
    """Topic skew by random mixtures: each client's topic distribution is a draw from a Dirichlet distribution. Budgets are equal.

    At severity 0 every client holds an IID sample of the corpus. At severity 1 alpha is 0.01, and clients have nearly one topic each.

    The drawn table is fitted to the budgets and to the topics' tokens, and no draw is repeated. One random stream gives the same uniform
    numbers at every severity, so a client's mixture moves further in one direction as the severity grows. Severity 0 uses
    alpha = infinity and not 100, because alpha = 100 already has a total variation distance of 0.03 to the corpus's distribution.

    Attributes:
        num_clients: N, the number of clients.
        severity: Degree of the skew, in [0, 1].
        alpha: The concentration as papers give it, q_k ~ Dir(alpha T pi), in place of a severity; ``alpha: 0.1`` is severity 0.75.
            The IID baseline has severity 0, where alpha has no effect.

    Example:
        >>> partition = Dirichlet(num_clients=3, alpha=0.1)(corpus, rng)
        >>> [np.bincount(corpus.label[rows], minlength=3).tolist() for rows in partition.rows]
        [[19, 0, 0], [0, 2, 18], [1, 18, 2]]
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    alpha: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and self.severity not in (0, 1):
            raise UserError(
                f"partition: Dirichlet takes `severity` or `alpha`, and got severity {self.severity:g} with alpha "
                f"{self.alpha:g}. Remove one of them"
            )

    @property
    def name_detail(self) -> str:
        """Return the alpha that replaces the severity, for the display name; "" if there is none."""
        return f"alpha {self.alpha:g}" if self.alpha is not None and self.severity > 0 else ""

    @property
    def concentration(self) -> float:
        """Return the alpha that papers report.

        It is near 100 at severities just above 0, 1 at 0.5, 0.1 at 0.75 and 0.01 at 1, and infinite at severity 0.
        """
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
    """Return the concentration alpha = 100^(1 - s) 0.01^s; infinity at severity 0."""
    return 100 ** (1 - severity) * 0.01**severity if severity > 0 else np.inf


def sample_dirichlet(concentration: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return draws from a Dirichlet distribution, computed from uniform numbers by inversion of the gamma distribution.

    The computation uses logarithms, because a gamma variable of shape 0.01 is often smaller than the smallest float. In that range
    P(a, x) = x^a / Gamma(a + 1) to first order, so log x = (log u + log Gamma(a + 1)) / a.

    Args:
        concentration: Parameters of the distribution, [T].
        uniform: Uniform random numbers in [0, 1), [..., T].

    Returns:
        Draws that sum to 1 over the last axis, [..., T].
    """
    uniform = np.clip(uniform, 1e-300, 1 - 1e-16)
    shape = np.broadcast_to(concentration, uniform.shape)
    log_small = (np.log(uniform) + special.gammaln(shape + 1)) / shape
    log_regular = np.log(np.maximum(special.gammaincinv(shape, uniform), 1e-300))
    log_gamma = np.where(log_small < -30, log_small, log_regular)
    share = np.exp(log_gamma - log_gamma.max(axis=-1, keepdims=True))
    return share / share.sum(axis=-1, keepdims=True)


# Natural clients, as in the public benchmarks of federated text. LEAF (Caldas et al., 2018, arXiv:1812.01097) makes each Reddit user a
# client, and McMahan et al. (2017, arXiv:1602.05629, section 3) make each author of posts a client. Here a client is a
# source of the corpus, such as a subreddit.


@dataclass(frozen=True)
class BySource:
    """Natural clients: each client holds the documents of one source, such as an author or a subreddit.

    At severity 0 every client holds an IID sample of the corpus. At severity 1 client k holds only source k mod S. In between a share s
    of its tokens comes from its source and 1 - s from the whole corpus. A client's budget is that of its source at every severity, so the
    IID baseline has the same skew of sizes as the natural clients.

    With fewer clients than sources, source t belongs to client t mod N. With more clients than sources, clients share a source. The
    configuration key ``dataset.source_column`` names the column with the author or publisher of a text (default: ``source``).

    Attributes:
        num_clients: N, the number of clients.
        severity: Share of the own source in a client's mixture, in [0, 1].

    Example:
        >>> partition = BySource(num_clients=2)(corpus, rng)
        >>> [sorted(set(corpus.source[rows].tolist())) for rows in partition.rows]
        [['daily'], ['weekly']]
    """

    uses_sources: ClassVar[bool] = True

    num_clients: NumClients = 10
    severity: Severity = 1.0

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        names, source = np.unique(corpus.source.astype(str), return_inverse=True)
        name, columns = corpus.name, f"its columns: {format_columns(corpus.columns)}"
        if not corpus.has_source:
            raise UserError(
                f"BySource needs a column with the author or publisher of each text, but corpus {name!r} has no "
                f"column 'source' ({columns}). Name the column with dataset.source_column."
            )
        if missing := int((corpus.source == "").sum()):
            raise UserError(
                f"BySource needs a source for every document, but {missing} of the {len(corpus)} documents "
                f"of corpus {name!r} have none ({columns}; sources such as NA, None and null count as "
                "missing). Name another column with dataset.source_column."
            )
        if len(names) < 2:
            raise UserError(
                f"BySource needs at least 2 sources, but corpus {name!r} has 1, {names[0][:80]!r} "
                f"({columns}). Name another column with dataset.source_column."
            )
        if 2 * len(names) > len(corpus):
            raise UserError(
                f"Corpus {name!r} has {len(names)} sources for {len(corpus)} documents, which is fewer than two documents per "
                "source and too few for natural clients. Name the column with the author or publisher with dataset.source_column "
                f"({columns}), use another corpus (reddit_posts: the subreddit), or partition by topic: TopicMix, Dirichlet."
            )
        # Each source's topics are divided in proportion, so clients that share a source have the same topic distribution.
        kinds, kind = np.unique(np.stack([source, corpus.label]), axis=1, return_inverse=True)
        owned_sources = topic_ownership(self.num_clients, len(names))
        tokens = tokens_per_group(kind.ravel(), size)
        pure = (owned_sources / owned_sources.sum(axis=0))[:, kinds[0]] * tokens
        table = (1 - self.severity) * uniform_table(pure.sum(axis=1), tokens) + self.severity * pure
        return assign_documents(table, kind.ravel(), size, rng)
