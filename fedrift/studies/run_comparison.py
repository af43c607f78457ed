"""Compare two runs: their configurations, and their metrics over the rounds that both have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.records import final_round_indices
from ..storage import Run
from ..storage.query import flatten

NOT_SET = "(none)"
FINAL_SHARED_EVALUATIONS = 5


@dataclass(frozen=True)
class MetricDifference:
    """The difference of one metric between two runs, for the federation or for one domain.

    Attributes:
        metric: The metric.
        domain: The domain, or "" for the federation.
        first: The mean of the first run over the last shared evaluations.
        second: The mean of the second run over the same evaluations.
        mean_difference: ``second - first``.
        max_difference: The difference with the largest absolute value in any shared round.
        max_difference_round: The round of ``max_difference``.
        num_shared_rounds: The number of rounds in which both runs recorded the metric.
    """

    metric: str
    domain: str
    first: float
    second: float
    mean_difference: float
    max_difference: float
    max_difference_round: int
    num_shared_rounds: int


def compare_configs(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """Return the configuration values that differ between two runs: path -> (first value, second value)."""
    left, right = (
        flatten({key: value for key, value in run.config.items() if key not in ("id", "partition_table")}) for run in (first, second)
    )
    return {
        path: (left.get(path, NOT_SET), right.get(path, NOT_SET))
        for path in {**left, **right}
        if left.get(path, NOT_SET) != right.get(path, NOT_SET)
    }


def compare_metrics(first: Run, second: Run) -> list[MetricDifference]:
    """Compare every metric of the federation and of domains that both runs recorded."""
    differences = []
    left, right = first.trajectory(), second.trajectory()
    for metric in sorted(set(left.metrics) & set(right.metrics)):
        domains = sorted(set(left.domains_of(metric)) & set(right.domains_of(metric)))
        for domain in ([""] if left.has_curve(metric) and right.has_curve(metric) else []) + domains:
            first_mask, second_mask = left.observed_mask(metric, domain), right.observed_mask(metric, domain)
            shared, first_index, second_index = np.intersect1d(left.rounds[first_mask], right.rounds[second_mask], return_indices=True)
            if not len(shared):
                continue
            first_values, second_values = (
                left.curve(metric, domain)[first_mask][first_index],
                right.curve(metric, domain)[second_mask][second_index],
            )
            is_equal = (first_values == second_values) | (np.isnan(first_values) & np.isnan(second_values))
            difference = np.subtract(second_values, first_values, out=np.zeros(len(shared)), where=~is_equal)
            largest = int(np.nanargmax(np.abs(difference))) if not np.isnan(difference).all() else 0
            final = final_round_indices(shared, FINAL_SHARED_EVALUATIONS)
            differences.append(
                MetricDifference(
                    metric,
                    domain,
                    float(first_values[final].mean()),
                    float(second_values[final].mean()),
                    float(difference[final].mean()),
                    float(difference[largest]),
                    int(shared[largest]),
                    len(shared),
                )
            )
    return differences
