"""Loss and perplexity on held-out text: global, by domain and by client, before and after aggregation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..tree import Tree
from ..values import Round, State
from .held_out import HeldOut
from .probe import Reading


class Judge(Protocol):
    """A stacked model as evaluation needs it."""

    def sums(self, params: Tree, tokens: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss and predicted tokens of every sequence, both ``[M, E]``."""
        ...


@dataclass(frozen=True, eq=False)
class Losses:
    """Token-weighted losses in nats per token on fixed blocks of every domain.

    ``loss`` of a domain: the mean over its held-out tokens. Of a client: the mean over the domains by the
    client's own training tokens, under the model that it shares. Of the federation: the mean over all
    clients by their tokens, which for a single model is the mixture of the pool. ``loss.macro``: the mean
    over the domains, each counting the same. ``perplexity`` is exp(loss), everywhere.

    Before and after aggregation, on the same few blocks of each client's own mixture: ``loss.before``
    (the model it has just trained) and ``loss.after`` (the model it will receive), both ``[C]``.
    Only models that have changed are evaluated again.
    """

    model: Judge
    held_out: HeldOut
    own: int = 4  # blocks of each client for before and after; 0: neither
    every: int = 1  # rounds
    last: int | None = None  # the run's last round: evaluated whatever ``every`` says
    prefix: str = ""
    chunk: int = 8192  # tokens in one forward pass
    seen: dict[int, tuple[Tree, Tensor]] = field(default_factory=dict, repr=False)

    def __call__(self, done: Round) -> Reading:
        now = done.after.round
        if now % self.every and now != self.last:
            return {}
        reading = self.of(done.after)
        if self.own:
            reading |= self.before_and_after(done)
        return reading

    def of(self, state: State) -> Reading:
        """Losses of the server's models."""
        per_domain = self.by_domain(self.by_block(state))  # [M, J]
        there = np.bincount(self.held_out.domain, minlength=len(self.held_out.names)) > 0
        mix = torch.from_numpy(self.held_out.mix * there)  # [N, J]; a domain without held-out text says nothing
        total = (mix * per_domain[state.group]).where(mix > 0, 0.0)
        client, domain = total.sum(1) / mix.sum(1), total.sum(0) / mix.sum(0)
        reading: Reading = {"loss": client, "perplexity": client.exp()}
        for name, value in [("", total.sum() / mix.sum()), *zip(self.held_out.names, domain, strict=True)]:
            if not name or mix[:, self.held_out.names.index(name)].any():
                reading["loss", name], reading["perplexity", name] = value, value.exp()
        reading["loss.macro"] = domain[mix.sum(0) > 0].mean()
        return named(reading, self.prefix)

    def before_and_after(self, done: Round) -> Reading:
        """The cohort's own blocks under their own models and under the one they get back, ``[C]``."""
        local, after = done.local, self.by_block(done.after)
        counts = torch.from_numpy(self.held_out.blocks.keep[:, 1:].sum(1))
        before, now = [], []
        for row, client in enumerate(done.cohort.tolist()):
            blocks = torch.from_numpy(self.held_out.own(client, self.own))
            if not len(blocks):
                before.append(torch.nan)
                now.append(torch.nan)
                continue
            sums = self.sums(local.rows(slice(row, row + 1)), blocks.numpy())
            total = counts[blocks].sum()
            before.append((sums[0].sum() / total).item())
            now.append((after[done.after.group[client], blocks].sum() / total).item())
        reading: Reading = {"loss.before": torch.tensor(before, dtype=torch.float64),
                            "loss.after": torch.tensor(now, dtype=torch.float64)}
        return named(reading, self.prefix)

    def by_domain(self, sums: Tensor) -> Tensor:
        """Mean loss of each model on each domain, ``[M, E] -> [M, J]``; NaN where a domain has no blocks."""
        domain = torch.from_numpy(self.held_out.domain)
        counts = torch.from_numpy(self.held_out.blocks.keep[:, 1:].sum(1)).double()
        width = len(self.held_out.names)
        total = sums.new_zeros(len(sums), width).index_add(1, domain, sums)
        return total / counts.new_zeros(width).index_add(0, domain, counts)

    def by_block(self, state: State) -> Tensor:
        """Summed loss of every model on every block, ``[M, E]`` float64; kept for models that have not changed."""
        rows = []
        for number in range(state.server.models):
            params = state.server.params.rows(slice(number, number + 1))
            kept = self.seen.get(number)
            if kept is None or not same(kept[0], params):
                kept = self.seen[number] = params, self.sums(params, np.arange(len(self.held_out.blocks)))
            rows.append(kept[1])
        return torch.cat(rows)

    @torch.no_grad()
    def sums(self, params: Tree, blocks: np.ndarray) -> Tensor:
        """Summed loss of one model on some blocks, ``[1, len(blocks)]`` float64 on the CPU."""
        device = next(iter(params.values())).device
        parts = []
        for rows in self.chunks(blocks):
            tokens = torch.from_numpy(self.held_out.blocks.tokens[rows])[None].to(device)
            keep = torch.from_numpy(self.held_out.blocks.keep[rows])[None].to(device)
            parts.append(self.model.sums(params, tokens, keep)[0].double().cpu())
        return torch.cat(parts, 1)

    def chunks(self, blocks: np.ndarray) -> Iterator[np.ndarray]:
        step = max(1, self.chunk // self.held_out.blocks.tokens.shape[1])
        for start in range(0, len(blocks), step):
            yield blocks[start:start + step]


def named(reading: Reading, prefix: str) -> Reading:
    """The reading with a prefix before every metric."""
    return {(prefix + key[0], key[1]) if isinstance(key, tuple) else prefix + key: value
            for key, value in reading.items()}


def same(one: Tree, two: Tree) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)
