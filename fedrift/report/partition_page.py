"""The report of a partition: heterogeneity measures, distinctive words and sample documents. The page and the terminal both show it."""

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
from .format import DASH, format_compact, format_strength, to_yaml
from .page import ChartPanel, ChartSpecs, page_path, template_environment, vega_script

RngFactory = Callable[..., np.random.Generator]  # takes the names of a random stream, like ``partial(numpy_stream, seed)``

SAMPLES_PER_CLIENT = 2  # documents per client
SAMPLE_LENGTH = 320  # characters per document
METRIC_TITLES = {  # title and meaning of each measure
    "token.jsd": (
        "word divergence",
        "Jensen-Shannon divergence in bits: 0 if all clients use the same words equally often, log2 N if they share none",
    ),
    "label.jsd": ("domain divergence", "Jensen-Shannon divergence as a share of its maximum: 1 if each client has one domain"),
    "label.distance": ("domain distance", "total variation distance between a client's domains and those of all clients, mean over tokens"),
    "length.jsd": ("length divergence", "Jensen-Shannon divergence of document lengths, as a share of its maximum"),
    "vocabulary.jaccard": ("shared vocabulary", "words that two clients share, as a share of the words that either has"),
    "vocabulary.coverage": ("vocabulary coverage", "share of a client's text in words that another client has at least twice"),
    "identification": ("client identification", "how often naive Bayes identifies the client of a document from its words"),
    "identification.content": (
        "… from content words",
        "the same from content words only, before any rewriting: it measures topic, not style",
    ),
    "identification.function_words": (
        "… from function words",
        "the same from function words only, after any rewriting: it measures style, although topics also differ in function words",
    ),
    "embedding.mmd2": ("embedding MMD²", "kernel distance between a client's documents and those of the other clients"),
    "embedding.frechet": (
        "embedding Fréchet",
        "distance between Gaussians that are fitted to a client's documents and to those of the other clients",
    ),
    "gradient.G2": ("gradient spread G²", "mean squared distance between a client's gradient and the mean gradient"),
    "gradient.B2": ("gradient dissimilarity B²", "1 + G² divided by the squared norm of the mean gradient: 1 if all clients agree"),
    "gradient.diversity": (
        "gradient diversity",
        "sum of squared gradient norms divided by the squared norm of the sum: 1/N if all clients agree",
    ),
    "gradient.cosine": ("gradient cosine", "mean cosine over pairs of clients: 1 if all agree, 0 if they are unrelated"),
    "budget.variation": ("budget variation", "standard deviation of the clients' data sizes divided by their mean"),
}


class Sample(NamedTuple):
    """Hold the beginning of a document, after any rewriting by its client.

    ``original`` is the text before rewriting, or empty if the client did not change it.
    """

    domain: str
    text: str
    original: str


class GradientStat(NamedTuple):
    """Hold one measure of the clients' gradients at the initial weights."""

    weights: str  # the weights that the gradients belong to
    name: str  # name of the measure, a key of ``METRIC_TITLES``
    value: float  # its value on this partition
    iid_mean: float  # its mean over a few IID partitions
    deviation: float = float("nan")  # its standard deviation over these partitions


class Embeddings(NamedTuple):
    """Embeddings of the documents, ``vectors [D, E]``, and the name of their encoder."""

    encoder: str
    vectors: np.ndarray


