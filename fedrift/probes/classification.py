"""Measure how often a language model gives a held-out document the right label, by the likelihood of a prompt with each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult
from ..data.corpus import Corpus
from ..data.tokenization import tokenize_corpus
from .base import DerivedMetric, MetricValues, ScheduledProbe
from .context import ProbeContext, mean_over_models, score_models, server_models
from .held_out import order_documents
from .losses import LossModel

CLASSIFICATION_GROUP = "classification"
METRICS = ("classification.accuracy", "classification.accuracy.normalized")


@dataclass(frozen=True, eq=False)
class LabelAccuracy:
    """The accuracy of choosing the label of a document by log-likelihood, per domain and as the mean over domains.

    A document x is followed by a prompt v(l) for each of the L labels, for example " Topic: sport". The chosen label is

        argmax_l log p(v(l) | x),

    where the log-likelihood is the sum over the tokens of v(l). ``classification.accuracy`` is the fraction of documents with the right
    choice (``acc`` of lm-evaluation-harness). ``classification.accuracy.normalized`` divides each log-likelihood by the bytes of v(l)
    (``acc_norm``), so that long labels have no disadvantage. A model that guesses has 1 / L on average over domains of equal size. With
    several models, the value is the mean over models, weighted by their clients.
    """

    model: LossModel
    tokens: Tensor  # [D L, T] each document with each label, label by label within a document
    mask: Tensor  # [D L, T] bool; True for the tokens of the prompt with the label
    labels: np.ndarray  # [D] the right label of each document
    label_bytes: Tensor  # [L] bytes of each prompt
    domains: tuple[str, ...]  # L
    tokens_per_pass: int = 8192  # maximum number of tokens per forward pass

    def __call__(self, result: RoundResult) -> MetricValues:
        """Score the server's models after the round."""
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Score the server's models."""
        scores = mean_over_models(score_models(server_models(state), self.score_domains), state)  # [L, 2]
        metrics: MetricValues = {}
        for column, metric in enumerate(METRICS):
            values = scores[:, column]
            metrics[metric] = values[[index in set(self.labels) for index in range(len(self.domains))]].mean()
            metrics |= {(metric, self.domains[index]): values[index] for index in sorted(set(self.labels.tolist()))}
        return metrics

    def score_domains(self, params: Tree) -> Tensor:
        """Compute both accuracies of one model ``[1, ...]`` on each domain, ``[L, 2]``; NaN for a domain without documents."""
        log_likelihood = self.log_likelihoods(params)
        right = torch.from_numpy(self.labels)
        scores = torch.full((len(self.domains), len(METRICS)), torch.nan, dtype=torch.float64)
        for column, values in enumerate((log_likelihood, log_likelihood / self.label_bytes)):
            correct = (values.argmax(1) == right).double()
            correct[values.isnan().any(1)] = torch.nan
            for index in set(self.labels.tolist()):
                scores[index, column] = correct[right == index].mean()
        return scores

    @torch.no_grad()
    def log_likelihoods(self, params: Tree) -> Tensor:
        """Compute log p(v(l) | x) of every document and label under one model ``[1, ...]``, ``[D, L]`` float64."""
        device = params.device
        parts = []
        for rows in torch.arange(len(self.tokens)).split(max(1, self.tokens_per_pass // self.tokens.shape[1])):
            total, _ = self.model.sequence_losses(params, self.tokens[rows][None].to(device), self.mask[rows][None].to(device))
            parts.append(-total[0].double().cpu())
        return torch.cat(parts).view(len(self.labels), len(self.domains))


def select_labeled_documents(corpus: Corpus, split: int, seed: int, num_documents: int) -> np.ndarray:
    """Select the first held-out documents of each domain, as corpus rows."""
    rows = [order_documents(corpus, split, seed, index, name)[:num_documents] for index, name in enumerate(corpus.domains)]
    return np.concatenate([np.empty(0, dtype=np.int64), *rows])


def build_label_accuracy(
    model: LossModel, tokenizer: Any, corpus: Corpus, rows: np.ndarray, label_prompt: str, max_length: int, tokens_per_pass: int = 8192
) -> LabelAccuracy:
    """Tokenize documents with each label and build the probe.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        corpus: The corpus, whose domains are the labels.
        rows: D corpus rows of documents with a label.
        label_prompt: The text that follows a document; it contains ``{label}``.
        max_length: Tokens per sequence. The beginning of a longer document is kept.
        tokens_per_pass: Maximum number of tokens per forward pass.

    Raises:
        UserError: There are fewer than two labels, or a prompt leaves no room for a document.
    """
    if len(corpus.domains) < 2 or not len(rows):
        raise UserError(
            f"evaluation.probes: the group 'classification' needs held-out documents with at least two labels, but dataset {corpus.name!r} "
            f"has {len(corpus.domains)} labels and {len(rows):,} such documents: set dataset.label_column, or remove the group"
        )
    prompts = [label_prompt.replace("{label}", label) for label in corpus.domains]
    prompt_ids: Sequence[list[int]] = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    longest = max(map(len, prompt_ids))
    if not all(prompt_ids) or longest >= max_length:
        raise UserError(
            f"evaluation.label_prompt {label_prompt!r} has {longest} tokens with the longest label, which leaves no room for a document: "
            f"increase training.max_seq_length (now {max_length})"
        )
    documents = tokenize_corpus(corpus.take(rows), tokenizer, cache_dir=None)
    tokens = torch.full((len(rows) * len(prompts), max_length), documents.pad_id, dtype=torch.long)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row in range(len(rows)):
        ids = documents.document_ids(row)
        ids = ids[:-1] if ids[-1] == documents.eos_id and len(ids) > 1 else ids  # the prompt continues the document
        text = torch.from_numpy(ids[: max_length - longest].astype(np.int64))
        for label, prompt in enumerate(prompt_ids):
            line, end = row * len(prompts) + label, len(text) + len(prompt)
            tokens[line, : len(text)], tokens[line, len(text) : end] = text, torch.tensor(prompt)
            mask[line, len(text) : end] = True
    label_bytes = torch.tensor([len(prompt.encode()) for prompt in prompts], dtype=torch.float64)
    return LabelAccuracy(model, tokens, mask, corpus.label[rows], label_bytes, corpus.domains, tokens_per_pass)


def classification_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure how often the label of a held-out document has the highest log-likelihood, with the expensive probes."""
    rows = select_labeled_documents(context.corpus, context.split, context.split_seed, context.labeled_documents)
    probe = build_label_accuracy(
        context.loss_model,
        context.tokenizer,
        context.corpus,
        rows,
        context.label_prompt,
        context.held_out.blocks.tokens.shape[1],
        context.tokens_per_pass,
    )
    return [ScheduledProbe("classification", probe, "expensive", float(probe.tokens.numel()))]
