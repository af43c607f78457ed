"""Measure forgetting of what the pretrained model knew and of what was learned in earlier rounds.

Metrics: the loss on general text that is not part of any client's training data, losses by word class, the worst losses, and the
increase of each domain's loss above its minimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult
from ..data.tokenization import Blocks
from .base import DerivedMetric, MetricHistory, MetricValues, ScheduledProbe, federation_value
from .context import ProbeContext, mean_over_models, score_models, server_models
from .held_out import CONTENT_WORD, FUNCTION_WORD, classify_tokens
from .losses import HeldOutLosses, LossModel

GENERAL_GROUP = "general"


@dataclass(frozen=True, eq=False)
class GeneralTextLoss:
    """Loss of the server's model on general text: ``general.loss`` in nats per token and ``general.bits`` in bits per byte.

    With several models, both are means over all clients. Forgetting is their increase since round 0. One evaluation processes the
    text once for each of M models, including the output layer.
    """

    model: LossModel
    blocks: Blocks  # [E, T]; the first token of a text block only provides context
    num_bytes: int  # bytes of text of the predicted tokens
    tokens_per_pass: int = 8192  # maximum number of tokens per forward pass

    def __call__(self, result: RoundResult) -> MetricValues:
        """Compute the losses of the server's models after the round."""
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Compute the losses of the server's models."""
        losses = score_models(server_models(state), lambda model: torch.tensor(self.total_loss(model), dtype=torch.float64))
        nats = mean_over_models(losses, state)
        return {"general.loss": nats / int(self.blocks.mask[:, 1:].sum()), "general.bits": nats / (log(2) * self.num_bytes)}

    @torch.no_grad()
    def total_loss(self, params: Tree) -> float:
        """Compute the summed loss of one model ``[1, ...]`` on the text, in nats."""
        device = params.device
        rows = max(1, self.tokens_per_pass // self.blocks.tokens.shape[1])
        parts = zip(torch.from_numpy(self.blocks.tokens).split(rows), torch.from_numpy(self.blocks.mask).split(rows), strict=True)
        return sum(
            self.model.sequence_losses(params, tokens[None].to(device), mask[None].to(device))[0].double().sum().item()
            for tokens, mask in parts
        )


def count_predicted_bytes(tokenizer: Any, blocks: Blocks) -> int:
    """Count the bytes of UTF-8 text of the predicted tokens of all blocks. End-of-text tokens have no bytes."""
    lines = [tokens[1:][mask[1:]] for tokens, mask in zip(blocks.tokens, blocks.mask, strict=True)]
    return sum(
        len(text.encode())
        for text in tokenizer.batch_decode([line.tolist() for line in lines], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def general_text_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure the loss on text that no client trains on, with the expensive probes; without such text nothing is measured."""
    if context.general_blocks is None:
        return []
    probe = GeneralTextLoss(
        context.loss_model,
        context.general_blocks,
        count_predicted_bytes(context.tokenizer, context.general_blocks),
        context.tokens_per_pass,
    )
    return [ScheduledProbe("general", probe, "expensive", float(context.general_blocks.mask.sum()))]


# Losses by word class, worst losses, and forgetting per domain.

LANGUAGE_GROUP = "language"


@dataclass(frozen=True, eq=False)
class WordKindLosses:
    """Mean loss of function words and of content words, ``loss.function`` and ``loss.content``, in nats per token.

    For a domain, the mean is over its held-out tokens of the class. For the federation, it is over domains, weighted by the clients'
    training tokens, under the models that serve the clients. Function words mainly depend on grammar and content words on the topic.
    So forgetting of syntax appears as an increase of the first without an increase of the second, compared with the IID baseline.
    The metrics need no further forward pass.
    """

    losses: HeldOutLosses
    word_kinds: np.ndarray  # [E, T] FUNCTION_WORD, CONTENT_WORD or NOT_A_WORD

    def __call__(self, result: RoundResult) -> MetricValues:
        """Compute the losses of the server's models after the round."""
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Compute the losses of the server's models."""
        held_out = self.losses.held_out
        losses = self.losses.position_losses(state).double()  # [M, E, T-1]
        train_tokens = torch.from_numpy(held_out.client_domain_tokens)
        metrics: MetricValues = {}
        for name, kind in (("loss.function", FUNCTION_WORD), ("loss.content", CONTENT_WORD)):
            mean = mean_by_domain(
                losses,
                torch.from_numpy((self.word_kinds[:, 1:] == kind) & held_out.blocks.mask[:, 1:]),
                held_out.domain_ids,
                len(held_out.domains),
            )[state.cluster_ids]  # [N, J]
            weights = train_tokens.where(~mean.isnan() | losses.isnan().any(), 0.0)
            total = (weights * mean).where(weights > 0, 0.0)
            metrics[name, ""] = total.sum() / weights.sum()
            metrics |= {
                (name, domain): total[:, column].sum() / weights[:, column].sum()
                for column, domain in enumerate(held_out.domains)
                if weights[:, column].any()
            }
        return metrics


def mean_by_domain(losses: Tensor, mask: Tensor, domain_ids: np.ndarray, num_domains: int) -> Tensor:
    """Compute the mean loss of selected tokens in each domain.

    Args:
        losses: ``[M, E, T]``.
        mask: Selected tokens, ``[E, T]``.
        domain_ids: Domain of each block, ``[E]``.
        num_domains: Number of domains, J.

    Returns:
        Means, ``[M, J]``; NaN for a domain without selected tokens.
    """
    index = torch.from_numpy(domain_ids)
    total = losses.new_zeros(len(losses), num_domains).index_add(1, index, (losses * mask).sum(2))
    return total / losses.new_zeros(num_domains).index_add(0, index, mask.sum(1).to(losses))


def worst_losses(metrics: MetricValues, history: MetricHistory) -> MetricValues:
    """Compute ``loss.worst``, the largest loss of a client, and ``loss.worst.domain``, the largest loss of a domain."""
    clients = metrics.get("loss")
    if not isinstance(clients, Tensor):
        return {}
    worst: MetricValues = {}
    measured = clients[~clients.isnan()]
    if len(measured):
        worst["loss.worst"] = measured.max()
    domains = [federation_value(metrics, "loss", key[1]) for key in metrics if isinstance(key, tuple) and key[0] == "loss" and key[1]]
    finite = [value for value in domains if not math.isnan(value)]
    return worst | ({"loss.worst.domain": max(finite)} if finite else {})


def domain_forgetting(metrics: MetricValues, history: MetricHistory) -> MetricValues:
    """Compute ``forgetting`` of each domain, the increase of its loss above its minimum so far.

    The value is loss_j(t) - min_{t' <= t} loss_j(t'). It is 0 while the domain's loss is at its minimum, and otherwise the amount of
    learning that was lost (backward transfer with the sign reversed). Under partial participation, it increases for domains whose
    clients do not participate. The value for the federation is the mean over domains.
    """
    forgetting: MetricValues = {}
    for key, value in metrics.items():
        if isinstance(key, tuple) and key[0] == "loss" and key[1]:
            loss = float(value)
            forgetting["forgetting", key[1]] = loss - min(loss, history.lowest.get(("loss", key[1]), math.inf))
    values = [float(value) for value in forgetting.values()]
    return forgetting | ({"forgetting": sum(values) / len(values)} if values else {})


def language_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure losses by word class, the worst losses and forgetting per domain."""
    losses = context.losses
    return [
        ScheduledProbe("word_classes", WordKindLosses(losses, classify_tokens(losses.held_out.blocks, context.tokenizer)), losses.interval),
        DerivedMetric("worst", worst_losses),
        DerivedMetric("forgetting", domain_forgetting),
    ]
