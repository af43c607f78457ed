"""Any regime with its severity in common units: the dial is what is measured, not what is nominal."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..corpus.corpus import Corpus
from ..errors import UserError
from .calibrate import calibrate, label_severity, token_severity
from .partition import Clients, Partition, Partitioner, Severity, called
from .topic_mix import TopicMix

MEASURES = {"domains": label_severity, "words": token_severity}


@dataclass(frozen=True)
class Calibrated:
    """Severity 0: the IID twin of ``of``. Severity s: its dial where the clients' divergence measures s, within 0.01.

    ``unit``: the divergence of the clients' domains, or of their words above chance, each as a share of the
    most there can be. The dial is found by bisection on the very documents and draws of the deal.
    ``clients`` and ``severity`` are said here, and ``of`` has neither. A severity that the regime cannot measure
    is refused with what it can; ``otherwise: nearest`` takes the nearest it can.
    """

    clients: Clients = 10
    severity: Severity = 1.0
    of: Partitioner = TopicMix()
    unit: Literal["domains", "words"] = "domains"
    otherwise: Literal["refuse", "nearest"] = "refuse"

    @property
    def inner(self) -> str:
        """What is calibrated."""
        return called(self.of)

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        return self.found(corpus, rng)(corpus, rng)

    def found(self, corpus: Corpus, rng: np.random.Generator) -> Partitioner:
        """The regime with its dial set; ``rng`` stays as it was."""
        regime: Any = self.of
        plain = type(regime)()
        for name in ("clients", "severity"):
            if getattr(regime, name) not in (getattr(plain, name), getattr(self, name)):
                raise UserError(f"partition.of.{name} is {getattr(regime, name)}, partition.{name} "
                                f"{getattr(self, name)}: say it once, as partition.{name}")
        start: Partitioner = replace(regime, clients=self.clients, severity=0.0)
        if self.severity == 0:
            return start
        return calibrate(start, corpus, self.severity, lambda: deepcopy(rng), severity=MEASURES[self.unit],
                         nearest=self.otherwise == "nearest")
