"""The oracle: clients whose texts are mostly of the same true domain share a model. What grouping could bring at best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import UserError
from .decision import Decision, Ground
from .vanilla import Vanilla


@dataclass(frozen=True)
class ByDomain(Vanilla):
    reads: ClassVar[bool] = True
    def begin(self, ground: Ground) -> Decision:
        if ground.domain is None or (ground.domain < 0).any():
            raise UserError("ByDomain groups clients by their true domains, and this corpus has none: use ByText, or find topics "
                            "by clustering (corpus.clusters=8)")
        names, group = np.unique(ground.domain, return_inverse=True)
        return Decision(group.astype(np.int64), len(names), {"signal": "ByDomain", "k": len(names), "bytes": 0})

    def caveats(self) -> list[str]:
        return ["ByDomain knows the true domain of every client: it is a bound for comparison, not a method"]


__all__ = ["ByDomain"]
