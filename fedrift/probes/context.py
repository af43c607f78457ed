"""What probes are built with: the model, the text to look at, and where the run began. Nothing in it changes in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult
from ..data.corpus import Corpus
from ..data.synthetic import SyntheticConfig
from ..data.tokenization import Blocks
from .held_out import HeldOut
from .losses import HeldOutLosses, LossModel


@dataclass(frozen=True, eq=False)
class ProbeContext:
    """``seed`` is the corpus's own split seed: what is looked at is the same in every arm and for every seed of a study."""

    model: Any  # a models.stacked_model.StackedModel
    tokenizer: Any  # a fast tokenizer of transformers
    initial_params: Tree  # [1, ...] the trained parts as the run began, w_0
    held_out: HeldOut  # E blocks of T tokens; ``held_out.head(k)``: at most k blocks of each domain
    losses: HeldOutLosses  # the evaluation of every round, to be shared: ``losses.by_block(state)`` is computed once
    split_seed: int
    cohort_size: int  # C, clients in a round
    corpus: Corpus  # all documents
    client_rows: tuple[np.ndarray, ...]  # N: the rows of the corpus that each client trains on
    algorithm: Any  # algorithms.FedAvg or a relative: what it freezes and sends, its round_metrics
    general_blocks: Blocks | None = None  # text that is in nobody's pool
    synthetic: SyntheticConfig | None = None  # the settings of the synthetic language, if the corpus is that
    pairs_per_phenomenon: int = 100  # minimal pairs of each phenomenon
    tokens_per_pass: int = 8192  # tokens in one forward pass, at most

    @property
    def loss_model(self) -> LossModel:
        """The model for losses alone; what it makes of a text before training is read once for all runs."""
        return self.losses.model

    @property
    def domains(self) -> tuple[str, ...]:
        """J names."""
        return self.held_out.domains


# The text that representations are compared on: a few held-out blocks, the domains in turn, the same in every round.

SKIPPED_POSITIONS = 2  # the first positions of a block see next to nothing, and are where idle heads look


@dataclass(frozen=True, eq=False)
class Passages:
    """B blocks of T tokens, and the positions in them that count."""

    tokens: Tensor  # [B, T]
    mask: Tensor  # [B, T] bool: not padding, and not among the first of its block

    @property
    def positions(self) -> Tensor:
        """Where the positions that count are when blocks lie one after the other, ``[P]``."""
        return self.mask.flatten().nonzero().flatten()


def select_passages(held_out: HeldOut, num_positions: int) -> Passages:
    """The fewest blocks with so many positions that count, or all of them; the blocks' domains in turn."""
    turn = np.zeros(len(held_out.domain_ids), dtype=int)
    for domain in np.unique(held_out.domain_ids):
        rows = np.flatnonzero(held_out.domain_ids == domain)
        turn[rows] = np.arange(len(rows))
    order = np.lexsort((held_out.domain_ids, turn))
    counts = held_out.blocks.mask[order].copy()
    counts[:, :SKIPPED_POSITIONS] = False
    enough = int(np.searchsorted(np.cumsum(counts.sum(1)), num_positions)) + 1
    counts = counts[:enough]
    beyond = np.cumsum(counts.ravel()).reshape(counts.shape) > num_positions
    return Passages(torch.from_numpy(held_out.blocks.tokens[order][:enough]), torch.from_numpy(counts & ~beyond))


# The models of a round as they are worn: trained parts and, with them, what lies under adapters.


def server_models(state: FederatedState) -> Tree:
    """The server's models, ``[M, ...]``."""
    return Tree({**state.server.params, **state.server.merged_base})


def initial_model(initial_params: Tree, template: Tree) -> Tree:
    """w_0 ``[1, ...]`` with all leaves of a worn model; what lies under adapters is zero at the beginning."""
    return Tree({name: initial_params.get(name, torch.zeros_like(leaf)) for name, leaf in template.items()})


def client_models(result: RoundResult) -> Tree:
    """The cohort's models as trained, before aggregation, ``[C, ...]``; what all have under them leads with 1."""
    groups = result.before.cluster_ids[result.cohort]
    return Tree({**result.client_params, **result.before.server.base_for(groups)})


def client_model(result: RoundResult, row: int) -> Tree:
    """The model of the cohort's client ``row``, ``[1, ...]``."""
    groups = result.before.cluster_ids[result.cohort][row : row + 1]
    return Tree({**result.client_params.take(slice(row, row + 1)), **result.before.server.base_for(groups)})


def trained_mask(result: RoundResult) -> Tensor:
    """Which clients of the cohort trained and sent numbers, ``[C]`` bool."""
    return (~result.report.failed & (result.report.steps > 0)).cpu()


def model_shares(state: FederatedState) -> Tensor:
    """The share of the fleet that each model serves, ``[M]`` float64."""
    return state.cluster_ids.cpu().bincount(minlength=state.server.num_models).double() / len(state.cluster_ids)


def mean_over_models(values: Tensor, state: FederatedState) -> Tensor:
    """The mean over the fleet of what each of its models has, ``[M, ...] -> [...]``; models that nobody shares say nothing."""
    share = model_shares(state).view(-1, *[1] * (values.ndim - 1))
    return torch.where(share > 0, values.cpu().double() * share, 0.0).sum(0)


def score_models(models: Tree, score_fn: Callable[[Tree], Tensor]) -> Tensor:
    """``score_fn`` of every model ``[1, ...]`` by itself, ``[M, ...]``; of models that are equal, as all are at first, it is
    asked once."""
    known: list[tuple[Tree, Tensor]] = []
    found = []
    for number in range(len(next(iter(models.values())))):
        one = models.take(slice(number, number + 1))
        told = next((value for other, value in known if all(torch.equal(one[name], other[name]) for name in one)), None)
        if told is None:
            known.append((one, told := score_fn(one)))
        found.append(told)
    return torch.stack(found)


def layer_name(layer: int) -> str:
    return f"layer {layer:02d}"
