"""What kind of words a model loses, and who is served worst: function words against content words, the worst client."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..values import Round, State
from .bench import Bench
from .loss import Losses
from .panel import After, Look, Past, number
from .probe import Reading
from .wording import CONTENT, FUNCTION, kinds

GROUP = "language"


@dataclass(frozen=True, eq=False)
class WordLosses:
    """``loss.function`` and ``loss.content``: mean loss of the tokens of function words and of content words, nats per token.

    Of a domain: over its held-out tokens of that kind. Of the federation: over the domains, by the pool's tokens, of the
    models that the clients share. Grammar leans on function words, topics on content words; forgetting syntax is a rise of
    the first that the second does not have (a contrast to read beside the IID twin's). No forward pass of its own.
    """

    losses: Losses
    kind: np.ndarray  # [E, T]

    def __call__(self, done: Round) -> Reading:
        return self.of(done.after)

    def of(self, state: State) -> Reading:
        held = self.losses.held_out
        every = self.losses.by_position(state).double()  # [M, E, T-1]
        pool = torch.from_numpy(held.mix)
        reading: Reading = {}
        for name, kind in (("loss.function", FUNCTION), ("loss.content", CONTENT)):
            mean = by_domain(every, torch.from_numpy((self.kind[:, 1:] == kind) & held.blocks.keep[:, 1:]), held.domain,
                             len(held.names))[state.group]  # [N, J]
            mix = pool.where(~mean.isnan() | every.isnan().any(), 0.0)
            total = (mix * mean).where(mix > 0, 0.0)
            reading[name, ""] = total.sum() / mix.sum()
            reading |= {(name, domain): total[:, column].sum() / mix[:, column].sum()
                        for column, domain in enumerate(held.names) if mix[:, column].any()}
        return reading


def by_domain(losses: Tensor, counts: Tensor, domain: np.ndarray, width: int) -> Tensor:
    """Mean of ``losses [M, E, T]`` over what counts ``[E, T]`` in each domain, ``[M, J]``; NaN where nothing does."""
    where = torch.from_numpy(domain)
    total = losses.new_zeros(len(losses), width).index_add(1, where, (losses * counts).sum(2))
    return total / losses.new_zeros(width).index_add(0, where, counts.sum(1).to(losses))


def worst(reading: Reading, past: Past) -> Reading:
    """``loss.worst``: the loss of the client that is served worst; ``loss.worst.domain``: of the domain."""
    clients = reading.get("loss")
    if not isinstance(clients, Tensor):
        return {}
    said: Reading = {}
    there = clients[~clients.isnan()]
    if len(there):
        said["loss.worst"] = there.max()
    domains = [number(reading, "loss", key[1]) for key in reading if isinstance(key, tuple) and key[0] == "loss" and key[1]]
    finite = [value for value in domains if not math.isnan(value)]
    return said | ({"loss.worst.domain": max(finite)} if finite else {})


def forgetting(reading: Reading, past: Past) -> Reading:
    """``forgetting`` of each domain: its loss now above the lowest that it had in earlier rounds, never below 0 by name.

    loss_j(t) - min_{t' <= t} loss_j(t'): 0 while a domain is at its best, and how much of what was learnt is lost
    otherwise (backward transfer with its sign turned). Under partial participation a domain whose clients sit out shows here.
    """
    said: Reading = {}
    for key, value in reading.items():
        if isinstance(key, tuple) and key[0] == "loss" and key[1]:
            now = float(value)
            said["forgetting", key[1]] = now - min(now, past.lowest.get(("loss", key[1]), math.inf))
    values = [float(value) for value in said.values()]
    return said | ({"forgetting": sum(values) / len(values)} if values else {})


def looks(bench: Bench) -> list[Look | After]:
    losses = bench.losses
    return [Look("words", WordLosses(losses, kinds(losses.held_out.blocks, bench.tokenizer)), losses.every),
            After("worst", worst), After("forgetting", forgetting)]
