"""General text: what a pretrained model knew before, told by documents that no client trains on.

For ``pocket`` it is text of the half that it was pretrained on, which studies with it never use (``halves.py``). For other
models it is Wikipedia. Documents that the experiment's corpus has too are left out, whatever they are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import UserError
from .corpus import Corpus
from .halves import READ_BY_POCKET
from .named import NAMED
from .source import Source, data_folder, family, load_corpus

FIRST = "wikitext2"  # where it is not said which
DOCUMENTS = 2000  # that are looked through


def general_corpus(own: Corpus, name: str = "", *, pocket: bool = False, data: Path | None = None) -> Corpus | None:
    """Documents of the corpus ``name`` that are not in ``own``; UserError if there are none.

    Without a name it is the first of the corpora that ``pocket`` has read of which there is a local copy, and None if there
    is none: nothing is fetched that was not asked for. ``pocket``: the model is that one, and its half is taken.
    """
    for candidate in [name] if name else at_hand(data):
        half = "pretraining" if pocket and family(candidate) in READ_BY_POCKET else "all"
        found = load_corpus(Source(candidate, limit=DOCUMENTS), data=data, half=half)
        theirs = set(own.text.tolist())
        rest = found.take(np.array([text not in theirs for text in found.text]))
        if half == "pretraining":  # validation and test documents are no one's half
            rest = rest.train
        elif family(candidate) == family(own.name) and family(own.name):
            rest = rest.take(np.zeros(len(rest), dtype=bool))
        if len(rest):
            return replace(rest, name=candidate)
        if name:
            raise UserError(f"evaluate.general: every document of {name!r} belongs to the experiment's corpus {own.name!r} "
                            "or to what its model has not read; name another corpus")
    return None


def at_hand(data: Path | None) -> list[str]:
    """The corpora that ``pocket`` has read and that have a local copy, Wikipedia first."""
    folder = data_folder(data)
    return [name for name in sorted(READ_BY_POCKET & NAMED.keys(), key=lambda name: (name != FIRST, name))
            if folder and (folder / name).is_dir()]
