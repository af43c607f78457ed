"""Measure syntax with minimal pairs: a grammatical sentence and a copy that violates a single grammar rule.

Pairs are generated from templates and scored by the log-probability of the whole sentence after an end-of-text token (Marvin &
Linzen, EMNLP 2018, arXiv:1808.09031; Warstadt et al., TACL 2020, arXiv:1912.00582). Synthetic corpora use pairs of their own
language, and all other corpora use English pairs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError, unknown_name_error
from ..core.random import numpy_stream
from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult
from ..data.corpus import Corpus
from ..data.synthetic import PHENOMENA as SYNTHETIC_PHENOMENA
from ..data.synthetic import SyntheticConfig, get_language, make_minimal_pairs
from ..data.synthetic.minimal_pairs import MinimalPair
from .base import DerivedMetric, MetricValues, ScheduledProbe
from .context import ProbeContext, mean_over_models, score_models, server_models
from .losses import LossModel
from .syntax_templates import ENGLISH_LEXICON, ENGLISH_PHENOMENA, Lexicon, SentencePair, WordSampler, select_shared_lexicon, word_forms

MAX_ATTEMPTS = 60  # draws per pair until both sentences have the same number of tokens


def generate_english_pairs(
    phenomenon: str, count: int, *, lexicon: Lexicon = ENGLISH_LEXICON, count_tokens: Callable[[str], int] | None = None, seed: int = 0
) -> list[MinimalPair]:
    """Generate distinct minimal pairs of a phenomenon, cycling through its templates.

    Args:
        phenomenon: A key of ``ENGLISH_PHENOMENA``.
        count: Number of pairs.
        lexicon: Words for the templates.
        count_tokens: Function that counts the tokens of a text. If given, both sentences of a pair have the same number of tokens.
        seed: Seed of the random stream.

    Returns:
        At most ``count`` pairs. A template that yields no further pairs is dropped, so there may be fewer.

    Raises:
        UserError: There is no such phenomenon.
    """
    if phenomenon not in ENGLISH_PHENOMENA:
        raise unknown_name_error("phenomenon", phenomenon, ENGLISH_PHENOMENA)
    sampler = WordSampler(lexicon, numpy_stream(seed, "syntax", "english", phenomenon))
    templates = [(pattern, number) for pattern in ENGLISH_PHENOMENA[phenomenon] for number in ("sg", "pl")]
    pairs: dict[SentencePair, MinimalPair] = {}
    while len(pairs) < count and templates:
        for template in list(templates):
            pattern, number = template
            for _ in range(MAX_ATTEMPTS):
                good, bad = pattern(sampler, number)
                if good != bad and (good, bad) not in pairs and (count_tokens is None or count_tokens(good) == count_tokens(bad)):
                    pairs[good, bad] = MinimalPair(phenomenon, f"{pattern.__name__}, {number}", good, bad)
                    break
            else:
                templates.remove(template)
            if len(pairs) == count:
                break
    return list(pairs.values())


SYNTAX_GROUP = "syntax"

MIN_DOCUMENT_COUNT = 2  # a domain uses a word if at least this many of its documents contain it


@dataclass(frozen=True, eq=False)
class MinimalPairProbe:
    """Score minimal pairs per phenomenon, and as the unweighted mean over phenomena.

    - ``syntax.accuracy``: share of pairs whose grammatical sentence has the higher log-probability. A tie counts as one half; chance
      is 0.5.
    - ``syntax.margin``: mean difference of the log-probabilities, in nats.

    Both sentences of a pair have the same number of tokens. With several models, the metrics are means over all clients. One
    evaluation processes the padded sentences M times, about 22,000 tokens for 1,100 pairs. ``log_prob_margins`` returns the margin of
    each pair, for confidence intervals that resample by ``template``.
    """

    model: LossModel
    pairs: tuple[MinimalPair, ...]  # I pairs
    tokens: Tensor  # [2 I, T] grammatical sentences, then ungrammatical ones, each after an end-of-text token
    mask: Tensor  # [2 I, T] bool; False for padding
    tokens_per_pass: int = 8192  # maximum number of tokens per forward pass

    def __call__(self, result: RoundResult) -> MetricValues:
        """Score the server's models after the round."""
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Score the server's models."""
        scores = mean_over_models(score_models(server_models(state), self.score_phenomena), state)  # [phenomena, 2]
        metrics: MetricValues = {}
        for column, metric in enumerate(("syntax.accuracy", "syntax.margin")):
            metrics[metric] = scores[:, column].mean()
            metrics |= {(metric, name): scores[row, column] for row, name in enumerate(self.phenomena)}
        return metrics

    @property
    def phenomena(self) -> tuple[str, ...]:
        """Return the phenomena of the pairs, in order of first occurrence."""
        return tuple(dict.fromkeys(pair.phenomenon for pair in self.pairs))

    def score_phenomena(self, params: Tree) -> Tensor:
        """Compute accuracy and margin of one model ``[1, ...]`` on each phenomenon, ``[phenomena, 2]``."""
        margin = self.log_prob_margins(params)
        correct = torch.where(margin.isnan(), torch.nan, (margin > 0).double() + (margin == 0).double() / 2)
        phenomena = np.array([pair.phenomenon for pair in self.pairs])
        rows = [torch.from_numpy(np.flatnonzero(phenomena == name)) for name in self.phenomena]
        return torch.stack([torch.stack([correct[index].mean(), margin[index].mean()]) for index in rows])

    @torch.no_grad()
    def log_prob_margins(self, params: Tree) -> Tensor:
        """Compute log P(good) - log P(bad) of every pair under one model ``[1, ...]``, ``[I]`` float64."""
        device = params.device
        losses = torch.empty(len(self.tokens), dtype=torch.float64)
        order = self.mask.sum(1).argsort(stable=True)  # sorting by length reduces padding
        for rows in order.split(max(1, self.tokens_per_pass // self.tokens.shape[1])):
            width = int(self.mask[rows].sum(1).max())
            total, _ = self.model.sequence_losses(
                params, self.tokens[rows, :width][None].to(device), self.mask[rows, :width][None].to(device)
            )
            losses[rows] = total[0].double().cpu()
        good, bad = losses.chunk(2)
        return bad - good


def build_syntax_probe(model: LossModel, tokenizer: Any, pairs: Sequence[MinimalPair], tokens_per_pass: int = 8192) -> MinimalPairProbe:
    """Tokenize minimal pairs and build their probe.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        pairs: I minimal pairs.
        tokens_per_pass: Maximum number of tokens per forward pass.
    """
    texts = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
    sequences = [[tokenizer.eos_token_id, *token_ids(tokenizer, text)] for text in texts]
    tokens = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)], mask[row, : len(sequence)] = torch.tensor(sequence), True
    return MinimalPairProbe(model, tuple(pairs), tokens, mask, tokens_per_pass)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenize a text without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def select_pairs(
    corpus: Corpus, tokenizer: Any, synthetic: SyntheticConfig | None, seed: int, pairs_per_phenomenon: int
) -> list[MinimalPair]:
    """Generate the minimal pairs for a corpus.

    Args:
        corpus: The corpus, whose training documents determine the English words that are used.
        tokenizer: Tokenizer of the model. Both sentences of a pair have the same number of tokens.
        synthetic: Settings of the synthetic language, or None for English pairs.
        seed: Seed of the random stream.
        pairs_per_phenomenon: Number of pairs per phenomenon.

    Returns:
        The pairs of all phenomena. A phenomenon without such pairs is missing.
    """

    def count_tokens(text: str) -> int:
        return len(token_ids(tokenizer, text))

    if synthetic is None:
        lexicon = build_lexicon(corpus)
        return [
            pair
            for name in ENGLISH_PHENOMENA
            for pair in generate_english_pairs(name, pairs_per_phenomenon, lexicon=lexicon, count_tokens=count_tokens, seed=seed)
        ]
    pairs: list[MinimalPair] = []
    for name in SYNTHETIC_PHENOMENA:
        try:
            pairs += make_minimal_pairs(get_language(synthetic), name, pairs_per_phenomenon, count_tokens=count_tokens, seed=seed)
        except UserError:  # no shared words, or no pairs with equal token counts
            continue
    return pairs


