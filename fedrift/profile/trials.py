"""Would other passes be faster: fewer or more clients at once, a larger batch? Only what was tried is told."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..setting import Setting, one_step
from ..values import Round

PATIENCE = 10.0  # seconds for all trials


def tried(setting: Setting, done: Round, batch: dict[str, Tensor], repeats: int = 3) -> list[dict[str, Any]]:
    """Tokens a second of a step of one client, of those that are chosen, of the cohort, and of twice the batch; in turns."""
    model: Any = getattr(setting.fleet.objective, "plain", setting.fleet.objective)
    batch = {"tokens": batch["tokens"][:1], "keep": batch["keep"][:1]}
    double = {name: torch.cat([leaf, leaf], 1) for name, leaf in batch.items()}
    params, chosen = done.before.server.params.rows(torch.zeros(1, dtype=torch.long)), setting.fleet.micro or len(done.cohort)
    chosen = min(chosen, len(done.cohort))
    one_step(model, params, batch, 1)
    begun = perf_counter()
    one_step(model, params, batch, 1)
    each = perf_counter() - begun  # seconds of a client's step, about
    ways = [(count, batch, count == chosen) for count in sorted({1, chosen, len(done.cohort)})] + [(chosen, double, False)]
    most = PATIENCE / len(ways) / (repeats + 1) / each  # of a client's steps
    ways = [(count, some, ours) for count, some, ours in ways
            if ours or count * some["tokens"].numel() / batch["tokens"].numel() < most]
    spent: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for place, (count, some, _) in enumerate(ways):
            begun = perf_counter()
            one_step(model, params, some, count)
            if turn:
                spent[place].append(perf_counter() - begun)
    return [{"clients": count, "batch": some["tokens"].shape[1], "chosen": ours,
             "tokens_per_second": count * float(some["keep"][:, :, 1:].sum()) / median(seconds)}
            for (count, some, ours), seconds in zip(ways, spent, strict=True)]
