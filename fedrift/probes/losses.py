"""Measure loss and perplexity on held-out text: global, per domain and per client, before and after aggregation."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.cache import BoundedCache
from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult
from .base import MetricValues
from .held_out import HeldOut, count_predicted_tokens


class LossModel(Protocol):
    """The methods of a stacked model that evaluation needs."""

    def position_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of every token after the first.

        Args:
            params: C models, ``[C, ...]``.
            tokens: Token ids, ``[C, B, T]``.
            mask: Bool, ``[C, B, T]``; False for padding.

        Returns:
            Losses in nats and whether each token counts, both ``[C, B, T-1]``.
        """
        ...

    def sequence_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the summed loss in nats and the number of predicted tokens of every sequence, both ``[C, B]``."""
        ...


@dataclass(frozen=True, eq=False)
class HeldOutLosses:
    """Losses on fixed held-out text blocks of every domain, in nats per token.

    Metrics of the server's models:

    - ``loss`` of a domain: mean over its held-out tokens.
    - ``loss`` of a client: mean over domains, weighted by the client's own training tokens, under the model that serves the client.
    - ``loss`` of the federation: mean over all clients, weighted by their training tokens. With a single model, this is the loss on
      the domain mixture of all training data.
    - ``loss.macro``: unweighted mean over domains.
    - ``loss.uniform``, in round 0 only: ln V, the loss of a model that assigns equal probability to the V tokens of the vocabulary.
    - ``perplexity``: exp(loss), for every ``loss``.
    - ``bits``: loss in bits per byte of text, if ``bytes_per_token`` is given. It is comparable across tokenizers.

    If clients rewrite their texts (``rewritten``), domain and federation losses use the original text, which is the same for all runs
    on a corpus. A client's ``loss`` then uses text as the client rewrites it. ``loss.original_text`` is the client's loss on the original
    text, and ``loss.own`` is the mean of the clients' ``loss`` weighted by their training tokens.

    Metrics of the cohort ``[C]``, on a few blocks with each client's own domain mixture:

    - ``loss.before``: the client's model after local training, before aggregation.
    - ``loss.after``: the model that serves the client after aggregation.
    - ``loss.personalized``: the client's personalized model, if ``personalized_params`` is given.

    A server model is evaluated again only if its parameters have changed.
    """

    model: LossModel
    held_out: HeldOut
    blocks_per_client: int = 4  # blocks per client for ``loss.before`` and ``loss.after``; 0: neither is measured
    interval: int = 1  # rounds between evaluations
    last_round: int | None = None  # the run's last round, which is always evaluated
    personalized_params: Callable[[Tree, Tree], Tree] | None = None  # (shared params, client states) -> params of the personalized models
    prefix: str = ""  # prefix of all metric names
    bytes_per_token: np.ndarray | None = None  # [J] bytes of text per predicted token of a domain
    rewritten: HeldOut | None = None  # ``held_out`` followed by its text as clients rewrite it; None if no client rewrites
    tokens_per_pass: int = 8192  # maximum number of tokens per forward pass
    vocab_size: int = 0  # number of tokens that the output layer predicts; 0: unknown
    cache: dict[int, tuple[Tree, Tensor]] = field(default_factory=dict, repr=False)  # model index -> its params and position losses

    def __call__(self, result: RoundResult) -> MetricValues:
        """Compute all losses of a round; empty if the round is not evaluated."""
        current_round = result.after.round
        if current_round % self.interval and current_round != self.last_round:
            return {}
        metrics = self.evaluate_state(result.after)
        if self.blocks_per_client:
            metrics |= self.evaluate_before_and_after(result)
        return metrics

    def forward_tokens(self, cohort_size: int) -> float:
        """Estimate the tokens that one evaluation sends through the model: all blocks once, and the cohort's own blocks."""
        blocks, length = self.all_text.blocks.tokens.shape
        return float((blocks + cohort_size * self.blocks_per_client) * length)

    @property
    def all_text(self) -> HeldOut:
        """Return all evaluated text: the original text, followed by its rewritten variants."""
        return self.rewritten or self.held_out

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Compute the losses of the server's models."""
        sums = self.all_block_losses(state)
        loss_sums, tokens = client_domain_losses(self.held_out, sums[:, : len(self.held_out.blocks)], state.cluster_ids)  # [N, J]
        client_loss, domain_loss = loss_sums.sum(1) / tokens.sum(1), loss_sums.sum(0) / tokens.sum(0)
        metrics: MetricValues = {"loss": client_loss, "perplexity": client_loss.exp()}
        if self.rewritten:
            own_loss, own_tokens = (amount.sum(1) for amount in client_domain_losses(self.rewritten, sums, state.cluster_ids))  # [N]
            metrics = {
                "loss": own_loss / own_tokens,
                "perplexity": (own_loss / own_tokens).exp(),
                "loss.original_text": client_loss,
                ("loss.own", ""): own_loss.sum() / own_tokens.sum(),
            }
        for name, value in [("", loss_sums.sum() / tokens.sum()), *zip(self.held_out.domains, domain_loss, strict=True)]:
            if not name or tokens[:, self.held_out.domains.index(name)].any():
                metrics["loss", name], metrics["perplexity", name] = value, value.exp()
        metrics["loss.macro"] = domain_loss[tokens.sum(0) > 0].mean()
        if self.vocab_size and state.round == 0:
            metrics["loss.uniform"] = math.log(self.vocab_size)
        if self.bytes_per_token is not None:
            scaled_bytes = torch.from_numpy(self.bytes_per_token) * math.log(2)
            metrics["bits", ""] = loss_sums.sum() / (tokens * scaled_bytes).sum()
            metrics |= {
                ("bits", name): metrics["loss", name] / float(scaled_bytes[index])
                for index, name in enumerate(self.held_out.domains)
                if ("loss", name) in metrics
            }
        return prefix_metrics(metrics, self.prefix)

    def evaluate_final(self, state: FederatedState) -> MetricValues:
        """Compute the losses of the server's models and of the personalized models of all clients, ``[N]``, if there are any."""
        clients = torch.arange(len(state.cluster_ids))
        return self.evaluate_state(state) | (
            prefix_metrics({"loss.personalized": self.personalized_losses(state, clients)}, self.prefix) if self.personalized_params else {}
        )

    def evaluate_before_and_after(self, result: RoundResult) -> MetricValues:
        """Compute the losses on the cohort's own blocks, under the trained models and under the models after aggregation, ``[C]``."""
        client_blocks = self.client_blocks(result.cohort)
        after = self.all_block_losses(result.after)[result.after.cluster_ids[result.cohort]]  # [C, E']
        base = result.before.server.base_for(result.before.cluster_ids[result.cohort])
        before = self.mean_losses(Tree({**result.client_params, **base}), client_blocks)
        after_sums = torch.stack([losses[torch.from_numpy(rows)].sum() for losses, rows in zip(after, client_blocks, strict=True)])
        metrics: MetricValues = {"loss.before": before, "loss.after": after_sums / self.count_predicted(client_blocks)}
        if self.personalized_params:
            metrics["loss.personalized"] = self.personalized_losses(result.after, result.cohort)
        return prefix_metrics(metrics, self.prefix)

    def personalized_losses(self, state: FederatedState, clients: Tensor) -> Tensor:
        """Compute the loss of clients on their own blocks under their personalized models, ``[len(clients)]``."""
        assert self.personalized_params is not None
        losses = []
        for chunk in clients.split(self.clients_per_pass(max(self.blocks_per_client, 1))):  # type: ignore[no-untyped-call]
            cluster_ids = state.cluster_ids[chunk]
            shared = state.server.params.take(cluster_ids)
            client_states = state.client_states.gather(chunk).to(shared.device)
            losses.append(
                self.mean_losses(
                    Tree({**self.personalized_params(shared, client_states), **state.server.base_for(cluster_ids)}),
                    self.client_blocks(chunk),
                )
            )
        return torch.cat(losses)

    def client_blocks(self, clients: Tensor) -> list[np.ndarray]:
        """Return the block indices of each client's own domain mixture."""
        return [self.all_text.client_blocks(client, max(self.blocks_per_client, 1)) for client in clients.tolist()]

    def count_predicted(self, client_blocks: list[np.ndarray]) -> Tensor:
        """Count the tokens that are predicted in each client's blocks, ``[C]`` float64; NaN if there are none."""
        counts = [float(self.all_text.blocks.mask[blocks, 1:].sum()) or math.nan for blocks in client_blocks]
        return torch.tensor(counts, dtype=torch.float64)

    def mean_losses(self, params: Tree, client_blocks: list[np.ndarray]) -> Tensor:
        """Compute the mean loss of each model on its own blocks.

        Args:
            params: C models, ``[C, ...]``; several are evaluated in one forward pass.
            client_blocks: C arrays of block indices.

        Returns:
            Losses in nats per token, ``[C]`` float64.
        """
        width = max(map(len, client_blocks), default=0)
        rows = np.stack([np.pad(blocks, (0, width - len(blocks)), constant_values=-1) for blocks in client_blocks])  # [C, K]
        step = self.clients_per_pass(width)
        parts = [
            self.compute_position_losses(slice_clients(params, slice(first, first + step)), rows[first : first + step])
            for first in range(0, len(rows), step)
        ]
        return torch.cat(parts).double().sum((1, 2)) / self.count_predicted(client_blocks)

    def clients_per_pass(self, num_blocks: int) -> int:
        """Return how many clients with ``num_blocks`` blocks each fit into one forward pass."""
        return max(1, self.tokens_per_pass // max(1, num_blocks * self.all_text.blocks.tokens.shape[1]))

    def block_losses(self, state: FederatedState) -> Tensor:
        """Compute the summed loss of every model on every block of original text, ``[M, E]`` float64."""
        return self.position_losses(state).sum(2).double()

    def position_losses(self, state: FederatedState) -> Tensor:
        """Compute the loss of every model on every token after the first of a block of original text, ``[M, E, T-1]``."""
        return self.all_position_losses(state)[:, : len(self.held_out.blocks)]

    def all_block_losses(self, state: FederatedState) -> Tensor:
        """Compute the summed loss of every model on all E' blocks, original text first, ``[M, E']`` float64."""
        return self.all_position_losses(state).sum(2).double()

    def all_position_losses(self, state: FederatedState) -> Tensor:
        """Compute the loss of every model on every token after the first of all blocks, ``[M, E', T-1]``, with caching."""
        block_rows = np.arange(len(self.all_text.blocks))[None]
        rows = []
        for index in range(state.server.num_models):
            model = torch.tensor([index])
            params = Tree({**state.server.params.take(model), **state.server.base_for(model)})
            cached = self.cache.get(index)
            if cached is None or not trees_equal(cached[0], params):
                cached = self.cache[index] = params, self.compute_position_losses(params, block_rows)
            rows.append(cached[1])
        return torch.cat(rows)

    @torch.no_grad()
    def compute_position_losses(self, params: Tree, rows: np.ndarray) -> Tensor:
        """Compute the loss of every token after the first.

        Args:
            params: C models, ``[C, ...]``.
            rows: ``[C, K]``, the block indices of each model. The index -1 is a placeholder with zero loss.

        Returns:
            Losses in nats, ``[C, K, T-1]``, on the CPU.
        """
        blocks, device = self.all_text.blocks, params.device
        step = max(1, self.tokens_per_pass // (blocks.tokens.shape[1] * len(rows)))
        parts = []
        for first in range(0, rows.shape[1], step):
            chunk = rows[:, first : first + step]
            mask = blocks.mask[chunk] & (chunk >= 0)[:, :, None]
            losses, _ = self.model.position_losses(
                params, torch.from_numpy(blocks.tokens[chunk]).to(device), torch.from_numpy(mask).to(device)
            )
            parts.append(losses.cpu())
        return torch.cat(parts, 1) if parts else torch.zeros(len(rows), 0, blocks.tokens.shape[1] - 1)


def client_domain_losses(held_out: HeldOut, block_losses: Tensor, cluster_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the contribution of each domain to each client's loss.

    Args:
        held_out: Held-out text.
        block_losses: ``[M, E]``, summed loss of each model on each block.
        cluster_ids: ``[N]``, the model that serves each client.

    Returns:
        Token-weighted losses and the token weights, both ``[N, J]``. A domain without held-out text has weight 0.
    """
    per_domain = mean_domain_losses(held_out, block_losses)
    tokens = torch.from_numpy(held_out.client_domain_tokens * (count_predicted_tokens(held_out) > 0))
    return (tokens * per_domain[cluster_ids]).where(tokens > 0, 0.0), tokens


def mean_domain_losses(held_out: HeldOut, block_losses: Tensor) -> Tensor:
    """Compute the mean loss of each model on each domain, ``[M, E] -> [M, J]``; NaN for a domain without blocks."""
    domain_ids = torch.from_numpy(held_out.domain_ids)
    counts = torch.from_numpy(held_out.blocks.mask[:, 1:].sum(1)).double()
    width = len(held_out.domains)
    total = block_losses.new_zeros(len(block_losses), width).index_add(1, domain_ids, block_losses)
    return total / counts.new_zeros(width).index_add(0, domain_ids, counts)


def slice_clients(params: Tree, rows: slice) -> Tree:
    """Select rows of clients. Leaves with a leading dimension of 1 are shared by all clients and stay as they are."""
    return params.map(lambda leaf: leaf if len(leaf) == 1 else leaf[rows])


def prefix_metrics(metrics: MetricValues, prefix: str) -> MetricValues:
    """Prepend a prefix to the name of every metric."""
    return {(prefix + key[0], key[1]) if isinstance(key, tuple) else prefix + key: value for key, value in metrics.items()}


def trees_equal(a: Tree, b: Tree) -> bool:
    """Return whether two trees are equal in all leaves of the first."""
    return all(torch.equal(a[name], b[name]) for name in a)


# Losses of the final models per client: on the client's own domain mixture, and on the domains that it lacks.


def evaluate_personalized(losses: HeldOutLosses, state: FederatedState) -> MetricValues:
    """Compute ``loss.own`` and ``loss.cross`` of every client ``[N]``, in nats per token, under the model that the client uses.

    ``loss.own`` uses text with the client's own domain mixture, as the client rewrites it. ``loss.cross`` uses original text. It is the
    mean over domains with weights 1 - q_kj, where domain j has the share q_kj of the training tokens of client k. For a client of one
    domain it is the plain mean over all other domains. Domains without held-out text or without training tokens are ignored.

    Returns:
        The two metrics; NaN for a client without text, or without a domain that it lacks.
    """
    held_out = losses.held_out
    sums, cluster_ids = (
        (personalized_block_losses(losses, state), torch.arange(len(state.cluster_ids)))
        if losses.personalized_params
        else (losses.all_block_losses(state), state.cluster_ids)
    )
    own_loss, tokens = client_domain_losses(losses.all_text, sums, cluster_ids)
    has_text = (np.bincount(held_out.domain_ids, minlength=len(held_out.domains)) > 0) & (held_out.client_domain_tokens.sum(0) > 0)
    domain_tokens = torch.from_numpy(held_out.client_domain_tokens * has_text).double()
    cross_weights = (1 - domain_tokens / domain_tokens.sum(1, keepdim=True)).clamp_min(0) * torch.from_numpy(has_text)
    domain_losses = mean_domain_losses(held_out, sums[:, : len(held_out.blocks)])[cluster_ids]
    cross_loss = (domain_losses * cross_weights).where(cross_weights != 0, 0.0).sum(1) / cross_weights.sum(1)
    return prefix_metrics({"loss.own": own_loss.sum(1) / tokens.sum(1), "loss.cross": cross_loss}, losses.prefix)


@torch.no_grad()
def personalized_block_losses(losses: HeldOutLosses, state: FederatedState) -> Tensor:
    """Compute the summed loss of every client's personalized model on every block, ``[N, E']``, one client at a time."""
    assert losses.personalized_params is not None
    block_rows, rows = np.arange(len(losses.all_text.blocks))[None], []
    for client in range(len(state.cluster_ids)):
        client_id = torch.tensor([client])
        cluster_ids = state.cluster_ids[client_id]
        shared = state.server.params.take(cluster_ids)
        client_states = state.client_states.gather(client_id).to(shared.device)
        params = Tree({**losses.personalized_params(shared, client_states), **state.server.base_for(cluster_ids)})
        rows.append(losses.compute_position_losses(params, block_rows).sum(2).double())
    return torch.cat(rows)


# Losses of equal models on equal text are computed once for all runs that share the caches.

LossCache = MutableMapping[Hashable, Tensor]  # (model, shape, digests of tokens and mask) -> losses
MAX_DIGEST_BYTES = 64_000_000  # parameters with more bytes are not compared with those of other runs, because their digest would take long


@dataclass(frozen=True)
class PretrainedLossCache:
    """A loss model that caches the losses of models that several runs evaluate on the same text.

    Adapters start at B = 0, whatever A is. The initial model therefore computes the pretrained function in every run, bit for bit, and
    runs with the same model and the same arithmetic can share ``cache``. Trained models are shared only if all their parameters are
    equal, for example those of two conditions that differ only after the last round.

    Attributes:
        loss_model: The loss model that computes all other losses.
        initial_params: ``[1, ...]``, the initial parameters of this run, w_0.
        model_key: Identifies the pretrained model and the arithmetic.
        cache: The shared cache of the losses of the initial model.
        trained_cache: The shared cache of the losses of trained models, with sizes in bytes. None: they are not cached.
    """

    loss_model: LossModel
    initial_params: Tree
    model_key: Hashable
    cache: LossCache
    trained_cache: BoundedCache | None = None

    def position_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of every token after the first, and whether it counts, both ``[C, B, T-1]``."""
        if torch.is_grad_enabled():
            return self.loss_model.position_losses(params, tokens, mask)
        key = self.model_key, tuple(tokens.shape), tensor_digest(tokens), tensor_digest(mask)
        if self.is_initial(params):
            if key not in self.cache:
                self.cache[key] = self.loss_model.position_losses(params, tokens, mask)[0]
            return self.cache[key], mask[:, :, 1:]
        if self.trained_cache is None or sum(leaf.nbytes for leaf in params.values()) > MAX_DIGEST_BYTES:
            return self.loss_model.position_losses(params, tokens, mask)
        losses = self.trained_cache.get_or_create(
            (*key, tree_digest(params)), lambda: self.loss_model.position_losses(params, tokens, mask)[0], lambda values: values.nbytes
        )
        return losses, mask[:, :, 1:]

    def sequence_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the summed loss and the number of predicted tokens of every sequence, both ``[C, B]``."""
        losses, counted = self.position_losses(params, tokens, mask)
        return losses.sum(2), counted.sum(2)

    def is_initial(self, params: Tree) -> bool:
        """Return whether ``params`` are the initial parameters w_0 and nothing is merged under the adapters."""
        return all(
            torch.equal(leaf, self.initial_params[name]) if name in self.initial_params else not bool(leaf.any())
            for name, leaf in params.items()
        )


def tensor_digest(values: Tensor) -> bytes:
    """Return a 16-byte BLAKE2b digest of a tensor's values."""
    flat = values.detach().cpu().contiguous()
    flat = flat.as_strided((flat.numel(),), (1,))  # a contiguous tensor of one element may have a stride of 0, which view rejects
    return blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).digest()


def tree_digest(params: Tree) -> bytes:
    """Return a 16-byte BLAKE2b digest of the names, shapes, types and values of all leaves."""
    digest = blake2b(digest_size=16)
    for name, leaf in params.items():
        digest.update(f"{name} {tuple(leaf.shape)} {leaf.dtype}".encode() + tensor_digest(leaf))
    return digest.digest()
