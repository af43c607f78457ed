"""What probes are built with: the model, the text to look at, and where the run began. Nothing in it changes in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..corpus.blocks import Blocks
from ..corpus.corpus import Corpus
from ..corpus.sandbox import Sandbox
from ..tree import Tree
from .held_out import HeldOut
from .loss import Judge, Losses


@dataclass(frozen=True, eq=False)
class Bench:
    """``seed`` is the corpus's own split seed: what is looked at is the same in every arm and for every seed of a study."""

    model: Any  # models.stacked.StackedModel: .network, .hidden(params, tokens), .sums(params, tokens, keep), .modules, .tune
    tokenizer: Any  # a fast tokenizer of transformers
    start: Tree  # [1, ...] the trained parts as the run began, w_0
    held_out: HeldOut  # E blocks of T tokens; ``held_out.first(k)``: at most k blocks of each domain
    losses: Losses  # the evaluation of every round, to be shared: ``losses.by_block(state)`` is computed once
    seed: int
    cohort: int  # C, clients in a round
    corpus: Corpus  # all documents
    parts: tuple[np.ndarray, ...]  # N: the rows of the corpus that each client trains on
    algorithm: Any  # algorithms.FedAvg or a relative: what it freezes and sends, its evidence
    general: Blocks | None = None  # text that is in nobody's pool
    sandbox: Sandbox | None = None  # the dials of the made-up language, if the corpus is that
    pairs: int = 100  # minimal pairs of each phenomenon
    chunk: int = 8192  # tokens in one forward pass, at most

    @property
    def judge(self) -> Judge:
        """The model for losses alone; what it makes of a text before training is read once for all runs."""
        return self.losses.model

    @property
    def domains(self) -> tuple[str, ...]:
        """J names."""
        return self.held_out.names
