"""Compute the lowest possible loss on documents of the synthetic language, exactly and in nats.

``loss - floor`` is the part of the loss that a model could still learn to avoid. There are two floors:

- H(document | domain), for a model that knows the domain of each document;
- H(document) = H(document | domain) + I(document; domain), for one shared model that must infer the domain.

Their difference, I(document; domain), is the conflict between domains that no training removes. It is exact because all
evidence is conclusive. Domains assign the same probability to every common word in the same position, so that a document
without evidence is equally likely in all domains. One word or noun-verb pair that is specific to a domain excludes all other
domains. One word that differs between styles excludes all domains of other styles.

Both floors hold for whole documents, each read separately and including its end. If a block contains several documents of one
domain, the earlier ones reveal the domain. A shared model may then reach a loss below the second floor, but not below the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...core.errors import UserError, unknown_name_error
from ...core.lazy_imports import special
from ..corpus import Corpus
from .grammar import sentence_probability
from .language import CONCEPT_SYMBOL, OWN_SYMBOLS, START_SYMBOL, STYLE_FORMS, SyntheticLanguage, split_sentences


class LossFloor(NamedTuple):
    """Expectations over documents: the lowest possible loss and the length."""

    nats: float  # nats per document, which is the entropy
    words: float  # words per document, including sentence ends


def domain_floor(language: SyntheticLanguage, domain: int) -> LossFloor:
    """Return the floor for a model that knows the domain: the entropy of the documents of the domain."""
    grammar, mean_sentences = language.grammars[domain], language.config.mean_sentences
    stop_prob = 1 / mean_sentences
    # Entropy of the geometric distribution of the number of sentences.
    length_nats = -(np.log(stop_prob) + (mean_sentences - 1) * np.log1p(-stop_prob)) if mean_sentences > 1 else 0.0
    return LossFloor(mean_sentences * grammar.entropy(START_SYMBOL) + float(length_nats), mean_sentences * grammar.mean_words(START_SYMBOL))


def mixture_floor(language: SyntheticLanguage, weights: Sequence[float] | None = None) -> LossFloor:
    """Return the floor for one shared model of all domains.

    Args:
        language: The language.
        weights: The relative frequency of each domain, [D]; equal by default.
    """
    share = normalize_weights(language, weights)
    floors = [domain_floor(language, d) for d in range(len(share))]
    nats = sum(p * (floor.nats + domain_surprisal(language, d, share)) for d, (p, floor) in enumerate(zip(share, floors)) if p)
    return LossFloor(float(nats), float(sum(p * floor.words for p, floor in zip(share, floors))))


def domain_information(language: SyntheticLanguage, weights: Sequence[float] | None = None) -> float:
    """Return I(document; domain) in nats per document, the cost to a shared model of not knowing the domain.

    Args:
        language: The language.
        weights: The relative frequency of each domain, [D]; equal by default.
    """
    share = normalize_weights(language, weights)
    return float(sum(p * domain_surprisal(language, d, share) for d, p in enumerate(share) if p))


def domain_surprisal(language: SyntheticLanguage, domain: int, share: np.ndarray) -> float:
    """Return E[-log P(remaining domains)] in nats for documents of one domain.

    The remaining domains are those that a document does not exclude.

    Args:
        language: The language.
        domain: The index of the domain.
        share: The frequency of each domain, [D], with sum 1.
    """
    grammar, same_style = (
        language.grammars[domain],
        [language.domain_style(d) == language.domain_style(domain) for d in range(len(share))],
    )
    domain_symbols = {*OWN_SYMBOLS, CONCEPT_SYMBOL}
    no_domain_evidence = prob_without_evidence(grammar.probability_without(START_SYMBOL, domain_symbols), language.config.mean_sentences)
    no_evidence = prob_without_evidence(
        grammar.probability_without(START_SYMBOL, {*domain_symbols, *STYLE_FORMS}), language.config.mean_sentences
    )
    return float(-np.log(share[domain]) * (1 - no_domain_evidence) - np.log(share[same_style].sum()) * (no_domain_evidence - no_evidence))


def prob_without_evidence(sentence_prob: float, mean_sentences: float) -> float:
    """Return the probability that no sentence of a document contains evidence.

    Args:
        sentence_prob: The probability that one sentence contains no evidence.
        mean_sentences: The mean of the geometric number of sentences.
    """
    return sentence_prob / (mean_sentences - (mean_sentences - 1) * sentence_prob)


def normalize_weights(language: SyntheticLanguage, weights: Sequence[float] | None) -> np.ndarray:
    """Normalize domain weights to sum 1; None means equal weights.

    Raises:
        ValueError: There is not one weight per domain, a weight is negative, or all are zero.
    """
    count = language.config.num_domains
    share = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (count,) or share.min() < 0 or not share.sum() > 0:
        raise ValueError(f"weights must be {count} nonnegative numbers that are not all zero, got {weights}")
    return share / share.sum()


def document_nats(language: SyntheticLanguage, text: str, domain: int | None = None, weights: Sequence[float] | None = None) -> float:
    """Return -log P(text) of a whole document, in nats.

    Args:
        language: The language.
        text: The document.
        domain: The domain whose probability is used. None means the mixture of all domains.
        weights: The relative frequency of each domain in the mixture, [D]; equal by default.

    Returns:
        The nats, or infinity if the text does not belong to the language.
    """
    sentences = split_sentences(text)
    stop_prob, count = 1 / language.config.mean_sentences, len(sentences)
    with np.errstate(divide="ignore"):
        prior = np.log(normalize_weights(language, weights))
        length_log_prob = np.log(stop_prob) + ((count - 1) * np.log1p(-stop_prob) if count > 1 else 0.0)

    def log_likelihood(d: int) -> float:
        probs = [sentence_probability(language.grammars[d], START_SYMBOL, words) for words in sentences]
        return float(length_log_prob + sum(map(np.log, probs))) if probs and min(probs) > 0 else -np.inf

    if domain is not None:
        return -log_likelihood(domain)
    return -float(special.logsumexp([p + log_likelihood(d) for d, p in enumerate(prior)]))


def corpus_nats(language: SyntheticLanguage, corpus: Corpus) -> np.ndarray:
    """Return -log P(text | domain) of every document, [D], in nats.

    ``corpus_nats(language, test).sum() / tokens.lengths.sum()`` is the lowest possible loss per token on these documents for a
    model that knows the domain. It holds for any tokenizer; the end-of-sequence tokens are counted.

    Raises:
        UserError: A document has no label, or its domain is not one of the language.
    """
    names = language.config.domain_names
    for name in corpus.domains:
        if name not in names:
            raise unknown_name_error("domain of the synthetic corpus", name, names)
    if (corpus.label < 0).any():
        raise UserError("the loss floor of a document depends on its domain, but some documents have no label")
    return np.array([document_nats(language, text, names.index(corpus.domains[label])) for text, label in zip(corpus.text, corpus.label)])
