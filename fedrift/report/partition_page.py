"""What the page and the terminal show of a partition: the report of its heterogeneity, words and samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..data import Corpus
from ..partition import Partition
from ..partition.base import counts_by_client, document_id, rewritten_texts
from ..partition.heterogeneity import Heterogeneity, Measurement, measure_heterogeneity
from ..partition.margins import split_by_budget
from ..partition.words import WordCounts, count_words, distinctive_words
from ..storage.files import write_atomically
from . import figures
from .format import to_yaml
from .page import ChartPanel, template_environment, vega_script

RngFactory = Callable[..., np.random.Generator]  # of a purpose, as ``partial(numpy_stream, seed)``

SAMPLES_PER_CLIENT = 2  # documents of each client
SAMPLE_LENGTH = 320  # characters of each
METRIC_TITLES = {  # of the numbers of a report: what it is called, what it means
    "token.jsd": ("word divergence", "Jensen-Shannon, bits: 0 if all clients use the same words equally often, log2 N if none in common"),
    "label.jsd": ("domain divergence", "Jensen-Shannon as a share of the most there can be: 1 is one domain a client"),
    "label.distance": ("domain distance", "total variation of a client's domains from the pool's, mean over tokens"),
    "length.jsd": ("length divergence", "Jensen-Shannon of document lengths, as a share of the most there can be"),
    "vocabulary.jaccard": ("vocabulary in common", "words two clients share, of all that either has"),
    "vocabulary.coverage": ("vocabulary covered", "share of a client's text in words that another client has twice"),
    "identification": ("client identified", "how often naive Bayes tells the client of a document from its words"),
    "identification.content": ("… by what it is about", "the same from content words alone, before any rewriting: topic, not manner"),
    "identification.manner": (
        "… by how it is written",
        "the same from function words alone, as written: manner, though topics differ in them too",
    ),
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
    original: str


class GradientStat(NamedTuple):
    """One number of the clients' gradients at the first weights, beside the mean and deviation of a few IID deals."""

    weights: str  # which weights the gradients are of
    name: str
    value: float
    iid_mean: float
    deviation: float = float("nan")


class PartitionReport(NamedTuple):
    """A partition, ready to be shown."""

    title: str
    settings: dict[str, Any]  # the data side of the experiment, as plain YAML
    seed: int
    unit: str
    note: str
    num_documents: int
    num_left_out: int
    heterogeneity: Heterogeneity
    distinctive_words: list[list[tuple[str, float]]]  # N times up to ten words, each with its z
    chance_z: float  # the highest z of a client, on average, if the same documents are dealt by chance
    samples: list[list[Sample]]  # N times two
    encoder: str = ""  # in whose vectors embeddings are compared; "" if in none
    gradients: tuple[GradientStat, ...] = ()  # of the clients' gradients at the first weights, if they were asked for

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "title": self.title,
            "experiment": self.settings,
            "unit": self.unit,
            "note": self.note,
            "documents_in_pool": self.num_documents,
            "left_out": self.num_left_out,
            **self.heterogeneity.to_dict(),
            "characteristic": [[{"word": word, "z": float(z)} for word, z in words] for words in self.distinctive_words],
            "characteristic_by_chance": float(self.chance_z),
            "encoder": self.encoder,
            "gradients": [
                slope._asdict()
                | {name: None if np.isnan(number := getattr(slope, name)) else number for name in ("value", "iid_mean", "deviation")}
                for slope in self.gradients
            ],
            "samples": [[sample._asdict() for sample in client] for client in self.samples],
        }


