"""Natural clients: who wrote or published a text holds it, as in the public benchmarks of federated text.

LEAF (Caldas et al., 2018, arXiv:1812.01097) makes a client of each Reddit user, McMahan et al. (2017,
arXiv:1602.05629, section 3) of each author of posts; here a client is a source of the corpus, such as a subreddit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..corpus.corpus import Corpus
from ..corpus.tables import column_names
from ..errors import UserError
from .margins import deal, even, totals
from .partition import Clients, Partition, Severity, weights
from .topic_mix import holders


@dataclass(frozen=True)
class BySource:
    """Severity 0: every client is the corpus in small. Severity 1: client k holds source k mod S alone.

    In between it has s of its own and 1 - s of the pool's mix. Its budget is that of its source at every severity,
    so the sizes of natural clients stay skewed in the IID twin. With fewer clients than sources, source t belongs
    to client t mod N; with more, clients share a source. ``corpus.source`` names the column that says who wrote or
    published a text (default: ``source``).
    """

    clients: Clients = 10
    severity: Severity = 1.0

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = weights(corpus, self.clients)
        names, source = np.unique(corpus.source.astype(str), return_inverse=True)
        name, columns = corpus.name, f"its columns: {column_names(corpus.columns)}"
        if not corpus.has_source:
            raise UserError(f"a deal by source needs a column that says who wrote or published a text: corpus {name!r} has no "
                            f"column 'source' ({columns}). Name the right one with corpus.source")
        if missing := int((corpus.source == "").sum()):
            raise UserError(f"a deal by source needs a source for every document, but {missing} of the {len(corpus)} documents "
                            f"of corpus {name!r} have none ({columns}). Name another column with corpus.source")
        if len(names) < 2:
            raise UserError(f"a deal by source needs at least 2 sources, but corpus {name!r} has 1, {names[0][:80]!r} "
                            f"({columns}). Name another column with corpus.source")
        if 2 * len(names) > len(corpus):
            raise UserError(
                f"corpus {name!r} names {len(names)} sources for {len(corpus)} documents: hardly one has two, "
                "so none makes a client. Name the column that says who wrote or published a text with corpus.source "
                f"({columns}), take another corpus (reddit_posts: the subreddit), or deal by topic: TopicMix, Dirichlet."
            )
        # Topics of a source are dealt in proportion, so that those who share one are alike.
        kinds, kind = np.unique(np.stack([source, corpus.label]), axis=1, return_inverse=True)
        own = holders(self.clients, len(names))
        tokens = totals(kind.ravel(), size)
        pure = (own / own.sum(axis=0))[:, kinds[0]] * tokens
        table = (1 - self.severity) * even(pure.sum(axis=1), tokens) + self.severity * pure
        return deal(table, kind.ravel(), size, rng)
