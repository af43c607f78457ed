"""Score generated continuations of held-out text by the final model. They are secondary evidence and not suited for main claims.

Scores of continuations are low and noisy for every model, because many continuations are good. BLEU is computed by sacrebleu
(Post, WMT 2018, arXiv:1804.08771), and its signature is stored with the run. ROUGE F1 with stemming is computed by rouge-score
(Lin, 2004; Google's implementation).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.random import numpy_stream, torch_stream
from ..core.tree import Tree
from ..core.types import RoundResult
from .base import DerivedMetric, MetricValues, ScheduledProbe
from .context import ProbeContext
from .held_out import HeldOut

if TYPE_CHECKING:
    from ..models.stacked_model import TokenSampler

TEXT_GROUP = "text"

PROMPT_TOKENS = 32  # tokens of a prompt and of its continuation; half a block if blocks are shorter than 64 tokens
METRIC_PREFIXES = ("text", "text.nucleus")  # greedy decoding, nucleus sampling
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
NUM_RESAMPLES = 1000  # bootstrap resamples of the prompts per interval
MIN_PROMPTS = 15  # with fewer prompts, bootstrap intervals are too narrow and are reported as NaN


@dataclass(frozen=True, eq=False)
class Continuations:
    """Scores of continuations of held-out text, per domain and in total.

    - ``text.bleu`` (0 to 100); ``text.rouge1``, ``text.rouge2``, ``text.rougeL`` (0 to 1, means over prompts).
    - ``text.bleu.ci``, ``text.rouge1.ci``, ...: half the width of the 95 % bootstrap interval over prompts.
    - ``text.distinct2``: share of distinct word pairs among all word pairs.
    - ``text.repetition``: share of four-word sequences that occurred before in the same continuation.
    - ``text.nucleus.bleu``, ...: the same for one continuation per prompt from nucleus sampling (p = 0.9). Greedy continuations tend to
      repeat themselves.

    Prompts are the first tokens of every complete held-out text block, and references are the tokens that follow. Generation does not stop
    at end-of-text tokens. Each domain is continued by the model that serves the clients with most of its training tokens.
    """

    model: Any  # a ``models.stacked_model.StackedModel``
    tokenizer: Any  # a fast tokenizer of transformers
    held_out: HeldOut  # held-out text
    tokens_per_pass: int = 8192  # maximum number of tokens per forward pass
    seed: int = 0  # seed of the sampled continuations, the same for all conditions of a study

    def __call__(self, result: RoundResult) -> MetricValues:
        """Generate and score continuations by the models after the round."""
        from ..models.stacked_model import NucleusSampler, greedy  # imports transformers, which a recorder of other loops does without

        num_tokens, state = prompt_length(self.held_out), result.after
        complete = self.held_out.blocks.is_token[:, : 2 * num_tokens].all(1)
        pairs_by_prefix: dict[str, list[tuple[str, str]]] = {prefix: [] for prefix in METRIC_PREFIXES}
        metrics: MetricValues = {}
        for index, name in enumerate(self.held_out.domains):
            rows = np.flatnonzero(complete & (self.held_out.domain_ids == index))
            if not len(rows):
                continue
            tokens_by_model = np.bincount(
                state.cluster_ids.cpu().numpy(), self.held_out.client_domain_tokens[:, index], state.server.num_models
            )
            model_id = torch.tensor([int(tokens_by_model.argmax())])
            params = Tree({**state.server.params.take(model_id), **state.server.base_for(model_id)})
            samplers: tuple[TokenSampler, ...] = greedy, NucleusSampler(torch_stream(self.seed, "nucleus", name))
            for prefix, sampler in zip(METRIC_PREFIXES, samplers, strict=True):
                pairs = self.generate_pairs(params, self.held_out.blocks.tokens[rows, : 2 * num_tokens], num_tokens, sampler)
                metrics |= {(metric, name): value for metric, value in score_continuations(pairs, prefix).items()}
                pairs_by_prefix[prefix] += pairs
        for prefix, pairs in pairs_by_prefix.items():
            metrics |= {(metric, ""): value for metric, value in score_continuations(pairs, prefix).items()} if pairs else {}
        return metrics

    def generate_pairs(self, params: Tree, tokens: np.ndarray, num_tokens: int, choose: TokenSampler) -> list[tuple[str, str]]:
        """Continue the first half of each row.

        Args:
            params: One model, ``[1, ...]``.
            tokens: Prompts and references, ``[E, 2 num_tokens]``.
            num_tokens: Tokens of a prompt and of a continuation.
            choose: Greedy decoding or a sampler.

        Returns:
            E pairs (continuation, reference).
        """
        from ..models.stacked_model import generate_tokens

        device = params.device
        prompts = torch.from_numpy(tokens[:, :num_tokens]).to(device).split(max(1, self.tokens_per_pass // (2 * num_tokens)))  # type: ignore[no-untyped-call]
        generated = torch.cat([generate_tokens(self.model, params, part, num_tokens, choose) for part in prompts]).tolist()
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        continuations, references = (self.tokenizer.batch_decode(rows, **options) for rows in (generated, tokens[:, num_tokens:].tolist()))
        return list(zip(continuations, references, strict=True))


def prompt_length(held_out: HeldOut) -> int:
    """Return the number of tokens of a prompt, which is also that of its continuation."""
    return int(min(PROMPT_TOKENS, held_out.blocks.tokens.shape[1] // 2))


def score_continuations(pairs: Sequence[tuple[str, str]], prefix: str = METRIC_PREFIXES[0]) -> dict[str, float]:
    """Compute all scores of pairs (continuation, reference), as metrics with the prefix ``prefix``."""
    from rouge_score.rouge_scorer import RougeScorer  # loaded on use: the import takes a second, and few runs need it

    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=make_rouge_tokenizer())
    rouge = [scorer.score(reference, continuation) for continuation, reference in pairs]
    words = [continuation.split() for continuation, _ in pairs]
    scores = bleu_score(pairs)[0]
    for name in ROUGE_TYPES:
        values = np.array([result[name].fmeasure for result in rouge])
        scores |= {name: float(values.mean()), f"{name}.ci": bootstrap_half_width(values)}
    scores |= {"distinct2": distinct_ngrams(words, 2), "repetition": repetition_rate(words, 4)}
    return {f"{prefix}.{name}": value for name, value in scores.items()}


# A word for ROUGE: letters and digits of any script. In scripts without spaces (Thai, Lao, Burmese, Khmer, kana, Han) it is one character.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


def make_rouge_tokenizer() -> Any:
    """Return a tokenizer for rouge-score that reads the words of all scripts.

    The default of rouge-score 0.1.2 reads the letters a to z only, so that equal Russian texts have a score of 0. ASCII text is read by
    that default, with stemming.
    """
    from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

    default = DefaultTokenizer(use_stemmer=True)

    class WordTokenizer(Tokenizer):  # type: ignore[misc]
        def tokenize(self, text: str) -> list[str]:
            if text.isascii():
                return list(default.tokenize(text))
            return [token for word in WORD.findall(text.lower()) for token in (default.tokenize(word) if word.isascii() else [word])]

    return WordTokenizer()


def bleu_score(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, float], str]:
    """Compute corpus BLEU with its bootstrap interval (Koehn, EMNLP 2004).

    Args:
        pairs: Pairs (continuation, reference).

    Returns:
        The metrics ``bleu`` and ``bleu.ci`` (NaN with fewer than 15 pairs), and sacrebleu's signature.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric, (continuations, references) = BLEU(), zip(*pairs, strict=True)
    enough = len(pairs) >= MIN_PROMPTS
    score = metric.corpus_score(continuations, [references], n_bootstrap=NUM_RESAMPLES if enough else 1)
    return (
        {"bleu": score.score, "bleu.ci": float(score._ci) if enough else float("nan")},  # sacrebleu reports the interval only in format()
        f"BLEU {metric.get_signature()}",
    )


