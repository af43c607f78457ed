"""What the clients' own training says: loss, tokens, steps, and who failed."""

from __future__ import annotations

import torch

from ..values import Round
from .probe import Reading


def local_training(done: Round) -> Reading:
    """Each client ``[C]``: ``train.loss`` mean over the local steps, ``train.loss.start`` of the first step (nats per
    token, without any regulariser); ``weight`` in the mean; ``train.tokens``; ``train.steps``; ``failed`` 0 or 1."""
    report = done.report
    return {
        "train.loss.start": report.loss[:, 0],
        "train.loss": torch.where(report.steps > 0, report.loss[:, 1], torch.nan),
        "weight": report.weight.cpu(),
        "train.tokens": report.tokens,
        "train.steps": report.steps,
        "failed": report.failed.double(),
    }
