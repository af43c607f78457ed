"""Loss and perplexity on held-out text: global, by domain and by client, before and after aggregation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..tree import Tree
from ..values import Round, State
from .held_out import HeldOut, predicted_tokens
from .probe import Reading


class Judge(Protocol):
    """A stacked model as evaluation needs it."""

    def positions(self, params: Tree, tokens: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every token after the first, and which of them count, both ``[C, B, T-1]``."""
        ...

    def sums(self, params: Tree, tokens: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss and predicted tokens of every sequence, both ``[C, B]``."""
        ...


@dataclass(frozen=True, eq=False)
class Losses:
    """Token-weighted losses in nats per token on fixed blocks of every domain.

    ``loss`` of a domain: the mean over its held-out tokens. Of a client: the mean over the domains by the
    client's own training tokens, under the model that it shares. Of the federation: the mean over all
    clients by their tokens, which for a single model is the mixture of the pool. ``loss.macro``: the mean
    over the domains, each counting the same. ``loss.uniform``, before round 1: ln V, the loss of a model that gives
    each of the V tokens of its ``vocabulary`` the same probability. ``perplexity`` is exp(loss), everywhere. With the
    domains' bytes per token, ``bits``: loss in bits per byte of text, which tokenisers of another kind can be compared by.

    Where clients rewrite their texts (``written``), all numbers of domains and of the federation are on the text as found,
    the same in every run on the corpus; those of a client are on text as it writes it. ``loss.plain`` is then a client's
    loss on the text as found, and ``loss.own`` the mean of the clients' own losses by their tokens.

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
    bytes: np.ndarray | None = None  # [J] bytes of text per token of a domain
    written: HeldOut | None = None  # held_out and, behind it, its text as clients write it; None where nobody rewrites
    chunk: int = 8192  # tokens in one forward pass
    vocabulary: int = 0  # tokens that the head gives a probability to; 0: unknown
    seen: dict[int, tuple[Tree, Tensor]] = field(default_factory=dict, repr=False)

    def __call__(self, done: Round) -> Reading:
        now = done.after.round
        if now % self.every and now != self.last:
            return {}
        reading = self.of(done.after)
        if self.own:
            reading |= self.before_and_after(done)
        return reading

    def forward(self, cohort: int) -> float:
        """Tokens that one look sends forward, about: every block once, and the cohort's own blocks."""
        blocks, length = self.whole.blocks.tokens.shape
        return float((blocks + cohort * self.own) * length)

    @property
    def whole(self) -> HeldOut:
        """All text that is evaluated: that of the domains first, then as clients write it."""
        return self.written or self.held_out

    def of(self, state: State) -> Reading:
        """Losses of the server's models."""
        sums = self.by_row(state)
        total, mix = shares(self.held_out, sums[:, :len(self.held_out.blocks)], state.group)  # [N, J]
        client, domain = total.sum(1) / mix.sum(1), total.sum(0) / mix.sum(0)
        reading: Reading = {"loss": client, "perplexity": client.exp()}
        if self.written:
            own, tokens = (amount.sum(1) for amount in shares(self.written, sums, state.group))  # [N]
            reading = {"loss": own / tokens, "perplexity": (own / tokens).exp(), "loss.plain": client,
                       ("loss.own", ""): own.sum() / tokens.sum()}
        for name, value in [("", total.sum() / mix.sum()), *zip(self.held_out.names, domain, strict=True)]:
            if not name or mix[:, self.held_out.names.index(name)].any():
                reading["loss", name], reading["perplexity", name] = value, value.exp()
        reading["loss.macro"] = domain[mix.sum(0) > 0].mean()
        if self.vocabulary and state.round == 0:
            reading["loss.uniform"] = math.log(self.vocabulary)
        if self.bytes is not None:
            size = torch.from_numpy(self.bytes) * math.log(2)
            reading["bits", ""] = total.sum() / (mix * size).sum()
            reading |= {("bits", name): reading["loss", name] / float(size[number])
                        for number, name in enumerate(self.held_out.names) if ("loss", name) in reading}
        return named(reading, self.prefix)

    def at_the_end(self, state: State) -> Reading:
        """Losses of the server's models and, where clients keep models of their own, of each of those, ``[N]``."""
        everybody = torch.arange(len(state.group))
        return self.of(state) | (named({"loss.worn": self.worn(state, everybody)}, self.prefix) if self.wear else {})

    def before_and_after(self, done: Round) -> Reading:
        """The cohort's own blocks under their own models and under the one they get back, ``[C]``."""
        mine = self.owned(done.cohort)
        after = self.by_row(done.after)[done.after.group[done.cohort]]  # [C, E']
        under = done.before.server.under(done.before.group[done.cohort])
        before = self.means(Tree({**done.local, **under}), mine)
        now = torch.stack([row[torch.from_numpy(blocks)].sum() for row, blocks in zip(after, mine, strict=True)])
        reading: Reading = {"loss.before": before, "loss.after": now / self.predicted(mine)}
        if self.wear:
            reading["loss.worn"] = self.worn(done.after, done.cohort)
        return named(reading, self.prefix)

    def worn(self, state: State, clients: Tensor) -> Tensor:
        """Loss of clients on their own blocks under the models that they use, ``[len(clients)]``."""
        assert self.wear is not None
        losses = []
        for some in clients.split(self.together(max(self.own, 1))):  # type: ignore[no-untyped-call]
            group = state.group[some]
            shared = state.server.params.rows(group)
            memory = state.memory.rows(some).to(next(iter(shared.values())).device)
            losses.append(self.means(Tree({**self.wear(shared, memory), **state.server.under(group)}), self.owned(some)))
        return torch.cat(losses)

    def owned(self, clients: Tensor) -> list[np.ndarray]:
        """The blocks of each client's own mixture."""
        return [self.whole.own(client, max(self.own, 1)) for client in clients.tolist()]

    def predicted(self, mine: list[np.ndarray]) -> Tensor:
        """Tokens that some blocks of each client predict, ``[C]``; NaN where there are none."""
        counts = [float(self.whole.blocks.keep[blocks, 1:].sum()) or math.nan for blocks in mine]
        return torch.tensor(counts, dtype=torch.float64)

    def means(self, params: Tree, mine: list[np.ndarray]) -> Tensor:
        """Mean loss of each of C models ``[C, ...]`` on blocks of its own, ``[C]``; several models in one pass."""
        width = max(map(len, mine), default=0)
        rows = np.stack([np.pad(blocks, (0, width - len(blocks)), constant_values=-1) for blocks in mine])  # [C, K]
        step = self.together(width)
        parts = [self.positions(part(params, slice(first, first + step)), rows[first:first + step])
                 for first in range(0, len(rows), step)]
        return torch.cat(parts).double().sum((1, 2)) / self.predicted(mine)

    def together(self, blocks: int) -> int:
        """How many clients go into one pass with so many blocks each."""
        return max(1, self.chunk // max(1, blocks * self.whole.blocks.tokens.shape[1]))

    def by_block(self, state: State) -> Tensor:
        """Summed loss of every model on every block of text as found, ``[M, E]`` float64."""
        return self.by_position(state).sum(2).double()

    def by_position(self, state: State) -> Tensor:
        """Loss of every model on every token after the first of a block of text as found, ``[M, E, T-1]``."""
        return self.by_token(state)[:, :len(self.held_out.blocks)]

    def by_row(self, state: State) -> Tensor:
        """Summed loss of every model on every block, ``[M, E']`` float64: the E as found, then those as clients write."""
        return self.by_token(state).sum(2).double()

    def by_token(self, state: State) -> Tensor:
        """Loss of every model on every token after the first of a block, ``[M, E', T-1]``; kept for models that have not
        changed."""
        every = np.arange(len(self.whole.blocks))[None]
        rows = []
        for number in range(state.server.models):
            one = torch.tensor([number])
            params = Tree({**state.server.params.rows(one), **state.server.under(one)})
            kept = self.seen.get(number)
            if kept is None or not same(kept[0], params):
                kept = self.seen[number] = params, self.positions(params, every)
            rows.append(kept[1])
        return torch.cat(rows)

    @torch.no_grad()
    def positions(self, params: Tree, rows: np.ndarray) -> Tensor:
        """Loss of every token after the first, of models ``[C, ...]`` on blocks ``rows [C, K]``, ``[C, K, T-1]`` on the CPU.

        Row -1 names no block; its losses are zero.
        """
        blocks, device = self.whole.blocks, next(iter(params.values())).device
        step = max(1, self.chunk // (blocks.tokens.shape[1] * len(rows)))
        parts = []
        for first in range(0, rows.shape[1], step):
            some = rows[:, first:first + step]
            keep = blocks.keep[some] & (some >= 0)[:, :, None]
            losses, _ = self.model.positions(params, torch.from_numpy(blocks.tokens[some]).to(device),
                                             torch.from_numpy(keep).to(device))
            parts.append(losses.cpu())
        return torch.cat(parts, 1) if parts else torch.zeros(len(rows), 0, blocks.tokens.shape[1] - 1)


def shares(held: HeldOut, sums: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """What each domain adds to each client's loss, and the tokens that it counts with, both ``[N, J]``, from the summed
    losses of each model's blocks ``[M, E]``; a domain without held-out text counts for nothing."""
    per_domain = by_domain(held, sums)
    mix = torch.from_numpy(held.mix * (predicted_tokens(held) > 0))
    return (mix * per_domain[group]).where(mix > 0, 0.0), mix


def by_domain(held: HeldOut, sums: Tensor) -> Tensor:
    """Mean loss of each model on each domain, ``[M, E] -> [M, J]``; NaN where a domain has no blocks."""
    domain = torch.from_numpy(held.domain)
    counts = torch.from_numpy(held.blocks.keep[:, 1:].sum(1)).double()
    width = len(held.names)
    total = sums.new_zeros(len(sums), width).index_add(1, domain, sums)
    return total / counts.new_zeros(width).index_add(0, domain, counts)


def part(params: Tree, rows: slice) -> Tree:
    """Some clients' rows; what leads with 1 is everybody's."""
    return params.map(lambda leaf: leaf if len(leaf) == 1 else leaf[rows])


def named(reading: Reading, prefix: str) -> Reading:
    """The reading with a prefix before every metric."""
    return {(prefix + key[0], key[1]) if isinstance(key, tuple) else prefix + key: value
            for key, value in reading.items()}


def same(one: Tree, two: Tree) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)
