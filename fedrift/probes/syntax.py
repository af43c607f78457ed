"""Minimal pairs in plain English: a sentence beside one that breaks a single rule of grammar."""

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

MAX_ATTEMPTS = 60  # drawings for one pair whose two sentences have equally many tokens


def generate_english_pairs(
    phenomenon: str, count: int, *, lexicon: Lexicon = ENGLISH_LEXICON, count_tokens: Callable[[str], int] | None = None, seed: int = 0
) -> list[MinimalPair]:
    """Up to ``count`` pairs, no two alike, their templates in turn. With ``count_tokens`` (how many tokens a text has) both
    sentences of a pair have equally many; a template that has no such pairs is left out, and fewer may be had."""
    if phenomenon not in ENGLISH_PHENOMENA:
        raise unknown_name_error("phenomenon", phenomenon, ENGLISH_PHENOMENA)
    draw = WordSampler(lexicon, numpy_stream(seed, "syntax", "english", phenomenon))
    templates = [(pattern, n) for pattern in ENGLISH_PHENOMENA[phenomenon] for n in ("sg", "pl")]
    found: dict[SentencePair, MinimalPair] = {}
    while len(found) < count and templates:
        for template in list(templates):
            pattern, n = template
            for _ in range(MAX_ATTEMPTS):
                good, bad = pattern(draw, n)
                if good != bad and (good, bad) not in found and (count_tokens is None or count_tokens(good) == count_tokens(bad)):
                    found[good, bad] = MinimalPair(phenomenon, f"{pattern.__name__}, {n}", good, bad)
                    break
            else:
                templates.remove(template)
            if len(found) == count:
                break
    return list(found.values())


# Syntax: does the model still prefer sentences that are right to the same sentences with one rule broken?
#
# Templated minimal pairs, scored by the log-probability of the whole sentence after an end token (Marvin & Linzen, EMNLP 2018,
# arXiv:1808.09031; Warstadt et al., TACL 2020, arXiv:1912.00582). On the synthetic corpus the pairs are its language's own,
# else English.

SYNTAX_GROUP = "syntax"

MIN_DOCUMENT_COUNT = 2  # documents of a domain that a word stands in, for the domain to hold it


