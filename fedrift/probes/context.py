"""Define the context that probes are built from, and helpers that several probes share.

A context holds the model, the held-out text and the initial weights. It does not change during a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult
from ..data.corpus import TEST, Corpus
from ..data.synthetic import SyntheticConfig
from ..data.tokenization import Blocks
from .held_out import HeldOut
from .losses import HeldOutLosses, LossModel


@dataclass(frozen=True, eq=False)
class ProbeContext:
    """Everything that a probe factory may use.

    The held-out text depends only on the corpus and its split seed, so it is the same for all conditions and seeds of a study.

    Attributes:
        model: The language model, a ``models.stacked_model.StackedModel``.
        tokenizer: A fast tokenizer of transformers.
        initial_params: ``[1, ...]``, the trained parameters at the start of the run, w_0.
        held_out: E held-out text blocks of T tokens. ``held_out.head(k)`` selects at most k blocks of each domain.
        losses: The held-out losses of every round. Probes share them: ``losses.block_losses(state)`` is computed once per model.
        split_seed: Seed of the corpus split, for a probe's own random streams.
        cohort_size: Clients per round, C.
        corpus: All documents.
        client_rows: N arrays with the corpus rows that each client trains on.
        algorithm: The federated algorithm. Probes read which parameters it freezes and uploads, and its ``round_metrics``.
        general_blocks: General text that is not part of any client's training data.
        synthetic: Settings of the synthetic language, if the corpus is synthetic.
        pairs_per_phenomenon: Minimal pairs per phenomenon.
        tokens_per_pass: Maximum number of tokens per forward pass.
        split: The split of the corpus from which the held-out text comes.
        label_prompt: The text from which a label is read; it follows a document and contains ``{label}``.
        labeled_documents: Held-out documents per domain whose label is read.
    """

    model: Any
    tokenizer: Any
    initial_params: Tree
    held_out: HeldOut
    losses: HeldOutLosses
    split_seed: int
    cohort_size: int
    corpus: Corpus
    client_rows: tuple[np.ndarray, ...]
    algorithm: Any
    general_blocks: Blocks | None = None
    synthetic: SyntheticConfig | None = None
    pairs_per_phenomenon: int = 100
    tokens_per_pass: int = 8192
    split: int = TEST
    label_prompt: str = " Topic: {label}"
    labeled_documents: int = 16

    @property
    def loss_model(self) -> LossModel:
        """Return the model that computes losses and caches those of the initial model across runs."""
        return self.losses.model

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the names of the J domains."""
        return self.held_out.domains


# Passages are a few held-out text blocks on which models are compared. They are the same in every round.

SKIPPED_POSITIONS = 2  # per block: the first positions have almost no context, and heads without a target attend to them


@dataclass(frozen=True, eq=False)
class Passages:
    """B blocks of T tokens, and a mask of the positions that are evaluated."""

    tokens: Tensor  # [B, T]
    mask: Tensor  # [B, T] bool; False for padding and for the first positions of a block

    @property
    def positions(self) -> Tensor:
        """Return the indices ``[P]`` of the evaluated positions in the flattened blocks."""
        return self.mask.flatten().nonzero().flatten()


def select_passages(held_out: HeldOut, num_positions: int) -> Passages:
    """Select the fewest blocks that contain a number of evaluated positions.

    The blocks cycle through the domains. If there are too few positions, all blocks are selected.
    """
    rank = np.zeros(len(held_out.domain_ids), dtype=int)
    for domain in np.unique(held_out.domain_ids):
        rows = np.flatnonzero(held_out.domain_ids == domain)
        rank[rows] = np.arange(len(rows))
    order = np.lexsort((held_out.domain_ids, rank))
    mask = held_out.blocks.mask[order].copy()
    mask[:, :SKIPPED_POSITIONS] = False
    num_blocks = int(np.searchsorted(np.cumsum(mask.sum(1)), num_positions)) + 1
    mask = mask[:num_blocks]
    surplus = np.cumsum(mask.ravel()).reshape(mask.shape) > num_positions
    return Passages(torch.from_numpy(held_out.blocks.tokens[order][:num_blocks]), torch.from_numpy(mask & ~surplus))


# The complete models of a round: trained parameters together with the base weights that an aggregator merged under the adapters.


def server_models(state: FederatedState) -> Tree:
    """Return the server's M models, ``[M, ...]``."""
    return Tree({**state.server.params, **state.server.merged_base})


def initial_model(initial_params: Tree, template: Tree) -> Tree:
    """Return the initial model w_0 with all leaves of another model.

    Args:
        initial_params: ``[1, ...]``, the initial trained parameters.
        template: A complete model. Its merged base weights are zero in the initial model.

    Returns:
        The initial model, ``[1, ...]``.
    """
    return Tree({name: initial_params.get(name, torch.zeros_like(leaf)) for name, leaf in template.items()})


def client_models(result: RoundResult) -> Tree:
    """Return the models of the cohort after local training and before aggregation.

    Returns:
        A tree ``[C, ...]``. Merged base weights that all clients share have a leading dimension of 1.
    """
    cluster_ids = result.before.cluster_ids[result.cohort]
    return Tree({**result.client_params, **result.before.server.base_for(cluster_ids)})


def client_model(result: RoundResult, row: int) -> Tree:
    """Return the trained model ``[1, ...]`` of the client in row ``row`` of the cohort."""
    cluster_ids = result.before.cluster_ids[result.cohort][row : row + 1]
    return Tree({**result.client_params.take(slice(row, row + 1)), **result.before.server.base_for(cluster_ids)})


def trained_mask(result: RoundResult) -> Tensor:
    """Return which clients of the cohort trained and returned finite numbers, ``[C]`` bool."""
    return (~result.update.failed & (result.update.steps != 0)).cpu()


def model_shares(state: FederatedState) -> Tensor:
    """Return the share of all clients that each model serves, ``[M]`` float64."""
    return state.cluster_ids.cpu().bincount(minlength=state.server.num_models).double() / len(state.cluster_ids)


def mean_over_models(values: Tensor, state: FederatedState) -> Tensor:
    """Average values of the server's models over all clients.

    Args:
        values: ``[M, ...]``, one value per model. Models without clients are ignored.
        state: State that assigns clients to models.

    Returns:
        The mean, ``[...]`` float64.
    """
    share = model_shares(state).view(-1, *[1] * (values.ndim - 1))
    return torch.where(share > 0, values.cpu().double() * share, 0.0).sum(0)


def score_models(models: Tree, score_fn: Callable[[Tree], Tensor]) -> Tensor:
    """Score each model separately.

    Args:
        models: ``[M, ...]``.
        score_fn: Function of one model ``[1, ...]``. Equal models, as all are before the first round, are scored once.

    Returns:
        The scores, ``[M, ...]``.
    """
    scored: list[tuple[Tree, Tensor]] = []
    scores = []
    for index in range(len(next(iter(models.values())))):
        one = models.take(slice(index, index + 1))
        score = next((value for other, value in scored if all(torch.equal(one[name], other[name]) for name in one)), None)
        if score is None:
            scored.append((one, score := score_fn(one)))
        scores.append(score)
    return torch.stack(scores)


def layer_name(layer: int) -> str:
    """Return the domain name of a layer, e.g. ``layer 03``."""
    return f"layer {layer:02d}"
