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

from ..core.random import numpy_stream, torch_stream
from ..core.tree import Tree
from ..core.types import RoundResult
from ..models.stacked_model import NucleusSampler, TokenSampler, generate_tokens, greedy
from .base import DerivedMetric, MetricValues, ScheduledProbe
from .context import ProbeContext
from .held_out import HeldOut

TEXT_GROUP = "text"

PROMPT_TOKENS = 32  # tokens, and as many of the continuation; half a block where blocks are shorter
METRIC_PREFIXES = ("text", "text.nucleus")  # of continuing: greedy, drawn
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
NUM_RESAMPLES = 1000  # of the prompts, for an interval
MIN_PROMPTS = 15  # prompts; below, a bootstrap's interval covers too little and is NaN


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
    tokens_per_pass: int = 8192
    seed: int = 0

    def __call__(self, result: RoundResult) -> MetricValues:
        half, state = prompt_length(self.held_out), result.after
        whole = self.held_out.blocks.mask[:, : 2 * half].all(1)
        every: dict[str, list[tuple[str, str]]] = {way: [] for way in METRIC_PREFIXES}
        reading: MetricValues = {}
        for number, name in enumerate(self.held_out.domains):
            rows = np.flatnonzero(whole & (self.held_out.domain_ids == number))
            if not len(rows):
                continue
            holders = np.bincount(state.cluster_ids.cpu().numpy(), self.held_out.client_domain_tokens[:, number], state.server.num_models)
            one = torch.tensor([int(holders.argmax())])
            params = Tree({**state.server.params.take(one), **state.server.base_for(one)})
            chosen: tuple[TokenSampler, ...] = greedy, NucleusSampler(torch_stream(self.seed, "nucleus", name))
            for way, choose in zip(METRIC_PREFIXES, chosen, strict=True):
                pairs = self.generate_pairs(params, self.held_out.blocks.tokens[rows, : 2 * half], half, choose)
                reading |= {(metric, name): value for metric, value in score_continuations(pairs, way).items()}
                every[way] += pairs
        for way, pairs in every.items():
            reading |= {(metric, ""): value for metric, value in score_continuations(pairs, way).items()} if pairs else {}
        return reading

    def generate_pairs(self, params: Tree, tokens: np.ndarray, num_tokens: int, choose: TokenSampler) -> list[tuple[str, str]]:
        """(continuation, reference) of each row ``[E, 2 num_tokens]``."""
        device = next(iter(params.values())).device
        prompts = torch.from_numpy(tokens[:, :num_tokens]).to(device).split(max(1, self.tokens_per_pass // (2 * num_tokens)))  # type: ignore[no-untyped-call]
        found = torch.cat([generate_tokens(self.model, params, part, num_tokens, choose) for part in prompts]).tolist()
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        ours, theirs = (self.tokenizer.batch_decode(rows, **plain) for rows in (found, tokens[:, num_tokens:].tolist()))
        return list(zip(ours, theirs, strict=True))


def prompt_length(held_out: HeldOut) -> int:
    return int(min(PROMPT_TOKENS, held_out.blocks.tokens.shape[1] // 2))


def score_continuations(pairs: Sequence[tuple[str, str]], prefix: str = METRIC_PREFIXES[0]) -> dict[str, float]:
    """All numbers about some (continuation, reference), as metrics with ``prefix``."""
    from rouge_score.rouge_scorer import RougeScorer  # both are a second to load, and few runs ask for them

    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    found = [scorer.score(reference, ours) for ours, reference in pairs]
    words = [ours.split() for ours, _ in pairs]
    said = bleu_score(pairs)[0]
    for name in ROUGE_TYPES:
        each = np.array([score[name].fmeasure for score in found])
        said |= {name: float(each.mean()), f"{name}.ci": bootstrap_half_width(each)}
    said |= {"distinct2": distinct_ngrams(words, 2), "repetition": repetition_rate(words, 4)}
    return {f"{prefix}.{name}": value for name, value in said.items()}


def bleu_score(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, float], str]:
    """BLEU of the whole, its interval by sacrebleu's own bootstrap (Koehn, EMNLP 2004), and how sacrebleu counts."""
    from sacrebleu.metrics.bleu import BLEU

    metric, (ours, theirs) = BLEU(), zip(*pairs, strict=True)
    enough = len(pairs) >= MIN_PROMPTS
    found = metric.corpus_score(ours, [theirs], n_bootstrap=NUM_RESAMPLES if enough else 1)
    return (
        {"bleu": found.score, "bleu.ci": float(found._ci) if enough else float("nan")},  # told by format() alone
        f"BLEU {metric.get_signature()}",
    )


def bootstrap_half_width(values: np.ndarray) -> float:
    """Half of the 95 % percentile interval of the mean of ``values [E]``; NaN of too few."""
    from scipy.stats import bootstrap

    if len(values) < MIN_PROMPTS:
        return float("nan")
    low, high = bootstrap(
        (values,), np.mean, n_resamples=NUM_RESAMPLES, method="percentile", random_state=numpy_stream(0, "prompts")
    ).confidence_interval
    return float(high - low) / 2


def bleu_signature() -> str:
    """How sacrebleu counts, in its own words."""
    return bleu_score([("a", "a")] * MIN_PROMPTS)[1]


def ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[first : first + length]) for first in range(len(words) - length + 1)]


def distinct_ngrams(texts: Sequence[Sequence[str]], length: int) -> float:
    """Different runs of words among all runs, over all texts (Li et al., NAACL 2016, arXiv:1510.03055); NaN without any."""
    every = [run for words in texts for run in ngrams(words, length)]
    return len(set(every)) / len(every) if every else float("nan")


def repetition_rate(texts: Sequence[Sequence[str]], length: int) -> float:
    """Runs of words that stood in the same text before, among all runs; NaN without any."""
    found = [ngrams(words, length) for words in texts]
    total = sum(map(len, found))
    return sum(len(every) - len(set(every)) for every in found) / total if total else float("nan")


def text_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    tokens = len(METRIC_PREFIXES) * len(context.held_out.blocks) * 2.0 * prompt_length(context.held_out)
    probe = Continuations(context.model, context.tokenizer, context.held_out, context.tokens_per_pass, context.split_seed)
    return [ScheduledProbe("text", probe, "last", tokens, bleu_signature())]
