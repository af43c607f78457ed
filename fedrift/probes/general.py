"""Loss on general text that is in no client's pool: what of the pretrained model is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import torch

from ..corpus.blocks import Blocks
from ..tree import Tree
from ..values import Round, State
from .bench import Bench
from .loss import Judge
from .panel import After, Look
from .probe import Reading
from .worn import mean_model, of_each, server_models

GROUP = "general"


@dataclass(frozen=True, eq=False)
class General:
    """``general.loss``, nats per token, and ``general.bits``, bits per byte, of the server's model on general text; of several
    models, the mean over the fleet. Forgetting is their rise since round 0.

    A look reads M times the tokens of the text, with the head.
    """

    model: Judge
    text: Blocks  # [E, T]; the first token of a block is only context
    bytes: int  # that the predicted tokens spell
    chunk: int = 8192  # tokens in one forward pass

    def __call__(self, done: Round) -> Reading:
        return self.of(done.after)

    def of(self, state: State) -> Reading:
        """Of the server's models."""
        each = of_each(server_models(state), lambda one: torch.tensor(self.nats(one), dtype=torch.float64))
        nats = mean_model(each, state)
        return {"general.loss": nats / int(self.text.keep[:, 1:].sum()), "general.bits": nats / (log(2) * self.bytes)}

    @torch.no_grad()
    def nats(self, params: Tree) -> float:
        """Summed loss of one model ``[1, ...]`` on the text."""
        where = next(iter(params.values())).device
        rows = max(1, self.chunk // self.text.tokens.shape[1])
        parts = zip(torch.from_numpy(self.text.tokens).split(rows), torch.from_numpy(self.text.keep).split(rows), strict=True)
        return sum(self.model.sums(params, tokens[None].to(where), keep[None].to(where))[0].double().sum().item()
                   for tokens, keep in parts)


def spelled_bytes(tokenizer: Any, text: Blocks) -> int:
    """Bytes of UTF-8 that the predicted tokens of all blocks spell; end tokens spell none."""
    lines = [tokens[1:][keep[1:]] for tokens, keep in zip(text.tokens, text.keep, strict=True)]
    return sum(len(said.encode()) for said in tokenizer.batch_decode(
        [line.tolist() for line in lines], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def looks(bench: Bench) -> list[Look | After]:
    """The general text, whenever deep looks are taken; nothing where there is no such text."""
    if bench.general is None:
        return []
    probe = General(bench.judge, bench.general, spelled_bytes(bench.tokenizer, bench.general), bench.chunk)
    return [Look("general", probe, "deep", float(bench.general.keep.sum()))]
