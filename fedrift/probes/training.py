"""What the clients' own training says: loss, tokens, steps, and who failed."""

from __future__ import annotations

import torch

from ..values import Round
from .probe import Reading


def local_training(done: Round) -> Reading:
    """Each client ``[C]``: ``train.loss`` mean over the local steps, ``train.loss.start`` of the first step (nats per
    token, without any regulariser); ``weight`` in the mean; ``train.tokens``; ``train.steps``; ``failed`` 0 or 1.
    Where clients are elsewhere, ``wire.down`` and ``wire.up``: bytes of tensors that travelled to each, and back."""
    report = done.report
    travelled: Reading = {}
    if report.wire is not None:
        travelled = {"wire.down": report.wire[:, 0].double(), "wire.up": report.wire[:, 1].double()}
    return {
        "train.loss.start": report.loss[:, 0],
        "train.loss": torch.where(report.steps > 0, report.loss[:, 1], torch.nan),
        "weight": report.weight.cpu(),
        "train.tokens": report.tokens,
        "train.steps": report.steps,
        "failed": report.failed.double(),
        **travelled,
    }
