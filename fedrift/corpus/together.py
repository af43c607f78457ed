"""Several corpora as one, each a domain of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from ..seeds import numpy_stream
from .clean import Document, unique
from .corpus import TEST, TRAIN, VALIDATION
from .split import dealt


def together(
    parts: Mapping[str, list[Document]], counts: Counter[str], *, validation: float, test: float, seed: int
) -> list[Document]:
    """The documents of all ``parts``, labelled by the part they are of: in every split equally many of each.

    Each part keeps its own splits, or has them carved as any corpus. The smallest part decides how many; which
    documents of the others stay, the seed does.
    """
    found = []
    for domain, documents in parts.items():
        documents = unique(documents, counts)
        own = dealt(documents, validation=validation, test=test, seed=seed)
        found += [d._replace(label=domain, split=int(s)) for d, s in zip(documents, own, strict=True)]
    found = unique(found, counts)
    kept: list[Document] = []
    for split in (TRAIN, VALIDATION, TEST):
        each = {domain: [d for d in found if d.split == split and d.label == domain] for domain in parts}
        most = min(len(documents) for documents in each.values())
        for domain, documents in each.items():
            drawn = numpy_stream(seed, "corpus", "together", domain, split).permutation(len(documents))[:most]
            kept += [documents[row] for row in np.sort(drawn)]
    counts["more than the smallest part has"] += len(found) - len(kept)
    return kept
