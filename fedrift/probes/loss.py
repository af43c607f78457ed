"""Loss and perplexity on held-out text: global, by domain and by client, before and after aggregation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    (the model it has just trained) and ``loss.after`` (the model it will receive), both ``[C]``; where clients
    keep a model of their own (``wear``), ``loss.worn``. Only models that have changed are evaluated again.
    """

    model: Judge
    held_out: HeldOut
    own: int = 4  # blocks of each client for before and after; 0: neither
    every: int = 1  # rounds
    last: int | None = None  # the run's last round: evaluated whatever ``every`` says
    wear: Callable[[Tree, Tree], Tree] | None = None  # (shared params, memory) -> the model a client uses
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

    def at_the_end(self, state: State) -> Reading:
        """Losses of the server's models and, where clients keep models of their own, of each of those, ``[N]``."""
        everybody = torch.arange(len(state.group))
        return self.of(state) | (named({"loss.worn": self.worn(state, everybody)}, self.prefix) if self.wear else {})

    def before_and_after(self, done: Round) -> Reading:
        """The cohort's own blocks under their own models and under the one they get back, ``[C]``."""
        groups, after = done.before.group[done.cohort], self.by_block(done.after)
        before, now = [], []
        for row, (client, blocks, tokens) in enumerate(self.owners(done.cohort)):
            local = done.local.rows(slice(row, row + 1))
            under = done.before.server.under(groups[row:row + 1])
            before.append(self.sums(Tree({**local, **under}), blocks).sum().item() / tokens)
            now.append(after[done.after.group[client], torch.from_numpy(blocks)].sum().item() / tokens)
        reading: Reading = {"loss.before": torch.tensor(before, dtype=torch.float64),
                            "loss.after": torch.tensor(now, dtype=torch.float64)}
        if self.wear:
            reading["loss.worn"] = self.worn(done.after, done.cohort)
        return named(reading, self.prefix)

    def worn(self, state: State, clients: Tensor) -> Tensor:
        """Loss of clients on their own blocks under the models that they use, ``[len(clients)]``."""
        assert self.wear is not None
        losses = []
        for client, blocks, tokens in self.owners(clients):
            one = torch.tensor([client])
            group = state.group[one]
            shared = state.server.params.rows(group)
            memory = state.memory.rows(one).to(next(iter(shared.values())).device)
            model = Tree({**self.wear(shared, memory), **state.server.under(group)})
            losses.append(self.sums(model, blocks).sum().item() / tokens)
        return torch.tensor(losses, dtype=torch.float64)

    def owners(self, clients: Tensor) -> Iterator[tuple[int, np.ndarray, float]]:
        """Each client, its own blocks, and the tokens that they predict (NaN if it has none)."""
        for client in clients.tolist():
            blocks = self.held_out.own(client, max(self.own, 1))
            yield client, blocks, float(self.held_out.blocks.keep[blocks, 1:].sum()) or float("nan")

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
            one = torch.tensor([number])
            params = Tree({**state.server.params.rows(one), **state.server.under(one)})
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
        return torch.cat(parts, 1) if parts else torch.zeros(1, 0, dtype=torch.float64)

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
