"""What the page and the terminal show of a partition: the report of its heterogeneity, words and samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..corpus import Corpus
from ..partition import Partition
from ..partition.heterogeneity import Heterogeneity, Measured
from ..partition.margins import cut
from ..partition.measure import measure
from ..partition.partition import document_id
from ..partition.tallies import pooled, written
from ..partition.telling import telling_words
from ..partition.words import Words, count_words

Stream = Callable[..., np.random.Generator]  # of a purpose, as ``partial(numpy_stream, seed)``

SAMPLES = 2  # documents of each client
LENGTH = 320  # characters of each
TITLES = {  # of the numbers of a report: what it is called, what it means
    "token.jsd": ("word divergence", "Jensen-Shannon, bits: 0 if all clients use the same words equally often, "
                                     "log2 N if none in common"),
    "label.jsd": ("domain divergence", "Jensen-Shannon as a share of the most there can be: 1 is one domain a client"),
    "label.distance": ("domain distance", "total variation of a client's domains from the pool's, mean over tokens"),
    "length.jsd": ("length divergence", "Jensen-Shannon of document lengths, as a share of the most there can be"),
    "vocabulary.jaccard": ("vocabulary in common", "words two clients share, of all that either has"),
    "vocabulary.coverage": ("vocabulary covered", "share of a client's text in words that another client has twice"),
    "identification": ("client identified", "how often naive Bayes tells the client of a document from its words"),
    "identification.content": ("… by what it is about",
                               "the same from content words alone, before any rewriting: topic, not manner"),
    "identification.manner": ("… by how it is written",
                              "the same from function words alone, as written: manner, though topics differ in them too"),
    "embedding.mmd2": ("embedding MMD²", "kernel distance of a client's documents from the others'"),
    "embedding.frechet": ("embedding Fréchet", "distance of fitted Gaussians, a client's against the others'"),
    "gradient.G2": ("gradient spread G²", "mean squared distance of a client's gradient from the mean gradient"),
    "gradient.B2": ("gradient dissimilarity B²", "1 + G² over the squared mean gradient: 1 if all clients agree"),
    "gradient.diversity": ("gradient diversity", "squared gradients over the squared sum: 1/N if all clients agree"),
    "gradient.cosine": ("gradient cosine", "mean over pairs of clients: 1 if all agree, 0 if unrelated"),
    "budget.variation": ("budget variation", "standard deviation of the clients' budgets over their mean"),
}


class Sample(NamedTuple):
    """The beginning of a document, as its client writes it; ``found`` is the original where they differ."""

    domain: str
    text: str
    found: str


class Slope(NamedTuple):
    """One number of the clients' gradients at the first weights, beside the mean and deviation of a few IID deals."""

    parts: str  # which weights the gradients are of
    name: str
    value: float
    twin: float
    deviation: float = float("nan")


class Sheet(NamedTuple):
    """A partition, ready to be shown."""

    title: str
    said: dict[str, Any]  # the data side of the experiment, as plain YAML
    seed: int
    unit: str
    note: str
    documents: int
    left_out: int
    measured: Heterogeneity
    words: list[list[tuple[str, float]]]  # N times up to ten words, each with its z
    chance: float  # the highest z of a client, on average, if the same documents are dealt by chance
    samples: list[list[Sample]]  # N times two
    encoder: str = ""  # in whose vectors embeddings are compared; "" if in none
    slopes: tuple[Slope, ...] = ()  # of the clients' gradients at the first weights, if they were asked for

    def plain(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "title": self.title, "experiment": self.said, "unit": self.unit, "note": self.note,
            "documents_in_pool": self.documents, "left_out": self.left_out, **self.measured.plain(),
            "characteristic": [[{"word": word, "z": float(z)} for word, z in words] for words in self.words],
            "characteristic_by_chance": float(self.chance), "encoder": self.encoder,
            "gradients": [slope._asdict() | {name: None if np.isnan(number := getattr(slope, name)) else number
                                             for name in ("value", "twin", "deviation")} for slope in self.slopes],
            "samples": [[sample._asdict() for sample in client] for client in self.samples],
        }