def bootstrap_half_width(values: np.ndarray) -> float:
    """Compute half of the 95 % bootstrap percentile interval of the mean of ``values [E]``; NaN with fewer than 15 values."""
    from scipy.stats import bootstrap

    if len(values) < MIN_PROMPTS:
        return float("nan")
    low, high = bootstrap(
        (values,), np.mean, n_resamples=NUM_RESAMPLES, method="percentile", random_state=numpy_stream(0, "prompts")
    ).confidence_interval
    return float(high - low) / 2


def bleu_signature() -> str:
    """Return sacrebleu's signature, which states how BLEU is computed."""
    return bleu_score([("a", "a")] * MIN_PROMPTS)[1]


def ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """Return all n-grams of ``length`` words."""
    return [tuple(words[first : first + length]) for first in range(len(words) - length + 1)]


def distinct_ngrams(texts: Sequence[Sequence[str]], length: int) -> float:
    """Compute the share of distinct n-grams among all n-grams of all texts.

    Li et al., NAACL 2016, arXiv:1510.03055.

    Returns:
        The share; NaN if there are no n-grams.
    """
    all_ngrams = [ngram for words in texts for ngram in ngrams(words, length)]
    return len(set(all_ngrams)) / len(all_ngrams) if all_ngrams else float("nan")


def repetition_rate(texts: Sequence[Sequence[str]], length: int) -> float:
    """Compute the share of n-grams that occurred before in the same text; NaN if there are no n-grams."""
    by_text = [ngrams(words, length) for words in texts]
    total = sum(map(len, by_text))
    return sum(len(grams) - len(set(grams)) for grams in by_text) / total if total else float("nan")


def text_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Score generated continuations of held-out text, in the last round only."""
    tokens = len(METRIC_PREFIXES) * len(context.held_out.blocks) * 2.0 * prompt_length(context.held_out)
    probe = Continuations(context.model, context.tokenizer, context.held_out, context.tokens_per_pass, context.split_seed)
    return [ScheduledProbe("text", probe, "last", tokens, bleu_signature())]