def build_lexicon(corpus: Corpus) -> Lexicon:
    """Select the words of ENGLISH_LEXICON that every domain of the corpus uses in its training documents.

    The selection is by domain and not by client. So all conditions and partitions of a study are tested on the same sentences, and no
    sentence contains a word that only some clients could have seen.
    """
    words, train = word_forms(ENGLISH_LEXICON), corpus.train
    num_domains: Counter[str] = Counter()
    labels = np.unique(train.label)
    for label in labels:
        document_counts = Counter(word for text in train.text[train.label == label] for word in words.intersection(split_words(text)))
        num_domains.update(word for word, count in document_counts.items() if count >= MIN_DOCUMENT_COUNT)
    return select_shared_lexicon(ENGLISH_LEXICON, num_domains, len(labels))


def split_words(text: str) -> Iterable[str]:
    """Return the lowercase words of a text."""
    return re.findall("[a-z]+", text.lower())


def syntax_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure how often the model prefers the grammatical sentence of a minimal pair, with the expensive probes; it needs pairs."""
    pairs = select_pairs(context.corpus, context.tokenizer, context.synthetic, context.split_seed, context.pairs_per_phenomenon)
    if not pairs:
        return []
    probe = build_syntax_probe(context.loss_model, context.tokenizer, pairs, context.tokens_per_pass)
    return [ScheduledProbe("syntax", probe, "expensive", float(probe.mask.sum()))]
