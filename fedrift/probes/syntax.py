"""Syntax: does the model still prefer sentences that are right to the same sentences with one rule broken?

Templated minimal pairs, scored by the log-probability of the whole sentence after an end token (Marvin & Linzen, EMNLP 2018,
arXiv:1808.09031; Warstadt et al., TACL 2020, arXiv:1912.00582). On the sandbox the pairs are its language's own, else English.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..corpus.corpus import Corpus
from ..corpus.sandbox import PHENOMENA as SANDBOX_PHENOMENA
from ..corpus.sandbox import Sandbox, language, minimal_pairs
from ..corpus.sandbox.pairs import Pair
from ..errors import UserError
from ..tree import Tree
from ..values import Round, State
from .bench import Bench
from .loss import Judge
from .panel import After, Look
from .probe import Reading
from .syntax_pairs import english_pairs
from .syntax_patterns import PHENOMENA
from .syntax_words import ENGLISH, Lexicon, forms, shared_lexicon
from .worn import mean_model, of_each, server_models

GROUP = "syntax"

OFTEN = 2  # documents of a domain that a word stands in, for the domain to hold it


@dataclass(frozen=True, eq=False)
class Syntax:
    """Of each phenomenon, and of all (each counting the same): ``syntax.accuracy``, the share of pairs whose right sentence has
    the higher log-probability (a tie is half; chance is 0.5), and ``syntax.margin``, the mean difference in nats.

    Both sentences of a pair have equally many tokens. Of several models, the mean over the fleet. A look reads M times
    the sentences with their padding, about 22,000 tokens for 1,100 pairs. ``margins`` has each pair's, for intervals that
    resample by ``template``.
    """

    model: Judge
    pairs: tuple[Pair, ...]  # I
    tokens: Tensor  # [2 I, T] the right sentences, then the wrong ones, each after an end token
    keep: Tensor  # [2 I, T] bool
    chunk: int = 8192  # tokens in one forward pass

    def __call__(self, done: Round) -> Reading:
        return self.of(done.after)

    def of(self, state: State) -> Reading:
        """Of the server's models."""
        found = mean_model(of_each(server_models(state), self.scores), state)  # [phenomena, 2]
        reading: Reading = {}
        for column, metric in enumerate(("syntax.accuracy", "syntax.margin")):
            reading[metric] = found[:, column].mean()
            reading |= {(metric, name): found[row, column] for row, name in enumerate(self.phenomena)}
        return reading

    @property
    def phenomena(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(pair.phenomenon for pair in self.pairs))

    def scores(self, params: Tree) -> Tensor:
        """Accuracy and margin of one model ``[1, ...]`` on each phenomenon, ``[phenomena, 2]``."""
        margin = self.margins(params)
        right = torch.where(margin.isnan(), torch.nan, (margin > 0).double() + (margin == 0).double() / 2)
        of = np.array([pair.phenomenon for pair in self.pairs])
        rows = [torch.from_numpy(np.flatnonzero(of == name)) for name in self.phenomena]
        return torch.stack([torch.stack([right[mine].mean(), margin[mine].mean()]) for mine in rows])

    @torch.no_grad()
    def margins(self, params: Tree) -> Tensor:
        """log P(right) - log P(wrong) of every pair under one model ``[1, ...]``, ``[I]`` float64."""
        where = next(iter(params.values())).device
        lost = torch.empty(len(self.tokens), dtype=torch.float64)
        order = self.keep.sum(1).argsort(stable=True)  # sentences of one length together: little padding
        for rows in order.split(max(1, self.chunk // self.tokens.shape[1])):
            width = int(self.keep[rows].sum(1).max())
            total, _ = self.model.sums(params, self.tokens[rows, :width][None].to(where), self.keep[rows, :width][None].to(where))
            lost[rows] = total[0].double().cpu()
        right, wrong = lost.chunk(2)
        return wrong - right


def syntax(model: Judge, tokenizer: Any, pairs: Sequence[Pair], chunk: int = 8192) -> Syntax:
    """The probe for some pairs."""
    texts = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
    lines = [[tokenizer.eos_token_id, *ids(tokenizer, text)] for text in texts]
    tokens = torch.zeros(len(lines), max(map(len, lines)), dtype=torch.long)
    keep = torch.zeros_like(tokens, dtype=torch.bool)
    for row, line in enumerate(lines):
        tokens[row, :len(line)], keep[row, :len(line)] = torch.tensor(line), True
    return Syntax(model, tuple(pairs), tokens, keep, chunk)


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def pairs_for(corpus: Corpus, tokenizer: Any, sandbox: Sandbox | None, seed: int, count: int) -> list[Pair]:
    """``count`` pairs of each phenomenon whose sentences have equally many tokens; none of one that has no such pairs."""
    def tokens(text: str) -> int:
        return len(ids(tokenizer, text))

    if sandbox is None:
        lexicon = lexicon_of(corpus)
        return [pair for name in PHENOMENA for pair in english_pairs(name, count, lexicon=lexicon, tokens=tokens, seed=seed)]
    found: list[Pair] = []
    for name in SANDBOX_PHENOMENA:
        try:
            found += minimal_pairs(language(sandbox), name, count, tokens=tokens, seed=seed)
        except UserError:  # no common words, or a tokenizer without such pairs
            continue
    return found


def lexicon_of(corpus: Corpus) -> Lexicon:
    """The words of ENGLISH that every domain of the corpus uses, told from its training documents.

    By domain and not by client: so all arms and partitions of a study are asked the same sentences, and none about words
    that only some clients could have read.
    """
    wanted, known = forms(ENGLISH), corpus.train
    holders: Counter[str] = Counter()
    labels = np.unique(known.label)
    for label in labels:
        often = Counter(word for text in known.text[known.label == label] for word in wanted.intersection(words(text)))
        holders.update(word for word, count in often.items() if count >= OFTEN)
    return shared_lexicon(ENGLISH, holders, len(labels))


def words(text: str) -> Iterable[str]:
    return re.findall("[a-z]+", text.lower())


def looks(bench: Bench) -> list[Look | After]:
    """Minimal pairs, whenever deep looks are taken."""
    pairs = pairs_for(bench.corpus, bench.tokenizer, bench.sandbox, bench.seed, bench.pairs)
    if not pairs:
        return []
    probe = syntax(bench.judge, bench.tokenizer, pairs, bench.chunk)
    return [Look("syntax", probe, "deep", float(probe.keep.sum()))]
