"""Loss on general text that is in no client's pool: what of the pretrained model is forgotten."""

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
    """``general.loss``, nats per token, and ``general.bits``, bits per byte, of the server's model on general text; of several
    models, the mean over the fleet. Forgetting is their rise since round 0.

    A look reads M times the tokens of the text, with the head.
    """

    model: LossModel
    blocks: Blocks  # [E, T]; the first token of a block is only context
    num_bytes: int  # that the predicted tokens spell
    tokens_per_pass: int = 8192  # tokens in one forward pass

    def __call__(self, result: RoundResult) -> MetricValues:
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Of the server's models."""
        each = score_models(server_models(state), lambda one: torch.tensor(self.total_loss(one), dtype=torch.float64))
        nats = mean_over_models(each, state)
        return {"general.loss": nats / int(self.blocks.mask[:, 1:].sum()), "general.bits": nats / (log(2) * self.num_bytes)}

    @torch.no_grad()
    def total_loss(self, params: Tree) -> float:
        """Summed loss of one model ``[1, ...]`` on the text."""
        where = next(iter(params.values())).device
        rows = max(1, self.tokens_per_pass // self.blocks.tokens.shape[1])
        parts = zip(torch.from_numpy(self.blocks.tokens).split(rows), torch.from_numpy(self.blocks.mask).split(rows), strict=True)
        return sum(
            self.model.sequence_losses(params, tokens[None].to(where), keep[None].to(where))[0].double().sum().item()
            for tokens, keep in parts
        )


def count_predicted_bytes(tokenizer: Any, blocks: Blocks) -> int:
    """Bytes of UTF-8 that the predicted tokens of all blocks spell; end tokens spell none."""
    lines = [tokens[1:][keep[1:]] for tokens, keep in zip(blocks.tokens, blocks.mask, strict=True)]
    return sum(
        len(said.encode())
        for said in tokenizer.batch_decode([line.tolist() for line in lines], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def general_text_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """The general text, whenever expensive probes run; nothing where there is no such text."""
    if context.general_blocks is None:
        return []
    probe = GeneralTextLoss(
        context.loss_model,
        context.general_blocks,
        count_predicted_bytes(context.tokenizer, context.general_blocks),
        context.tokens_per_pass,
    )
    return [ScheduledProbe("general", probe, "expensive", float(context.general_blocks.mask.sum()))]


# What kind of words a model loses, and who is served worst: function words against content words, the worst client.

LANGUAGE_GROUP = "language"


@dataclass(frozen=True, eq=False)
class WordKindLosses:
    """``loss.function`` and ``loss.content``: mean loss of the tokens of function words and of content words, nats per token.

    Of a domain: over its held-out tokens of that kind. Of the federation: over the domains, by the pool's tokens, of the
    models that the clients share. Grammar leans on function words, topics on content words; forgetting syntax is a rise of
    the first that the second does not have (a contrast to read beside the IID baseline's). No forward pass of its own.
    """

    losses: HeldOutLosses
    word_kinds: np.ndarray  # [E, T]

    def __call__(self, result: RoundResult) -> MetricValues:
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        held = self.losses.held_out
        every = self.losses.position_losses(state).double()  # [M, E, T-1]
        pool = torch.from_numpy(held.client_domain_tokens)
        reading: MetricValues = {}
        for name, kind in (("loss.function", FUNCTION_WORD), ("loss.content", CONTENT_WORD)):
            mean = mean_by_domain(
                every, torch.from_numpy((self.word_kinds[:, 1:] == kind) & held.blocks.mask[:, 1:]), held.domain_ids, len(held.domains)
            )[state.cluster_ids]  # [N, J]
            mix = pool.where(~mean.isnan() | every.isnan().any(), 0.0)
            total = (mix * mean).where(mix > 0, 0.0)
            reading[name, ""] = total.sum() / mix.sum()
            reading |= {
                (name, domain): total[:, column].sum() / mix[:, column].sum()
                for column, domain in enumerate(held.domains)
                if mix[:, column].any()
            }
        return reading


def mean_by_domain(losses: Tensor, mask: Tensor, domain_ids: np.ndarray, num_domains: int) -> Tensor:
    """Mean of ``losses [M, E, T]`` over what counts ``[E, T]`` in each domain, ``[M, J]``; NaN where nothing does."""
    where = torch.from_numpy(domain_ids)
    total = losses.new_zeros(len(losses), num_domains).index_add(1, where, (losses * mask).sum(2))
    return total / losses.new_zeros(num_domains).index_add(0, where, mask.sum(1).to(losses))


def worst_losses(metrics: MetricValues, history: MetricHistory) -> MetricValues:
    """``loss.worst``: the loss of the client that is served worst; ``loss.worst.domain``: of the domain."""
    clients = metrics.get("loss")
    if not isinstance(clients, Tensor):
        return {}
    said: MetricValues = {}
    there = clients[~clients.isnan()]
    if len(there):
        said["loss.worst"] = there.max()
    domains = [federation_value(metrics, "loss", key[1]) for key in metrics if isinstance(key, tuple) and key[0] == "loss" and key[1]]
    finite = [value for value in domains if not math.isnan(value)]
    return said | ({"loss.worst.domain": max(finite)} if finite else {})


def domain_forgetting(metrics: MetricValues, history: MetricHistory) -> MetricValues:
    """``forgetting`` of each domain: its loss now above the lowest that it had in earlier rounds, never below 0 by name.

    loss_j(t) - min_{t' <= t} loss_j(t'): 0 while a domain is at its best, and how much of what was learnt is lost
    otherwise (backward transfer with its sign turned). Under partial participation a domain whose clients sit out shows here.
    """
    said: MetricValues = {}
    for key, value in metrics.items():
        if isinstance(key, tuple) and key[0] == "loss" and key[1]:
            now = float(value)
            said["forgetting", key[1]] = now - min(now, history.lowest.get(("loss", key[1]), math.inf))
    values = [float(value) for value in said.values()]
    return said | ({"forgetting": sum(values) / len(values)} if values else {})


def language_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    losses = context.losses
    return [
        ScheduledProbe("words", WordKindLosses(losses, classify_tokens(losses.held_out.blocks, context.tokenizer)), losses.interval),
        DerivedMetric("worst", worst_losses),
        DerivedMetric("forgetting", domain_forgetting),
    ]