def build_partition_report(
    corpus: Corpus,
    partition: Partition,
    settings: dict[str, Any],
    make_rng: RngFactory,
    *,
    unit: str,
    note: str = "",
    num_resplits: int = 20,
    vectors: np.ndarray | None = None,
    encoder: str = "",
    gradients: tuple[GradientStat, ...] = (),
) -> PartitionReport:
    """Measure a partition of ``corpus`` and pick what to show; ``said`` has a corpus, a partition and a seed."""
    regime = settings["partition"]
    rows = np.sort(np.concatenate(partition.rows))
    owner, dealt = partition.document_owners(len(corpus))[rows], corpus.take(rows)
    counted = count_words(rewritten_texts(dealt, partition, owner))
    title = f"{settings['dataset']['name']} dealt to {len(partition)} clients by {partition_label(regime)}, severity {regime['severity']:g}"
    if partition.rewrites:
        unit = "words"  # as written: that is what `measure` counts then
    return PartitionReport(
        title,
        settings,
        int(settings["seed"]),
        unit,
        note,
        len(corpus),
        len(corpus) - len(rows),
        measure_heterogeneity(corpus, partition, make_rng("heterogeneity"), resplits=num_resplits, vectors=vectors),
        distinctive_words(counts_by_client(counted.counts, owner, len(partition)), counted.vocabulary),
        max_z_by_chance(counted, owner, len(partition), make_rng("heterogeneity", "words")),
        [pick_samples(corpus, partition, client, make_rng) for client in range(len(partition))],
        encoder,
        gradients,
    )


def max_z_by_chance(word_counts: WordCounts, owner: np.ndarray, clients: int, rng: np.random.Generator) -> float:
    """The z of the word that tells most of a client, mean over the clients of one random deal in the same budgets."""
    size = np.maximum(word_counts.counts.sum(axis=1), 1.0)
    mixed = rng.permutation(len(owner))
    dealt = np.empty_like(owner)
    dealt[mixed] = split_by_budget(size[mixed], np.bincount(owner, weights=size, minlength=clients))
    found = distinctive_words(counts_by_client(word_counts.counts, dealt, clients), word_counts.vocabulary, num_words=1)
    return float(np.mean([words[0][1] if words else 0.0 for words in found]))


def partition_label(settings: dict[str, Any]) -> str:
    """A regime by name, with the one inside it."""
    return f"{settings['type']} of {partition_label(settings['base'])}" if "base" in settings else str(settings["type"])


def pick_samples(corpus: Corpus, partition: Partition, client: int, make_rng: RngFactory) -> list[Sample]:
    """The beginnings of some documents of a client, drawn by chance."""
    rewrite = partition.rewrites[client] if partition.rewrites else None
    drawn = make_rng("heterogeneity", "samples", client).permutation(partition.rows[client])[:SAMPLES_PER_CLIENT]
    shown = []
    for row in drawn:
        found, label = str(corpus.text[row]), corpus.label[row]
        text = found if rewrite is None else rewrite(found, document_id(found))
        shown.append(
            Sample(corpus.domains[label] if label >= 0 else "", truncate_text(text), truncate_text(found) if text != found else "")
        )
    return shown


def truncate_text(text: str, length: int = SAMPLE_LENGTH) -> str:
    """The first words of a text, with three dots where it goes on."""
    flat = " ".join(text.split())
    if len(flat) <= length:
        return flat
    cut = flat[:length].rsplit(" ", 1)[0]
    return cut + " …"


def summarize(heterogeneity: Heterogeneity) -> str:
    """One sentence: how many numbers chance does not explain, and how well a document tells its client."""
    judged = [number for number in heterogeneity.measurements if np.isfinite(number.null_mean)]
    if not judged:
        return "Nothing to compare with chance."
    beyond = sum(number.is_beyond_chance for number in judged)
    much = "None of the" if not beyond else "All" if beyond == len(judged) else f"{beyond} of the"
    says = f"{much} {len(judged)} numbers {'lies' if beyond < 2 else 'lie'} beyond what chance gives"
    told = next((number for number in judged if number.name == "identification"), None)
    if told is None:
        return says + "."
    return f"{says}; from its words alone a document's client is named right {told.value:.0%} of the time ({told.null_mean:.0%} by chance)."


def format_row(number: Measurement) -> tuple[str, str, str, str, str]:
    """A number as its title, meaning, value, what chance gives, and how far beyond that it lies."""
    title, meaning = METRIC_TITLES.get(number.name, (number.name, ""))
    if np.isnan(number.null_mean):
        return title, meaning, f"{number.value:.3f}", "–", "–"
    z = f"{number.z:+.1f}" if abs(number.z) < 1000 else f"{number.z:+.0f}"
    return (title, meaning, f"{number.value:.3f}", f"{number.null_mean:.3f} ± {number.null_std:.3f}", z if np.isfinite(number.z) else "–")