def sheet(corpus: Corpus, partition: Partition, said: dict[str, Any], stream: Stream, *, unit: str, note: str = "",
          resplits: int = 20, vectors: np.ndarray | None = None, encoder: str = "",
          slopes: tuple[Slope, ...] = ()) -> Sheet:
    """Measure a partition of ``corpus`` and pick what to show; ``said`` has a corpus, a partition and a seed."""
    regime = said["partition"]
    rows = np.sort(np.concatenate(partition.rows))
    owner, dealt = partition.owner(len(corpus))[rows], corpus.take(rows)
    counted = count_words(written(dealt, partition, owner))
    title = (f"{said['corpus']['name']} dealt to {len(partition)} clients by {called(regime)}, "
             f"severity {regime['severity']:g}")
    if partition.rewrite:
        unit = "words"  # as written: that is what `measure` counts then
    return Sheet(title, said, int(said["seed"]), unit, note, len(corpus), len(corpus) - len(rows),
                 measure(corpus, partition, stream("heterogeneity"), resplits=resplits, vectors=vectors),
                 telling_words(pooled(counted.counts, owner, len(partition)), counted.vocabulary),
                 highest_by_chance(counted, owner, len(partition), stream("heterogeneity", "words")),
                 [samples(corpus, partition, client, stream) for client in range(len(partition))], encoder, slopes)


def highest_by_chance(counted: Words, owner: np.ndarray, clients: int, rng: np.random.Generator) -> float:
    """The z of the word that tells most of a client, mean over the clients of one random deal in the same budgets."""
    size = np.maximum(counted.counts.sum(axis=1), 1.0)
    mixed = rng.permutation(len(owner))
    dealt = np.empty_like(owner)
    dealt[mixed] = cut(size[mixed], np.bincount(owner, weights=size, minlength=clients))
    found = telling_words(pooled(counted.counts, dealt, clients), counted.vocabulary, many=1)
    return float(np.mean([words[0][1] if words else 0.0 for words in found]))


def called(regime: dict[str, Any]) -> str:
    """A regime by name, with the one inside it."""
    return f"{regime['is']} of {called(regime['of'])}" if "of" in regime else str(regime["is"])


def samples(corpus: Corpus, partition: Partition, client: int, stream: Stream) -> list[Sample]:
    """The beginnings of some documents of a client, drawn by chance."""
    rewrite = partition.rewrite[client] if partition.rewrite else None
    drawn = stream("heterogeneity", "samples", client).permutation(partition.rows[client])[:SAMPLES]
    shown = []
    for row in drawn:
        found, label = str(corpus.text[row]), corpus.label[row]
        text = found if rewrite is None else rewrite(found, document_id(found))
        shown.append(Sample(corpus.domains[label] if label >= 0 else "", beginning(text),
                            beginning(found) if text != found else ""))
    return shown


def beginning(text: str, length: int = LENGTH) -> str:
    """The first words of a text, with three dots where it goes on."""
    flat = " ".join(text.split())
    if len(flat) <= length:
        return flat
    cut = flat[:length].rsplit(" ", 1)[0]
    return cut + " …"


def verdict(measured: Heterogeneity) -> str:
    """One sentence: how many numbers chance does not explain, and how well a document tells its client."""
    judged = [number for number in measured.numbers if np.isfinite(number.null)]
    if not judged:
        return "Nothing to compare with chance."
    beyond = sum(number.beyond for number in judged)
    much = "None of the" if not beyond else "All" if beyond == len(judged) else f"{beyond} of the"
    says = f"{much} {len(judged)} numbers {'lies' if beyond < 2 else 'lie'} beyond what chance gives"
    told = next((number for number in judged if number.name == "identification"), None)
    if told is None:
        return says + "."
    return (f"{says}; from its words alone a document's client is named right {told.value:.0%} of the time "
            f"({told.null:.0%} by chance).")


def line(number: Measured) -> tuple[str, str, str, str, str]:
    """A number as its title, meaning, value, what chance gives, and how far beyond that it lies."""
    title, meaning = TITLES.get(number.name, (number.name, ""))
    if np.isnan(number.null):
        return title, meaning, f"{number.value:.3f}", "–", "–"
    z = f"{number.z:+.1f}" if abs(number.z) < 1000 else f"{number.z:+.0f}"
    return (title, meaning, f"{number.value:.3f}", f"{number.null:.3f} ± {number.deviation:.3f}",
            z if np.isfinite(number.z) else "–")


def plain_number(value: float) -> str:
    """Three digits, or a dash for what is missing."""
    return "–" if np.isnan(value) else f"{value:.3g}"