class PartitionReport(NamedTuple):
    """Hold the report of a partition."""

    title: str
    settings: dict[str, Any]  # dataset, partition and seed of the experiment, as plain values
    seed: int
    unit: str  # unit of the data sizes, ``tokens`` or ``words``
    note: str
    num_documents: int  # number of training documents
    num_unused: int  # number of documents that the partition assigns to no client
    heterogeneity: Heterogeneity
    distinctive_words: list[list[tuple[str, float]]]  # up to ten words per client with their z-scores, N lists
    chance_z: float  # mean over clients of the highest z-score in a random partition with the same data sizes
    samples: list[list[Sample]]  # sample documents per client, N lists
    encoder: str = ""  # name of the encoder of the embedding measures; empty if there are none
    gradients: tuple[GradientStat, ...] = ()  # measures of the clients' gradients; empty if they were not requested

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "title": self.title,
            "experiment": self.settings,
            "unit": self.unit,
            "note": self.note,
            "num_documents": self.num_documents,
            "num_unused": self.num_unused,
            **self.heterogeneity.to_dict(),
            "characteristic_words": [[{"word": word, "z": float(z)} for word, z in words] for words in self.distinctive_words],
            "chance_z": float(self.chance_z),
            "encoder": self.encoder,
            "gradients": [
                gradient._asdict()
                | {name: None if np.isnan(number := getattr(gradient, name)) else number for name in ("value", "iid_mean", "deviation")}
                for gradient in self.gradients
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
    embeddings: Embeddings | None = None,
) -> PartitionReport:
    """Measure a partition of a corpus and collect its report, without ``gradients``, which need a model.

    Args:
        corpus: The training documents.
        partition: The assignment of documents to clients.
        settings: The ``dataset``, ``partition`` and ``seed`` of the experiment.
        make_rng: Factory of random streams.
        unit: Unit of the data sizes. It is replaced by ``words`` if clients rewrite their documents.
        note: A remark for the page.
        num_resplits: Number of random partitions that the measures are compared with.
        embeddings: Embeddings of the documents; None measures nothing of them.
    """
    spec = settings["partition"]
    rows = np.sort(np.concatenate(partition.rows))
    owner, assigned = partition.document_owners(len(corpus))[rows], corpus.take(rows)
    word_counts = count_words(rewritten_texts(assigned, partition, owner))
    title = f"{settings['dataset']['name']}, {len(partition)} clients, partition {partition_label(spec)}, {format_strength(spec)}"
    if partition.rewrites:
        unit = "words"  # the measures count the words after rewriting
    return PartitionReport(
        title,
        settings,
        int(settings["seed"]),
        unit,
        note,
        len(corpus),
        len(corpus) - len(rows),
        measure_heterogeneity(
            corpus,
            partition,
            make_rng("heterogeneity"),
            vectors=embeddings and embeddings.vectors,
            resplits=num_resplits,
            words=word_counts,
        ),
        distinctive_words(counts_by_client(word_counts.counts, owner, len(partition)), word_counts.vocabulary),
        max_z_by_chance(word_counts, owner, len(partition), make_rng("heterogeneity", "words")),
        [pick_samples(corpus, partition, client, make_rng) for client in range(len(partition))],
        embeddings.encoder if embeddings else "",
    )


def max_z_by_chance(word_counts: WordCounts, owner: np.ndarray, clients: int, rng: np.random.Generator) -> float:
    """Return the mean over clients of the highest z-score in one random partition with the same data sizes.

    Args:
        word_counts: Word counts of the documents.
        owner: Client of each document, [D].
        clients: Number of clients.
        rng: Random number generator.
    """
    sizes = np.maximum(word_counts.counts.sum(axis=1), 1.0)
    order = rng.permutation(len(owner))
    random_owner = np.empty_like(owner)
    random_owner[order] = split_by_budget(sizes[order], np.bincount(owner, weights=sizes, minlength=clients))
    top_words = distinctive_words(counts_by_client(word_counts.counts, random_owner, clients), word_counts.vocabulary, num_words=1)
    return float(np.mean([words[0][1] if words else 0.0 for words in top_words]))


def partition_label(settings: dict[str, Any]) -> str:
    """Return the type of a partition, with the type of its base partition if it has one."""
    return f"{settings['type']} of {partition_label(settings['base'])}" if "base" in settings else str(settings["type"])


def pick_samples(corpus: Corpus, partition: Partition, client: int, make_rng: RngFactory) -> list[Sample]:
    """Return the beginnings of a few random documents of a client."""
    rewrite = partition.rewrites[client] if partition.rewrites else None
    rows = make_rng("heterogeneity", "samples", client).permutation(partition.rows[client])[:SAMPLES_PER_CLIENT]
    samples = []
    for row in rows:
        original, label = str(corpus.text[row]), corpus.label[row]
        text = original if rewrite is None else rewrite(original, document_id(original))
        samples.append(
            Sample(corpus.domains[label] if label >= 0 else "", truncate_text(text), truncate_text(original) if text != original else "")
        )
    return samples


def truncate_text(text: str, length: int = SAMPLE_LENGTH) -> str:
    """Return the first words of a text, at most ``length`` characters, with an ellipsis if words were cut."""
    flat = " ".join(text.split())
    if len(flat) <= length:
        return flat
    cut = flat[:length].rsplit(" ", 1)[0]
    return cut + " …"


def summarize(heterogeneity: Heterogeneity) -> str:
    """Summarize in one sentence how many measures differ from chance, and how well a document identifies its client."""
    compared = [number for number in heterogeneity.measurements if np.isfinite(number.null_mean)]
    if not compared:
        return "No measure can be compared with chance."
    count = sum(number.is_beyond_chance for number in compared)
    share = "None of the" if not count else "All" if count == len(compared) else f"{count} of the"
    summary = f"{share} {len(compared)} measures {'differs' if count < 2 else 'differ'} from chance"
    identification = next((number for number in compared if number.name == "identification"), None)
    if identification is None:
        return summary + "."
    accuracy = f"{100 * identification.value:.0f} % of the time ({100 * identification.null_mean:.0f} % by chance)"
    return f"{summary}; the words of a document identify its client {accuracy}."


