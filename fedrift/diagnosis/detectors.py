"""Detectors: what a run shows of one failure mode, beside its IID baseline. Grouped by family, one import line here.

A detector is a function of a ``RunEvidence`` that returns at least one ``Finding``; it reads records only. Its thresholds are in
``thresholds.yaml`` and nowhere else. Where a number that it needs is missing, its grade is "not measured".
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.registry import extensions
from .convergence import oscillation, server_overshoot, stalled_convergence
from .drift import aggregation_error, client_drift, control_variates
from .failures import dead_model, divergence, exploding_updates, failed_clients
from .finding import Finding, RunEvidence
from .forgetting import forgetting_during_absence, forgetting_general_text, forgetting_syntax, representation_collapse
from .loss_gaps import loss_gap, unfairness

Detector = Callable[[RunEvidence], list[Finding]]

# A run that shows one of these is broken: they come first.
FATAL_DETECTORS: tuple[Detector, ...] = (dead_model, divergence, exploding_updates, failed_clients)
# The order is the order of findings in every table.
ALL_DETECTORS: tuple[Detector, ...] = (
    *FATAL_DETECTORS,
    aggregation_error,
    representation_collapse,
    client_drift,
    forgetting_during_absence,
    forgetting_general_text,
    forgetting_syntax,
    loss_gap,
    oscillation,
    server_overshoot,
    control_variates,
    stalled_convergence,
    unfairness,
)


def run_detectors(case: RunEvidence) -> list[Finding]:
    """What every detector says of one run."""
    return [finding for detector in (*ALL_DETECTORS, *extensions("detector").values()) for finding in detector(case)]
