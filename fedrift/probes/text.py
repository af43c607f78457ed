"""What the final model writes: held-out text continued, beside how it went on. Secondary evidence, never a main claim.

Scores of continuations are low and noisy whatever the model: there are many good ways on. BLEU by sacrebleu (Post, WMT 2018,
arXiv:1804.08771; its signature is stored with the run), ROUGE F1 with stemming by rouge-score (Lin, 2004; Google's
implementation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..models.generate import Choose, Nucleus, continued, likeliest
from ..seeds import numpy_stream
from ..streams import torch_stream
from ..tree import Tree
from ..values import Round
from .bench import Bench
from .held_out import HeldOut
from .panel import After, Look
from .probe import Reading

GROUP = "text"

PROMPT = 32  # tokens, and as many of the continuation; half a block where blocks are shorter
WAYS = ("text", "text.nucleus")  # of continuing: greedy, drawn
ROUGE = ("rouge1", "rouge2", "rougeL")
RESAMPLES = 1000  # of the prompts, for an interval
FEWEST = 15  # prompts; below, a bootstrap's interval covers too little and is NaN


@dataclass(frozen=True, eq=False)
class Continuations:
    """``text.bleu`` (0 to 100), ``text.rouge1``, ``text.rouge2``, ``text.rougeL`` (0 to 1, means over prompts);
    ``text.bleu.ci``, ``text.rouge1.ci`` ...: half the width of the 95 % bootstrap interval over prompts;
    ``text.distinct2``: different pairs of words among all pairs; ``text.repetition``: share of four-word runs that stood in the
    same continuation before.

    ``text.nucleus.bleu`` ...: the same of continuations drawn from the nucleus (p = .9), once, for greedy ones repeat themselves.

    Prompts are the first tokens of every whole held-out block, references what follows there; without an end.
    Each domain is continued by the model that most of its training tokens share. ``seed``: of the draws, the same in every arm.
    """

    model: Any
    tokenizer: Any
    held_out: HeldOut
    chunk: int = 8192
    seed: int = 0

    def __call__(self, done: Round) -> Reading:
        half, state = prompt_length(self.held_out), done.after
        whole = self.held_out.blocks.keep[:, :2 * half].all(1)
        every: dict[str, list[tuple[str, str]]] = {way: [] for way in WAYS}
        reading: Reading = {}
        for number, name in enumerate(self.held_out.names):
            rows = np.flatnonzero(whole & (self.held_out.domain == number))
            if not len(rows):
                continue
            holders = np.bincount(state.group.cpu().numpy(), self.held_out.mix[:, number], state.server.models)
            one = torch.tensor([int(holders.argmax())])
            params = Tree({**state.server.params.rows(one), **state.server.under(one)})
            chosen: tuple[Choose, ...] = likeliest, Nucleus(torch_stream(self.seed, "nucleus", name))
            for way, choose in zip(WAYS, chosen, strict=True):
                pairs = self.written(params, self.held_out.blocks.tokens[rows, :2 * half], half, choose)
                reading |= {(metric, name): value for metric, value in scores(pairs, way).items()}
                every[way] += pairs
        for way, pairs in every.items():
            reading |= {(metric, ""): value for metric, value in scores(pairs, way).items()} if pairs else {}
        return reading

    def written(self, params: Tree, tokens: np.ndarray, half: int, choose: Choose) -> list[tuple[str, str]]:
        """(continuation, reference) of each row ``[E, 2 half]``."""
        device = next(iter(params.values())).device
        prompts = torch.from_numpy(tokens[:, :half]).to(device).split(max(1, self.chunk // (2 * half)))  # type: ignore[no-untyped-call]
        found = torch.cat([continued(self.model, params, part, half, choose) for part in prompts]).tolist()
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        ours, theirs = (self.tokenizer.batch_decode(rows, **plain) for rows in (found, tokens[:, half:].tolist()))
        return list(zip(ours, theirs, strict=True))


def prompt_length(held_out: HeldOut) -> int:
    return int(min(PROMPT, held_out.blocks.tokens.shape[1] // 2))


def scores(pairs: Sequence[tuple[str, str]], way: str = WAYS[0]) -> dict[str, float]:
    """All numbers about some (continuation, reference), as metrics of ``way``."""
    from rouge_score.rouge_scorer import RougeScorer  # both are a second to load, and few runs ask for them

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    found = [scorer.score(reference, ours) for ours, reference in pairs]
    words = [ours.split() for ours, _ in pairs]
    said = bleu(pairs)[0]
    for name in ROUGE:
        each = np.array([score[name].fmeasure for score in found])
        said |= {name: float(each.mean()), f"{name}.ci": half_width(each)}
    said |= {"distinct2": distinct(words, 2), "repetition": repetition(words, 4)}
    return {f"{way}.{name}": value for name, value in said.items()}


def bleu(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, float], str]:
    """BLEU of the whole, its interval by sacrebleu's own bootstrap (Koehn, EMNLP 2004), and how sacrebleu counts."""
    from sacrebleu.metrics.bleu import BLEU

    metric, (ours, theirs) = BLEU(), zip(*pairs, strict=True)
    enough = len(pairs) >= FEWEST
    found = metric.corpus_score(ours, [theirs], n_bootstrap=RESAMPLES if enough else 1)
    return ({"bleu": found.score, "bleu.ci": float(found._ci) if enough else float("nan")},  # told by format() alone
            f"BLEU {metric.get_signature()}")


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % percentile interval of the mean of ``values [E]``; NaN of too few."""
    from scipy.stats import bootstrap

    if len(values) < FEWEST:
        return float("nan")
    low, high = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile",
                          random_state=numpy_stream(0, "prompts")).confidence_interval
    return float(high - low) / 2


def signature() -> str:
    """How sacrebleu counts, in its own words."""
    return bleu([("a", "a")] * FEWEST)[1]


def runs(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[first:first + length]) for first in range(len(words) - length + 1)]


def distinct(texts: Sequence[Sequence[str]], length: int) -> float:
    """Different runs of words among all runs, over all texts (Li et al., NAACL 2016, arXiv:1510.03055); NaN without any."""
    every = [run for words in texts for run in runs(words, length)]
    return len(set(every)) / len(every) if every else float("nan")


def repetition(texts: Sequence[Sequence[str]], length: int) -> float:
    """Runs of words that stood in the same text before, among all runs; NaN without any."""
    found = [runs(words, length) for words in texts]
    total = sum(map(len, found))
    return sum(len(every) - len(set(every)) for every in found) / total if total else float("nan")


def looks(bench: Bench) -> list[Look | After]:
    tokens = len(WAYS) * len(bench.held_out.blocks) * 2.0 * prompt_length(bench.held_out)
    probe = Continuations(bench.model, bench.tokenizer, bench.held_out, bench.chunk, bench.seed)
    return [Look("text", probe, "last", tokens, signature())]
