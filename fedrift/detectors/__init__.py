"""Detectors: what a run shows of one failure mode, beside its IID twin. One file each, one import line here.

A detector is a function of a ``Case`` that returns at least one ``Finding``; it reads records only. Its thresholds are in
``thresholds.yaml`` and nowhere else. Where a number that it needs is missing, its grade is "not measured".
"""

from __future__ import annotations

from collections.abc import Callable

from .absence import forgetting_absent
from .aggregation import aggregation
from .collapse import collapse
from .dead import dead_model
from .divergence import divergence
from .drift import drift
from .explosion import explosion
from .finding import Case, Finding
from .forgetting import forgetting_pretrained, forgetting_syntax
from .gap import gap
from .left_out import left_out
from .oscillation import oscillation
from .overshoot import overshoot
from .staleness import staleness
from .stall import stall
from .unfairness import unfairness

Detector = Callable[[Case], list[Finding]]

__all__ = ["aggregation", "collapse", "dead_model", "divergence", "drift", "explosion", "forgetting_absent",
           "forgetting_pretrained", "forgetting_syntax", "gap", "left_out", "oscillation", "overshoot", "staleness", "stall",
           "unfairness"]
BROKEN: tuple[Detector, ...] = (dead_model, divergence, explosion, left_out)  # a run that shows these is broken: they come first
ALL: tuple[Detector, ...] = (*BROKEN, *(each for name in __all__ if (each := globals()[name]) not in BROKEN))


def findings(case: Case) -> list[Finding]:
    """What every detector says of one run."""
    return [finding for detector in ALL for finding in detector(case)]
