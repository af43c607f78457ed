"""What is known of the synthetic language: how many nats any model must lose on its documents, exactly.

``loss - floor`` is what a model has not learned. Two floors: of a reader who knows the domain, H(document |
domain), and of one shared model that has to find it out, H(document) = H(document | domain) + I(document;
domain). Their difference is the conflict between domains that no training removes.

I(document; domain) is exact because evidence is all or nothing. Domains give every common word the same
probability in the same place, so a document without evidence is equally likely in all of them; one word of a
domain's own, or one habit, leaves that domain alone; one word that styles differ in leaves the domains of that
style.

Both floors are for whole documents, each read by itself, its end included. In a block of several documents of
one domain the earlier ones tell the domain, and a shared model may come below the second floor, not the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from ...core.errors import UserError, unknown_name_error
from ..corpus import Corpus
from .grammar import sentence_probability
from .language import CONCEPT_SYMBOL, OWN_SYMBOLS, START_SYMBOL, STYLE_FORMS, SyntheticLanguage, split_sentences


class LossFloor(NamedTuple):
    """Expectations over documents."""

    nats: float  # of a document: its entropy
    words: float  # of a document, full stops counted

    @property
    def nats_per_word(self) -> float:
        """The entropy rate; its exponential is the least perplexity per word."""
        return self.nats / self.words


def domain_floor(language: SyntheticLanguage, domain: int) -> LossFloor:
    """The floor of a reader who knows the domain: the entropy of its documents."""
    grammar, many = language.grammars[domain], language.config.mean_sentences
    stop = 1 / many
    length = -(np.log(stop) + (many - 1) * np.log1p(-stop)) if many > 1 else 0.0  # nats of a geometric number
    return LossFloor(many * grammar.entropy(START_SYMBOL) + float(length), many * grammar.mean_words(START_SYMBOL))


def mixture_floor(language: SyntheticLanguage, weights: Sequence[float] | None = None) -> LossFloor:
    """The floor of one model for all domains, which are as frequent as ``weights`` [D] say (default: alike)."""
    share = normalize_weights(language, weights)
    floors = [domain_floor(language, d) for d in range(len(share))]
    nats = sum(p * (floor.nats + domain_surprisal(language, d, share)) for d, (p, floor) in enumerate(zip(share, floors)) if p)
    return LossFloor(float(nats), float(sum(p * floor.words for p, floor in zip(share, floors))))


def domain_information(language: SyntheticLanguage, weights: Sequence[float] | None = None) -> float:
    """I(document; domain), nats of a document: what one shared model loses for not being told the domain."""
    share = normalize_weights(language, weights)
    return float(sum(p * domain_surprisal(language, d, share) for d, p in enumerate(share) if p))


def domain_surprisal(language: SyntheticLanguage, domain: int, share: np.ndarray) -> float:
    """E[-log P(domains that the document leaves)] for documents of one domain, in nats."""
    grammar, same = (language.grammars[domain], [language.domain_style(d) == language.domain_style(domain) for d in range(len(share))])
    telling = {*OWN_SYMBOLS, CONCEPT_SYMBOL}
    style_only = prob_without_evidence(grammar.probability_without(START_SYMBOL, telling), language.config.mean_sentences)
    nothing = prob_without_evidence(grammar.probability_without(START_SYMBOL, {*telling, *STYLE_FORMS}), language.config.mean_sentences)
    return float(-np.log(share[domain]) * (1 - style_only) - np.log(share[same].sum()) * (style_only - nothing))


def prob_without_evidence(sentence_prob: float, mean_sentences: float) -> float:
    """The chance that no sentence of a document says something, if one says nothing with chance ``sentence_prob``."""
    return sentence_prob / (mean_sentences - (mean_sentences - 1) * sentence_prob)


def normalize_weights(language: SyntheticLanguage, weights: Sequence[float] | None) -> np.ndarray:
    count = language.config.num_domains
    share = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (count,) or share.min() < 0 or not share.sum() > 0:
        raise ValueError(f"wanted {count} weights that are not negative and not all zero, got {weights}")
    return share / share.sum()


def document_nats(language: SyntheticLanguage, text: str, domain: int | None = None, weights: Sequence[float] | None = None) -> float:
    """-log P(text) of a whole document in a domain, or (None) in the mixture; infinite if it is not in the language."""
    sentences = split_sentences(text)
    stop, count = 1 / language.config.mean_sentences, len(sentences)
    with np.errstate(divide="ignore"):
        prior = np.log(normalize_weights(language, weights))
        length = np.log(stop) + ((count - 1) * np.log1p(-stop) if count > 1 else 0.0)

    def log_likelihood(d: int) -> float:
        chances = [sentence_probability(language.grammars[d], START_SYMBOL, words) for words in sentences]
        return float(length + sum(map(np.log, chances))) if chances and min(chances) > 0 else -np.inf

    if domain is not None:
        return -log_likelihood(domain)
    return -float(logsumexp([p + log_likelihood(d) for d, p in enumerate(prior)]))


def corpus_nats(language: SyntheticLanguage, corpus: Corpus) -> np.ndarray:
    """-log P(text | domain) of every document, [D]; divided by tokens, the floor of just these documents.

    ``corpus_nats(language, test).sum() / tokens.lengths.sum()`` is what a model that knows the domain loses
    per token, with any tokenizer, its end token counted.
    """
    names = language.config.domain_names
    for name in corpus.domains:
        if name not in names:
            raise unknown_name_error("domain of the synthetic corpus", name, names)
    if (corpus.label < 0).any():
        raise UserError("the floor of a document needs its domain, and some documents have no label")
    return np.array([document_nats(language, text, names.index(corpus.domains[label])) for text, label in zip(corpus.text, corpus.label)])