def format_row(number: Measurement) -> tuple[str, str, str, str, str]:
    """Return the title, meaning, value, chance level and z-score of a measure as text."""
    title, meaning = METRIC_TITLES.get(number.name, (number.name, ""))
    if np.isnan(number.null_mean):
        return title, meaning, f"{number.value:.3f}", DASH, DASH
    z = f"{number.z:+.1f}" if abs(number.z) < 1000 else f"{number.z:+.0f}"
    return (title, meaning, f"{number.value:.3f}", f"{number.null_mean:.3f} ± {number.null_std:.3f}", z if np.isfinite(number.z) else DASH)


MAX_CLIENTS_SHOWN = 24  # clients with distinctive words and samples
MAX_CLIENTS_DRAWN = 120  # clients in heat maps
MAX_DOMAINS_DRAWN = 40  # domains in heat maps


def write_partition_page(report: PartitionReport, output: Path) -> Path:
    """Write the HTML page of a partition.

    Args:
        report: The report.
        output: An ``.html`` file, or a directory, in which ``index.html`` is written.

    Returns:
        The path of the page.
    """
    path = page_path(output)
    write_atomically(path, render_partition(report).encode())
    return path


@figures.skip_validation()
def render_partition(report: PartitionReport) -> str:
    """Return the page as HTML."""
    specs = ChartSpecs()
    heterogeneity = report.heterogeneity
    return (
        template_environment()
        .get_template("partition_page.html")
        .render(
            version=__version__,
            report=report,
            verdict=summarize(heterogeneity),
            as_yaml=to_yaml,
            titles=METRIC_TITLES,
            format_number=format_compact,
            lines=[(*format_row(number), number.is_beyond_chance) for number in heterogeneity.measurements],
            data_panels=client_data_panels(report),
            word_panels=word_panels(report),
            chance_z=format_compact(report.chance_z),
            samples=list(enumerate(report.samples))[:MAX_CLIENTS_SHOWN],
            num_hidden=max(0, heterogeneity.num_clients - MAX_CLIENTS_SHOWN),
            total=float(heterogeneity.budgets.sum()),
            add_chart=specs.add,
            specs=specs,
            bundle=vega_script(),
        )
    )


def client_data_panels(report: PartitionReport) -> list[ChartPanel]:
    """Draw the data of each client, and the divergence between the words of each pair of clients."""
    heterogeneity, drawn_clients = report.heterogeneity, slice(0, MAX_CLIENTS_DRAWN)
    clients_note = f" (first {MAX_CLIENTS_DRAWN} clients)" if heterogeneity.num_clients > MAX_CLIENTS_DRAWN else ""
    panels = []
    if heterogeneity.tokens_by_domain.sum() > 0:
        domains = np.argsort(-heterogeneity.tokens_by_domain.sum(axis=0), kind="stable")[:MAX_DOMAINS_DRAWN]
        domains = np.sort(domains)
        domains_note = f", the {MAX_DOMAINS_DRAWN} largest domains" if len(heterogeneity.domains) > MAX_DOMAINS_DRAWN else ""
        panels.append(
            ChartPanel(
                f"{report.unit} by client and domain{domains_note}{clients_note}",
                figures.partition_heatmap(
                    [heterogeneity.domains[d] for d in domains],
                    np.round(heterogeneity.tokens_by_domain[drawn_clients][:, domains]).tolist(),
                ),
            )
        )
    else:
        panels.append(
            ChartPanel(f"{report.unit} by client{clients_note}", figures.budget_bars(heterogeneity.budgets[drawn_clients], report.unit))
        )
    if heterogeneity.num_clients > 1:
        panels.append(
            ChartPanel(
                f"divergence between the words of two clients, bits{clients_note}",
                figures.divergence_matrix(heterogeneity.word_jsd[drawn_clients, drawn_clients]),
            )
        )
    return panels


def word_panels(report: PartitionReport) -> list[ChartPanel]:
    """Draw the distinctive words of each client, all on one scale."""
    max_z = max((z for client in report.distinctive_words for _, z in client), default=1.0)
    max_z = max(max_z, report.chance_z)
    return [
        ChartPanel(f"client {client}{main_domain_label(report, client)}", figures.distinctive_words_chart(words, max_z, report.chance_z))
        for client, words in list(enumerate(report.distinctive_words))[:MAX_CLIENTS_SHOWN]
        if words
    ]


def main_domain_label(report: PartitionReport, client: int) -> str:
    """Return the main domain of a client and its share, or an empty string if no domain has more than half."""
    row = report.heterogeneity.tokens_by_domain[client]
    if row.sum() <= 0 or row.max() / row.sum() <= 0.5:
        return ""
    return f", {100 * row.max() / row.sum():.0f} % {report.heterogeneity.domains[int(row.argmax())]}"
