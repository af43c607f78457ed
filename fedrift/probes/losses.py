"""Loss and perplexity on held-out text: global, by domain and by client, before and after aggregation."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult
from .base import MetricValues
from .held_out import HeldOut, count_predicted_tokens


class LossModel(Protocol):
    """A stacked model as evaluation needs it."""

    def position_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every token after the first, and which of them count, both ``[C, B, T-1]``."""
        ...

    def sequence_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss and predicted tokens of every sequence, both ``[C, B]``."""
        ...


@dataclass(frozen=True, eq=False)
class HeldOutLosses:
    """Token-weighted losses in nats per token on fixed blocks of every domain.

    ``loss`` of a domain: the mean over its held-out tokens. Of a client: the mean over the domains by the
    client's own training tokens, under the model that it shares. Of the federation: the mean over all
    clients by their tokens, which for a single model is the mixture of the pool. ``loss.macro``: the mean
    over the domains, each counting the same. ``loss.uniform``, before round 1: ln V, the loss of a model that gives
    each of the V tokens of its vocabulary (``vocab_size``) the same probability. ``perplexity`` is exp(loss), everywhere. With
    the domains' bytes per token, ``bits``: loss in bits per byte of text, which tokenisers of another kind can be compared by.

    Where clients rewrite their texts (``rewritten``), all numbers of domains and of the federation are on the text as found,
    the same in every run on the corpus; those of a client are on text as it writes it. ``loss.plain`` is then a client's
    loss on the text as found, and ``loss.own`` the mean of the clients' own losses by their tokens.

    Before and after aggregation, on the same few blocks of each client's own mixture: ``loss.before``
    (the model it has just trained) and ``loss.after`` (the model it will receive), both ``[C]``; where clients
    keep a model of their own (``personalized_params``), ``loss.worn``. Only models that have changed are evaluated again.
    """

    model: LossModel
    held_out: HeldOut
    blocks_per_client: int = 4  # blocks of each client for before and after; 0: neither
    interval: int = 1  # rounds
    last_round: int | None = None  # the run's last round: evaluated whatever ``interval`` says
    personalized_params: Callable[[Tree, Tree], Tree] | None = None  # (shared params, memory) -> the model a client uses
    prefix: str = ""
    bytes_per_token: np.ndarray | None = None  # [J] bytes of text per token of a domain
    rewritten: HeldOut | None = None  # held_out and, behind it, its text as clients write it; None where nobody rewrites
    tokens_per_pass: int = 8192  # tokens in one forward pass
    vocab_size: int = 0  # tokens that the head gives a probability to; 0: unknown
    cache: dict[int, tuple[Tree, Tensor]] = field(default_factory=dict, repr=False)

    def __call__(self, result: RoundResult) -> MetricValues:
        now = result.after.round
        if now % self.interval and now != self.last_round:
            return {}
        reading = self.evaluate_state(result.after)
        if self.blocks_per_client:
            reading |= self.evaluate_before_and_after(result)
        return reading

    def forward_tokens(self, cohort_size: int) -> float:
        """Tokens that one look sends forward, about: every block once, and the cohort's own blocks."""
        blocks, length = self.all_text.blocks.tokens.shape
        return float((blocks + cohort_size * self.blocks_per_client) * length)

    @property
    def all_text(self) -> HeldOut:
        """All text that is evaluated: that of the domains first, then as clients write it."""
        return self.rewritten or self.held_out

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Losses of the server's models."""
        sums = self.all_block_losses(state)
        total, mix = client_domain_losses(self.held_out, sums[:, : len(self.held_out.blocks)], state.cluster_ids)  # [N, J]
        client, domain = total.sum(1) / mix.sum(1), total.sum(0) / mix.sum(0)
        reading: MetricValues = {"loss": client, "perplexity": client.exp()}
        if self.rewritten:
            own, tokens = (amount.sum(1) for amount in client_domain_losses(self.rewritten, sums, state.cluster_ids))  # [N]
            reading = {
                "loss": own / tokens,
                "perplexity": (own / tokens).exp(),
                "loss.plain": client,
                ("loss.own", ""): own.sum() / tokens.sum(),
            }
        for name, value in [("", total.sum() / mix.sum()), *zip(self.held_out.domains, domain, strict=True)]:
            if not name or mix[:, self.held_out.domains.index(name)].any():
                reading["loss", name], reading["perplexity", name] = value, value.exp()
        reading["loss.macro"] = domain[mix.sum(0) > 0].mean()
        if self.vocab_size and state.round == 0:
            reading["loss.uniform"] = math.log(self.vocab_size)
        if self.bytes_per_token is not None:
            size = torch.from_numpy(self.bytes_per_token) * math.log(2)
            reading["bits", ""] = total.sum() / (mix * size).sum()
            reading |= {
                ("bits", name): reading["loss", name] / float(size[number])
                for number, name in enumerate(self.held_out.domains)
                if ("loss", name) in reading
            }
        return prefix_metrics(reading, self.prefix)

    def evaluate_final(self, state: FederatedState) -> MetricValues:
        """Losses of the server's models and, where clients keep models of their own, of each of those, ``[N]``."""
        everybody = torch.arange(len(state.cluster_ids))
        return self.evaluate_state(state) | (
            prefix_metrics({"loss.worn": self.personalized_losses(state, everybody)}, self.prefix) if self.personalized_params else {}
        )

    def evaluate_before_and_after(self, result: RoundResult) -> MetricValues:
        """The cohort's own blocks under their own models and under the one they get back, ``[C]``."""
        mine = self.client_blocks(result.cohort)
        after = self.all_block_losses(result.after)[result.after.cluster_ids[result.cohort]]  # [C, E']
        under = result.before.server.base_for(result.before.cluster_ids[result.cohort])
        before = self.mean_losses(Tree({**result.client_params, **under}), mine)
        now = torch.stack([row[torch.from_numpy(blocks)].sum() for row, blocks in zip(after, mine, strict=True)])
        reading: MetricValues = {"loss.before": before, "loss.after": now / self.count_predicted(mine)}
        if self.personalized_params:
            reading["loss.worn"] = self.personalized_losses(result.after, result.cohort)
        return prefix_metrics(reading, self.prefix)

    def personalized_losses(self, state: FederatedState, clients: Tensor) -> Tensor:
        """Loss of clients on their own blocks under the models that they use, ``[len(clients)]``."""
        assert self.personalized_params is not None
        losses = []
        for some in clients.split(self.clients_per_pass(max(self.blocks_per_client, 1))):  # type: ignore[no-untyped-call]
            group = state.cluster_ids[some]
            shared = state.server.params.take(group)
            memory = state.client_states.gather(some).to(next(iter(shared.values())).device)
            losses.append(
                self.mean_losses(
                    Tree({**self.personalized_params(shared, memory), **state.server.base_for(group)}), self.client_blocks(some)
                )
            )
        return torch.cat(losses)

    def client_blocks(self, clients: Tensor) -> list[np.ndarray]:
        """The blocks of each client's own mixture."""
        return [self.all_text.client_blocks(client, max(self.blocks_per_client, 1)) for client in clients.tolist()]

    def count_predicted(self, client_blocks: list[np.ndarray]) -> Tensor:
        """Tokens that some blocks of each client predict, ``[C]``; NaN where there are none."""
        counts = [float(self.all_text.blocks.mask[blocks, 1:].sum()) or math.nan for blocks in client_blocks]
        return torch.tensor(counts, dtype=torch.float64)

    def mean_losses(self, params: Tree, client_blocks: list[np.ndarray]) -> Tensor:
        """Mean loss of each of C models ``[C, ...]`` on blocks of its own, ``[C]``; several models in one pass."""
        width = max(map(len, client_blocks), default=0)
        rows = np.stack([np.pad(blocks, (0, width - len(blocks)), constant_values=-1) for blocks in client_blocks])  # [C, K]
        step = self.clients_per_pass(width)
        parts = [
            self.compute_position_losses(slice_clients(params, slice(first, first + step)), rows[first : first + step])
            for first in range(0, len(rows), step)
        ]
        return torch.cat(parts).double().sum((1, 2)) / self.count_predicted(client_blocks)

    def clients_per_pass(self, num_blocks: int) -> int:
        """How many clients go into one pass with so many blocks each."""
        return max(1, self.tokens_per_pass // max(1, num_blocks * self.all_text.blocks.tokens.shape[1]))

    def block_losses(self, state: FederatedState) -> Tensor:
        """Summed loss of every model on every block of text as found, ``[M, E]`` float64."""
        return self.position_losses(state).sum(2).double()

    def position_losses(self, state: FederatedState) -> Tensor:
        """Loss of every model on every token after the first of a block of text as found, ``[M, E, T-1]``."""
        return self.all_position_losses(state)[:, : len(self.held_out.blocks)]

    def all_block_losses(self, state: FederatedState) -> Tensor:
        """Summed loss of every model on every block, ``[M, E']`` float64: the E as found, then those as clients write."""
        return self.all_position_losses(state).sum(2).double()

    def all_position_losses(self, state: FederatedState) -> Tensor:
        """Loss of every model on every token after the first of a block, ``[M, E', T-1]``; kept for models that have not
        changed."""
        every = np.arange(len(self.all_text.blocks))[None]
        rows = []
        for number in range(state.server.num_models):
            one = torch.tensor([number])
            params = Tree({**state.server.params.take(one), **state.server.base_for(one)})
            kept = self.cache.get(number)
            if kept is None or not trees_equal(kept[0], params):
                kept = self.cache[number] = params, self.compute_position_losses(params, every)
            rows.append(kept[1])
        return torch.cat(rows)

    @torch.no_grad()
    def compute_position_losses(self, params: Tree, rows: np.ndarray) -> Tensor:
        """Loss of every token after the first, of models ``[C, ...]`` on blocks ``rows [C, K]``, ``[C, K, T-1]`` on the CPU.

        Row -1 names no block; its losses are zero.
        """
        blocks, device = self.all_text.blocks, next(iter(params.values())).device
        step = max(1, self.tokens_per_pass // (blocks.tokens.shape[1] * len(rows)))
        parts = []
        for first in range(0, rows.shape[1], step):
            some = rows[:, first : first + step]
            keep = blocks.mask[some] & (some >= 0)[:, :, None]
            losses, _ = self.model.position_losses(
                params, torch.from_numpy(blocks.tokens[some]).to(device), torch.from_numpy(keep).to(device)
            )
            parts.append(losses.cpu())
        return torch.cat(parts, 1) if parts else torch.zeros(len(rows), 0, blocks.tokens.shape[1] - 1)


def client_domain_losses(held_out: HeldOut, block_losses: Tensor, cluster_ids: Tensor) -> tuple[Tensor, Tensor]:
    """What each domain adds to each client's loss, and the tokens that it counts with, both ``[N, J]``, from the summed
    losses of each model's blocks ``[M, E]``; a domain without held-out text counts for nothing."""
    per_domain = mean_domain_losses(held_out, block_losses)
    mix = torch.from_numpy(held_out.client_domain_tokens * (count_predicted_tokens(held_out) > 0))
    return (mix * per_domain[cluster_ids]).where(mix > 0, 0.0), mix


def mean_domain_losses(held_out: HeldOut, block_losses: Tensor) -> Tensor:
    """Mean loss of each model on each domain, ``[M, E] -> [M, J]``; NaN where a domain has no blocks."""
    domain = torch.from_numpy(held_out.domain_ids)
    counts = torch.from_numpy(held_out.blocks.mask[:, 1:].sum(1)).double()
    width = len(held_out.domains)
    total = block_losses.new_zeros(len(block_losses), width).index_add(1, domain, block_losses)
    return total / counts.new_zeros(width).index_add(0, domain, counts)


def slice_clients(params: Tree, rows: slice) -> Tree:
    """Some clients' rows; what leads with 1 is everybody's."""
    return params.map(lambda leaf: leaf if len(leaf) == 1 else leaf[rows])


def prefix_metrics(metrics: MetricValues, prefix: str) -> MetricValues:
    """The reading with a prefix before every metric."""
    return {(prefix + key[0], key[1]) if isinstance(key, tuple) else prefix + key: value for key, value in metrics.items()}


def trees_equal(a: Tree, b: Tree) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# Whom the final models serve, client by client: on text like the client's own, and on all the text that it has not.


def evaluate_personalized(losses: HeldOutLosses, state: FederatedState) -> MetricValues:
    """``loss.own`` and ``loss.cross`` of every client ``[N]`` under the model that it uses, nats per token.

    Own: on text mixed as the client's own and as it writes it. Cross: on text as found, the mean over the domains by 1 - q_kj,
    what client k lacks of domain j, q_kj being the share of its training tokens; of a client of one domain it is the plain mean
    over all others. NaN where a client has no text, or lacks none. Domains without held-out text, and those that nobody
    trains on, say nothing.
    """
    held = losses.held_out
    sums, group = (
        (personalized_block_losses(losses, state), torch.arange(len(state.cluster_ids)))
        if losses.personalized_params
        else (losses.all_block_losses(state), state.cluster_ids)
    )
    amount, tokens = client_domain_losses(losses.all_text, sums, group)
    there = (np.bincount(held.domain_ids, minlength=len(held.domains)) > 0) & (held.client_domain_tokens.sum(0) > 0)
    mix = torch.from_numpy(held.client_domain_tokens * there).double()
    lacks = (1 - mix / mix.sum(1, keepdim=True)).clamp_min(0) * torch.from_numpy(there)
    table = mean_domain_losses(held, sums[:, : len(held.blocks)])[group]
    cross = (table * lacks).where(lacks != 0, 0.0).sum(1) / lacks.sum(1)
    return prefix_metrics({"loss.own": amount.sum(1) / tokens.sum(1), "loss.cross": cross}, losses.prefix)


@torch.no_grad()
def personalized_block_losses(losses: HeldOutLosses, state: FederatedState) -> Tensor:
    """The summed loss of every client's own model on every block, ``[N, E']``; one client after another."""
    assert losses.personalized_params is not None
    every, rows = np.arange(len(losses.all_text.blocks))[None], []
    for client in range(len(state.cluster_ids)):
        one = torch.tensor([client])
        group = state.cluster_ids[one]
        shared = state.server.params.take(group)
        memory = state.client_states.gather(one).to(next(iter(shared.values())).device)
        params = Tree({**losses.personalized_params(shared, memory), **state.server.base_for(group)})
        rows.append(losses.compute_position_losses(params, every).sum(2).double())
    return torch.cat(rows)


# What the pretrained model makes of a text is read once for all runs that share a stock, whatever their seed or algorithm.

LossCache = MutableMapping[Hashable, Tensor]  # losses by what they are of


@dataclass(frozen=True)
class PretrainedLossCache:
    """A judge that remembers its answers about the model with which every run begins.

    ``initial_params [1, ...]`` is this run's w_0. Adapters begin at B = 0 whatever their A is, so the function is the pretrained one in
    every run, bit for bit, and ``cache`` can be shared by all of one model and one arithmetic: ``model_key`` says
    which.
    """

    loss_model: LossModel
    initial_params: Tree
    model_key: Hashable
    cache: LossCache

    def position_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every token after the first, and which of them count, both ``[C, B, T-1]``."""
        if torch.is_grad_enabled() or not self.is_initial(params):
            return self.loss_model.position_losses(params, tokens, mask)
        key = self.model_key, tuple(tokens.shape), tensor_digest(tokens), tensor_digest(mask)
        if key not in self.cache:
            self.cache[key] = self.loss_model.position_losses(params, tokens, mask)[0]
        return self.cache[key], mask[:, :, 1:]

    def sequence_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss and predicted tokens of every sequence, both ``[C, B]``."""
        losses, counted = self.position_losses(params, tokens, mask)
        return losses.sum(2), counted.sum(2)

    def is_initial(self, params: Tree) -> bool:
        """Whether this is w_0, with nothing under it."""
        return all(
            torch.equal(leaf, self.initial_params[name]) if name in self.initial_params else not bool(leaf.any())
            for name, leaf in params.items()
        )


def tensor_digest(values: Tensor) -> bytes:
    return blake2b(values.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()