@dataclass(frozen=True, eq=False)
class MinimalPairProbe:
    """Of each phenomenon, and of all (each counting the same): ``syntax.accuracy``, the share of pairs whose right sentence has
    the higher log-probability (a tie is half; chance is 0.5), and ``syntax.margin``, the mean difference in nats.

    Both sentences of a pair have equally many tokens. Of several models, the mean over the fleet. A look reads M times
    the sentences with their padding, about 22,000 tokens for 1,100 pairs. ``log_prob_margins`` has each pair's, for intervals
    that resample by ``template``.
    """

    model: LossModel
    pairs: tuple[MinimalPair, ...]  # I
    tokens: Tensor  # [2 I, T] the right sentences, then the wrong ones, each after an end token
    mask: Tensor  # [2 I, T] bool
    tokens_per_pass: int = 8192  # tokens in one forward pass

    def __call__(self, result: RoundResult) -> MetricValues:
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Of the server's models."""
        found = mean_over_models(score_models(server_models(state), self.score_phenomena), state)  # [phenomena, 2]
        reading: MetricValues = {}
        for column, metric in enumerate(("syntax.accuracy", "syntax.margin")):
            reading[metric] = found[:, column].mean()
            reading |= {(metric, name): found[row, column] for row, name in enumerate(self.phenomena)}
        return reading

    @property
    def phenomena(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(pair.phenomenon for pair in self.pairs))

    def score_phenomena(self, params: Tree) -> Tensor:
        """Accuracy and margin of one model ``[1, ...]`` on each phenomenon, ``[phenomena, 2]``."""
        margin = self.log_prob_margins(params)
        right = torch.where(margin.isnan(), torch.nan, (margin > 0).double() + (margin == 0).double() / 2)
        of = np.array([pair.phenomenon for pair in self.pairs])
        rows = [torch.from_numpy(np.flatnonzero(of == name)) for name in self.phenomena]
        return torch.stack([torch.stack([right[mine].mean(), margin[mine].mean()]) for mine in rows])

    @torch.no_grad()
    def log_prob_margins(self, params: Tree) -> Tensor:
        """log P(right) - log P(wrong) of every pair under one model ``[1, ...]``, ``[I]`` float64."""
        where = next(iter(params.values())).device
        lost = torch.empty(len(self.tokens), dtype=torch.float64)
        order = self.mask.sum(1).argsort(stable=True)  # sentences of one length together: little padding
        for rows in order.split(max(1, self.tokens_per_pass // self.tokens.shape[1])):
            width = int(self.mask[rows].sum(1).max())
            total, _ = self.model.sequence_losses(
                params, self.tokens[rows, :width][None].to(where), self.mask[rows, :width][None].to(where)
            )
            lost[rows] = total[0].double().cpu()
        right, wrong = lost.chunk(2)
        return wrong - right


def build_syntax_probe(model: LossModel, tokenizer: Any, pairs: Sequence[MinimalPair], tokens_per_pass: int = 8192) -> MinimalPairProbe:
    """The probe for some pairs."""
    texts = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
    lines = [[tokenizer.eos_token_id, *token_ids(tokenizer, text)] for text in texts]
    tokens = torch.zeros(len(lines), max(map(len, lines)), dtype=torch.long)
    keep = torch.zeros_like(tokens, dtype=torch.bool)
    for row, line in enumerate(lines):
        tokens[row, : len(line)], keep[row, : len(line)] = torch.tensor(line), True
    return MinimalPairProbe(model, tuple(pairs), tokens, keep, tokens_per_pass)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def select_pairs(
    corpus: Corpus, tokenizer: Any, synthetic: SyntheticConfig | None, seed: int, pairs_per_phenomenon: int
) -> list[MinimalPair]:
    """``pairs_per_phenomenon`` pairs of each phenomenon whose sentences have equally many tokens; none of one that has no such
    pairs."""

    def tokens(text: str) -> int:
        return len(token_ids(tokenizer, text))

    if synthetic is None:
        lexicon = build_lexicon(corpus)
        return [
            pair
            for name in ENGLISH_PHENOMENA
            for pair in generate_english_pairs(name, pairs_per_phenomenon, lexicon=lexicon, count_tokens=tokens, seed=seed)
        ]
    found: list[MinimalPair] = []
    for name in SYNTHETIC_PHENOMENA:
        try:
            found += make_minimal_pairs(get_language(synthetic), name, pairs_per_phenomenon, count_tokens=tokens, seed=seed)
        except UserError:  # no common words, or a tokenizer without such pairs
            continue
    return found


def build_lexicon(corpus: Corpus) -> Lexicon:
    """The words of ENGLISH_LEXICON that every domain of the corpus uses, told from its training documents.

    By domain and not by client: so all arms and partitions of a study are asked the same sentences, and none about words
    that only some clients could have read.
    """
    wanted, known = word_forms(ENGLISH_LEXICON), corpus.train
    holders: Counter[str] = Counter()
    labels = np.unique(known.label)
    for label in labels:
        often = Counter(word for text in known.text[known.label == label] for word in wanted.intersection(split_words(text)))
        holders.update(word for word, count in often.items() if count >= MIN_DOCUMENT_COUNT)
    return select_shared_lexicon(ENGLISH_LEXICON, holders, len(labels))


def split_words(text: str) -> Iterable[str]:
    return re.findall("[a-z]+", text.lower())


def syntax_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Minimal pairs, whenever expensive probes run."""
    pairs = select_pairs(context.corpus, context.tokenizer, context.synthetic, context.split_seed, context.pairs_per_phenomenon)
    if not pairs:
        return []
    probe = build_syntax_probe(context.loss_model, context.tokenizer, pairs, context.tokens_per_pass)
    return [ScheduledProbe("syntax", probe, "expensive", float(probe.mask.sum()))]
