"""Probes compute metrics from a round without changing it. Each module of this package holds one family of probes."""

from .base import (
    DerivedMetric,
    MetricHistory,
    MetricValues,
    Probe,
    ProbeSuite,
    ScheduledProbe,
    choose_interval,
    overhead_summary,
    overhead_warning,
    to_records,
)
from .context import ProbeContext
from .held_out import HeldOut, append_rewritten, build_held_out, bytes_per_token, count_client_domain_tokens
from .lora import aggregation_error
from .losses import HeldOutLosses, evaluate_personalized
from .registry import PROBE_GROUPS, find_probe_group
from .updates import training_metrics, update_geometry

__all__ = [
    "PROBE_GROUPS",
    "DerivedMetric",
    "HeldOut",
    "HeldOutLosses",
    "MetricHistory",
    "MetricValues",
    "Probe",
    "ProbeContext",
    "ProbeSuite",
    "ScheduledProbe",
    "aggregation_error",
    "append_rewritten",
    "build_held_out",
    "bytes_per_token",
    "choose_interval",
    "count_client_domain_tokens",
    "evaluate_personalized",
    "find_probe_group",
    "overhead_summary",
    "overhead_warning",
    "to_records",
    "training_metrics",
    "update_geometry",
]