def format_number(value: float) -> str:
    """Three digits, or a dash for what is missing."""
    return "–" if np.isnan(value) else f"{value:.3g}"


# The page of one partition: one HTML file, made and drawn as the report of runs is.

MAX_CLIENTS_SHOWN = 24  # clients whose words and samples are shown
MAX_CLIENTS_DRAWN = 120  # clients whose rows are drawn in matrices
MAX_DOMAINS_DRAWN = 40


def write_partition_page(report: PartitionReport, output: Path) -> Path:
    """Write the page to ``out`` (an .html file, or a folder for index.html); where it lies."""
    path = output if output.suffix.lower() in (".html", ".htm") else output / "index.html"
    write_atomically(path, render_partition(report).encode())
    return path


def render_partition(report: PartitionReport) -> str:
    """The page as text."""
    specs: dict[str, dict[str, Any]] = {}

    def place(panel: ChartPanel) -> str:
        name = f"chart-{len(specs)}"
        specs[name] = panel.chart.to_dict()
        return name

    measured = report.heterogeneity
    return (
        template_environment()
        .get_template("partition_page.html")
        .render(
            version=__version__,
            sheet=report,
            verdict=summarize(measured),
            as_yaml=to_yaml,
            titles=METRIC_TITLES,
            number=format_number,
            lines=[(*format_row(number), number.is_beyond_chance) for number in measured.measurements],
            holding=holdings_panels(report),
            words=word_panels(report),
            chance=format_number(report.chance_z),
            samples=list(enumerate(report.samples))[:MAX_CLIENTS_SHOWN],
            more=max(0, measured.num_clients - MAX_CLIENTS_SHOWN),
            total=float(measured.budgets.sum()),
            place=place,
            specs=specs,
            bundle=vega_script(),
        )
    )


def holdings_panels(report: PartitionReport) -> list[ChartPanel]:
    """Who holds what, how much, and who differs from whom."""
    measured, first = report.heterogeneity, slice(0, MAX_CLIENTS_DRAWN)
    some = f" (first {MAX_CLIENTS_DRAWN} clients)" if measured.num_clients > MAX_CLIENTS_DRAWN else ""
    panels = []
    if measured.tokens_by_domain.sum() > 0:
        domains = np.argsort(-measured.tokens_by_domain.sum(axis=0), kind="stable")[:MAX_DOMAINS_DRAWN]
        domains = np.sort(domains)
        few = f", the {MAX_DOMAINS_DRAWN} largest domains" if len(measured.domains) > MAX_DOMAINS_DRAWN else ""
        panels.append(
            ChartPanel(
                f"{report.unit} by client and domain{few}{some}",
                figures.partition_heatmap(
                    [measured.domains[d] for d in domains], np.round(measured.tokens_by_domain[first][:, domains]).tolist()
                ),
            )
        )
    else:
        panels.append(ChartPanel(f"{report.unit} by client{some}", figures.budget_bars(measured.budgets[first], report.unit)))
    if measured.num_clients > 1:
        panels.append(
            ChartPanel(f"divergence of two clients' words, bits{some}", figures.divergence_matrix(measured.word_jsd[first, first]))
        )
    return panels


def word_panels(report: PartitionReport) -> list[ChartPanel]:
    """The words of each client, all on one scale."""
    longest = max((z for client in report.distinctive_words for _, z in client), default=1.0)
    longest = max(longest, report.chance_z)
    return [
        ChartPanel(f"client {client}{main_domain_label(report, client)}", figures.distinctive_words_chart(found, longest, report.chance_z))
        for client, found in list(enumerate(report.distinctive_words))[:MAX_CLIENTS_SHOWN]
        if found
    ]


def main_domain_label(report: PartitionReport, client: int) -> str:
    """A client's main domain and its share, where it is more than half."""
    row = report.heterogeneity.tokens_by_domain[client]
    if row.sum() <= 0 or row.max() / row.sum() <= 0.5:
        return ""
    return f", {row.max() / row.sum():.0%} {report.heterogeneity.domains[int(row.argmax())]}"
