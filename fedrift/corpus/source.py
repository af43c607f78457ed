"""`Source`: how an experiment names its corpus; `load_corpus`: the one way in for all of them."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, MinLen, Predicate, doc

from ..errors import UserError, unknown
from ..seeds import Seed, numpy_stream
from .bbc import read_bbc
from .clean import Document, documents, gathered, of_half, unique
from .clusters import by_cluster
from .corpus import TRAIN, Corpus
from .encode import Encoder, embed
from .files import local_path, missing, read_path
from .halves import READ_BY_POCKET
from .hub import read_hub
from .labels import similar_names
from .named import NAMED
from .rows import Rows, joined
from .sandbox import Sandbox, sandbox_rows
from .split import dealt, limited
from .tables import kind_of
from .together import together

HALVES = ("all", "pretraining", "unseen")
FEWEST = 20  # labelled documents from which labels that hardly repeat are refused
Digest = Annotated[str, Predicate(re.compile(r"([0-9a-f]{64})?").fullmatch),
                   doc("nothing, or the 64 hexadecimal digits that a run wrote")]
LONGEST = 1000  # characters of a name
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")


@dataclass(frozen=True)
class Source:
    """How a corpus is named in an experiment; in YAML ``corpus: bbc`` is ``Source(name="bbc")``.

    ``name`` is a named corpus, else a local file or folder (see ``files.py``), else a Hugging Face data set
    id, with its configuration behind a colon where it has several: ``owner/name:configuration``.
    """

    name: Annotated[str, MinLen(1)]
    text: Annotated[str, MinLen(1)] = "text"  # column names of files and hub data sets (named corpora know their own)
    label: str = "label"  # "" takes no labels
    source: str = "source"  # the column that says who wrote or published a text: the clients of BySource
    limit: Annotated[int, Interval(ge=1, le=10**9)] | None = None  # at most so many documents, splits and labels in proportion
    domains: tuple[str, ...] = ()  # only these domains
    validation: Annotated[float, Interval(ge=0, lt=1)] = 0.1  # shares of train, for want of own splits
    test: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    split_seed: Seed = 0
    clusters: Annotated[int, Interval(ge=2, le=10_000)] | None = None  # so many topics, found by clustering, replace the labels
    encoder: Encoder | None = None  # in whose vectors; lsa if not said
    sandbox: Sandbox = Sandbox()  # the dials of the made-up corpus ``sandbox``, and of no other
    content: Digest = ""  # Corpus.content of what was loaded, once it was: a changed file is another experiment

    def written(self) -> dict[str, Any]:
        """All keys as plain values; without the dials of the sandbox where another corpus leaves them at their default."""
        said = asdict(self)
        said["domains"] = list(self.domains)
        if self.sandbox == Sandbox() and self.name != "sandbox":
            del said["sandbox"]
        else:
            said["sandbox"]["styles"] = list(self.sandbox.styles)
        return said


def load_corpus(source: Source, *, data: Path | None = None, half: str = "all", cache: Path | None = None) -> Corpus:
    """The documents of ``source``, clean and split.

    ``data`` is the folder of local copies of named corpora (default: the environment's FEDRIFT_DATA).
    ``half`` keeps of the corpora that ``pocket`` was pretrained on only the train documents it has read
    ("pretraining") or has not ("unseen"); see ``halves.py``. ``cache`` is a folder for embeddings.
    Raises UserError for whatever cannot be loaded, and if ``source.content`` is given and the data has changed since.
    """
    if not source.name.strip():
        raise UserError("corpus is empty: give a named corpus, a local file or folder, or a Hugging Face data set id")
    if len(source.name) > LONGEST:
        raise UserError(f"corpus {source.name[:60]!r}... is a name of {len(source.name):,} characters: give a named corpus, a "
                        f"local file or folder, or a Hugging Face data set id of at most {LONGEST:,}")
    if half not in HALVES:
        raise unknown("half", half, HALVES)
    if source.validation + source.test >= 1:
        raise UserError(
            f"corpus.validation {source.validation} and corpus.test {source.test} leave nothing to train on"
        )
    if half == "pretraining" and family(source.name) not in READ_BY_POCKET:
        raise UserError(
            f"no document of {source.name!r} is known to be in the pretraining half: that is made of "
            f"{', '.join(sorted(READ_BY_POCKET))}"
        )
    if source.sandbox != Sandbox() and source.name != "sandbox":
        raise UserError(f"corpus.sandbox sets the dials of the corpus 'sandbox', not of {source.name!r}: leave it out, "
                        "or say corpus.name=sandbox")
    if source.encoder and source.clusters is None:
        raise UserError("corpus.encoder says in whose vectors clusters are found: say how many with corpus.clusters=8, "
                        "or leave it out")
    counts: Counter[str] = Counter()
    rows: list[Rows] = []
    found = usable(source, data_folder(data), half, counts, rows)
    found = unique(found, counts)
    if source.clusters is None:
        refuse_names(found, source)
    if source.domains:
        found = only(found, source, counts)
    if source.limit is not None:
        counts["beyond the limit"] = max(0, len(found) - source.limit)
        found = limited(found, source.limit, source.split_seed)
    if not found:
        left_out = ", ".join(f"{count:,} {why}" for why, count in counts.items() if count)
        raise UserError(
            f"corpus {source.name!r} holds no usable document (left out: {left_out or 'nothing'})"
        )
    corpus = assembled(source, found, counts, joined(rows))
    if source.clusters is not None:
        vectors = embed(corpus.text.tolist(), source.encoder or "lsa", cache=cache)
        corpus = by_cluster(corpus, vectors, source.clusters, numpy_stream(source.split_seed, "corpus", "clusters"))
    if source.content and source.content != corpus.content:
        raise UserError(
            f"corpus {source.name!r} is not what it was: wanted content {source.content[:12]}, the data now "
            f"has {corpus.content[:12]}. Bring the old files back, or start a new run"
        )
    return corpus


def usable(source: Source, data: Path | None, half: str, counts: Counter[str], rows: list[Rows]) -> list[Document]:
    """Tidy documents of the corpus's own domains and of one half; what was read goes to ``rows``."""
    named = NAMED.get(source.name)
    if named and named.parts:
        parts = {domain: usable(replace(source, name=part), data, half, counts, rows) for domain, part in named.parts}
        return together(parts, counts, validation=source.validation, test=source.test, seed=source.split_seed)
    rows.append(read(source, data))
    found = documents(rows[-1], counts, lines=bool(named and named.lines))
    if named and named.domains:
        found = gathered(found, dict(named.domains), counts)
    if half != "all" and family(source.name) in READ_BY_POCKET:
        found = of_half(found, half, counts)
    return found


def data_folder(data: Path | None) -> Path | None:
    """The folder of local copies: as given, else as FEDRIFT_DATA says, else none."""
    said = data or os.environ.get("FEDRIFT_DATA")
    return Path(said).expanduser() if said else None


def read(source: Source, data: Path | None) -> Rows:
    """The rows of a named corpus, a local path or a hub data set, in this order."""
    named = NAMED.get(source.name)
    if source.name == "sandbox":
        return sandbox_rows(source.sandbox)
    if named:
        original = named.of or source.name
        if data and (data / original).is_dir():
            return read_path(data / original)
        if original == "bbc":
            return read_bbc()
        if named.hub:
            return read_hub(named.hub, named.configs, (named.text, named.label, "source"))
        raise UserError(
            f"corpus {source.name!r} has no sure hub id and is read from a local folder only: put "
            f"train.parquet and test.parquet (columns text, label, source) in a folder {original}/ and name "
            f"the folder above it with FEDRIFT_DATA, which is "
            f"{f'{str(data)!r} and has no such folder' if data else 'not set'}"
        )
    path, columns = local_path(source.name), (source.text, source.label, source.source)
    if path:
        return read_path(path, columns)
    if source.name.startswith((".", "/", "~")) or kind_of(Path(source.name)):
        raise missing(Path(os.path.expanduser(source.name)))
    hub = HUB_ID.fullmatch(source.name)
    if hub:
        return read_hub(hub[1], (hub[2],) if hub[2] else (), columns)
    error = unknown("corpus", source.name[:80], NAMED)
    raise UserError(f"{error}. Or give a local file or folder, or a Hugging Face data set id as owner/name")


def family(name: str) -> str:
    """The named corpus that these texts are known to come from, by name, hub id or folder; "" if unknown."""
    if name in NAMED:
        return NAMED[name].of or name
    path = local_path(name)
    if path:
        path = path.resolve()
        return next((known for known in (path.stem, path.name, path.parent.name) if known in NAMED), "")
    hub_ids = {named.hub.lower(): known for known, named in NAMED.items() if named.hub and not named.of}
    return hub_ids.get(name.partition(":")[0].lower(), "")


def only(found: list[Document], source: Source, counts: Counter[str]) -> list[Document]:
    """The documents of the domains that were asked for; UserError if one of them does not exist."""
    known = {d.label for d in found if d.label is not None}
    for domain in source.domains:
        if domain not in known:
            raise unknown(f"domain of {source.name}", domain, known)
    kept = [d for d in found if d.label in source.domains]
    counts["other domain"] += len(found) - len(kept)
    return kept


def refuse_names(found: list[Document], source: Source) -> None:
    """UserError for a label column in which hardly a value stands twice: it names the documents, not their topics."""
    labels = Counter(d.label for d in found if d.label is not None)
    if labels.total() >= FEWEST and 2 * len(labels) > labels.total():
        raise UserError(f"corpus {source.name!r} has {len(labels):,} labels for {labels.total():,} documents: hardly one stands "
                        f"twice, so the column {source.label!r} names documents and no topics. Name another one with "
                        "corpus.label, take no labels with corpus.label='', or find topics by clustering with corpus.clusters=8")


def remarks(domains: tuple[str, ...], counts: Counter[str], rows: Rows) -> tuple[str, ...]:
    """What a reader of the results must know of how the corpus was read."""
    notes = list(rows.notes)
    for names in similar_names(domains):
        notes.append(f"topics {', '.join(map(repr, names))} differ only in capitals or white space and count as {len(names)}")
    if counts["not text"]:
        notes.append(f"{counts['not text']:,} rows have no text and are left out")
    return tuple(notes)


def assembled(source: Source, found: list[Document], counts: Counter[str], rows: Rows) -> Corpus:
    """Documents as the arrays of a `Corpus`."""
    split = dealt(found, validation=source.validation, test=source.test, seed=source.split_seed)
    if TRAIN not in split:
        raise UserError(f"corpus {source.name!r} has no documents to train on: all {len(found):,} usable ones are held out")
    domains = tuple(sorted({d.label for d in found if d.label is not None}))
    index = {domain: number for number, domain in enumerate(domains)}
    return Corpus(
        name=source.name,
        text=np.array([d.text for d in found], dtype=object),
        label=np.array([-1 if d.label is None else index[d.label] for d in found], dtype=np.int64),
        domains=domains,
        source=np.array([d.source for d in found], dtype=object),
        split=split,
        size=np.array([len(d.text.split()) for d in found], dtype=np.int64),
        cleaned={why: count for why, count in counts.items() if count},
        columns=rows.columns,
        has_source=rows.has_source,
        notes=remarks(domains, counts, rows),
    )
