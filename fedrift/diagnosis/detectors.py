"""Register the detectors. Each detects one failure mode of a run, compared with its IID baseline where there is one.

A detector is a function of a ``RunEvidence`` that returns at least one ``Finding`` and reads only records. All thresholds are in
``thresholds.yaml``. If a required number is missing, the grade is "not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..core.errors import UserError, quote_value
from ..core.registry import extensions, find_extension, import_path_of
from .convergence import oscillation, server_overshoot, stalled_convergence
from .drift import aggregation_error, client_drift, control_variates
from .failures import dead_model, divergence, exploding_updates, failed_clients
from .finding import Finding, RunEvidence
from .forgetting import forgetting_during_absence, forgetting_general_text, forgetting_syntax, representation_collapse
from .loss_gaps import loss_gap, unfairness

Detector = Callable[[RunEvidence], list[Finding]]
"""A function that detects one failure mode. Example::

    def high_final_loss(evidence: RunEvidence) -> list[Finding]:
        rounds, loss = read_curve(evidence.run)
        if not len(loss):
            return make_not_measured("high final loss", "a loss")
        is_high = bool(loss[-1] > 10)
        message = f"the final loss is {loss[-1]:.2f} nats per token"
        grade = single_run_grade(is_high)
        return [Finding("high final loss", grade, message, loss[-1], math.nan, 10.0, "nats per token", is_positive=is_high)]
"""

# These failures invalidate a run, so they are reported first.
FATAL_DETECTORS: tuple[Detector, ...] = (dead_model, divergence, exploding_updates, failed_clients)
# This order determines the order of findings in tables.
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


def run_detectors(evidence: RunEvidence, own_detectors: Iterable[Detector] = ()) -> list[Finding]:
    """Run all detectors on one run: those of fedrift, registered extensions, and the given ones. None of them runs twice.

    Raises:
        UserError: A detector does not return a list of findings.
    """
    findings: list[Finding] = []
    for detector in dict.fromkeys((*ALL_DETECTORS, *extensions("detector").values(), *own_detectors)):
        found: object = detector(evidence)
        if not isinstance(found, list) or not found or not all(isinstance(finding, Finding) for finding in found):
            raise UserError(
                f"the detector {import_path_of(detector)} returned {quote_value(found)}; it must return a list of one or more Finding"
            )
        findings += found
    return findings


def find_detector(name: str) -> Detector:
    """Return a detector that is not part of fedrift.

    Args:
        name: The name of a registered detector, or an import path such as ``my_detector.py:my_function``.

    Raises:
        UserError: There is no such detector, or it is not a function.
    """
    detector: Detector | None = find_extension("detector", name)
    if detector is None:
        registered = ", ".join(extensions("detector")) or "none"
        raise UserError(
            f"no detector {quote_value(name)}: give an import path such as my_detector.py:my_function, or a registered name ({registered})"
        )
    if not callable(detector) or isinstance(detector, type):
        raise UserError(f"{quote_value(name)} is not a detector: a detector is a function of a run's evidence that returns findings")
    return detector
