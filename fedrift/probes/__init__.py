"""Probes compute metrics from a round without changing it. Each module of this package holds one family of probes.

A module of probes defines the name of its group and a factory ``(context) -> probes``. One line in ``PROBE_GROUPS`` registers the
group, which ``evaluation.probes`` may then name.
"""

from collections.abc import Callable, Iterable

from ..core.errors import unknown_name_error
from ..core.registry import extensions, find_extension
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
from .classification import CLASSIFICATION_GROUP, classification_probes
from .context import ProbeContext
from .federation import COST_GROUP, FAIRNESS_GROUP, cost_probes, fairness_probes
from .forgetting import GENERAL_GROUP, LANGUAGE_GROUP, general_text_probes, language_probes
from .held_out import BlockOptions, HeldOut, append_rewritten, build_held_out, bytes_per_token, count_client_domain_tokens
from .lora import EXACT_MEAN_GROUP, PRODUCT_GROUP, SUBSPACE_GROUP, aggregation_error, exact_mean_probes, product_probes, subspace_probes
from .losses import HeldOutLosses, evaluate_personalized
from .mode_connectivity import BARRIERS_GROUP, barrier_probes
from .representation import ATTENTION_GROUP, HIDDEN_GROUP, attention_probes, hidden_state_probes
from .syntax import SYNTAX_GROUP, syntax_probes
from .text import TEXT_GROUP, text_probes
from .updates import SERVER_PATH_GROUP, server_path_probes, training_metrics, update_geometry

ProbeFactory = Callable[[ProbeContext], list[ScheduledProbe | DerivedMetric]]
"""A function that builds the probes of a group from the context of a run. Example::

    def cohort_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
        return [ScheduledProbe("cohort size", lambda result: {"cohort.size": float(len(result.cohort))})]
"""


def group_factories(pairs: Iterable[tuple[str, ProbeFactory]]) -> dict[str, ProbeFactory]:
    """Collect the factories of each group. The factories of one group are called in order and their probes are joined."""
    by_group: dict[str, list[ProbeFactory]] = {}
    for group, factory in pairs:
        by_group.setdefault(group, []).append(factory)

    def join(factories: list[ProbeFactory]) -> ProbeFactory:
        return lambda context: [probe for factory in factories for probe in factory(context)]

    return {group: join(factories) for group, factories in by_group.items()}


# This order determines the order of rows in records.jsonl.
PROBE_GROUPS: dict[str, ProbeFactory] = group_factories(
    [
        (ATTENTION_GROUP, attention_probes),
        (BARRIERS_GROUP, barrier_probes),
        (CLASSIFICATION_GROUP, classification_probes),
        (COST_GROUP, cost_probes),
        (EXACT_MEAN_GROUP, exact_mean_probes),
        (FAIRNESS_GROUP, fairness_probes),
        (GENERAL_GROUP, general_text_probes),
        (HIDDEN_GROUP, hidden_state_probes),
        (LANGUAGE_GROUP, language_probes),
        (SERVER_PATH_GROUP, server_path_probes),
        (PRODUCT_GROUP, product_probes),
        (SUBSPACE_GROUP, subspace_probes),
        (SYNTAX_GROUP, syntax_probes),
        (TEXT_GROUP, text_probes),
    ]
)


def find_probe_group(name: str) -> ProbeFactory:
    """Return the factory of a probe group.

    Args:
        name: Name of a group of fedrift, name of a registered group, or import path of a factory.

    Raises:
        UserError: There is no such group.
    """
    factory: ProbeFactory | None = PROBE_GROUPS.get(name) or find_extension("probe", name)
    if factory is None:
        raise unknown_name_error("probe group (evaluation.probes)", name, [*PROBE_GROUPS, *extensions("probe")])
    return factory


__all__ = [
    "PROBE_GROUPS",
    "BlockOptions",
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
