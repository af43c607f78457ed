"""The fields that all hypotheses share, and the comparison of two groups of runs per seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, MaxLen

from ..core.lazy_imports import pd
from .results import DecisionCriteria, HypothesisResult
from .selection import Contrast, PerSeedValues, Selection, format_selection, outcome_values, select_runs, shared_factors, values_per_seed
from .significance import WorstEnd

FactorLevels = dict[str, Any]
NonNegative = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """The fields that all hypotheses share. Subclasses implement ``evaluate``.

    Attributes:
        name: The unique name of the hypothesis within a study.
        claim: The claim in words.
        family: The family over which Holm's procedure corrects the p-values.
        metric: The outcome that the hypothesis is about.
        where: The selection of runs that both sides share.
        contrast: "none", or "iid_baseline" to subtract the metric of each run's own IID baseline.
        worst_end: The end at which a diverged run ranks. By default it is the bad end of the metric.

    Example:
        A study file states hypotheses like this one::

            hypotheses:
              - type: Greater
                name: drift
                claim: FedAvg loses more to non-IID data than FedSGD.
                metric: loss
                contrast: iid_baseline
                group: {algorithm: FedAvg}
                reference: {algorithm: FedSGD}
    """

    name: str
    claim: Annotated[str, MaxLen(10_000)] = ""
    family: str = "main"
    metric: str = ""
    where: FactorLevels = field(default_factory=dict)
    contrast: Contrast = "none"
    worst_end: WorstEnd | None = None

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test the hypothesis on a table of runs.

        Args:
            runs: One row per run, with the columns that ``fedrift.stats.selection`` describes.
            factors: The columns by which runs are paired.
            criteria: The significance level and the power.
        """
        raise NotImplementedError


def group_difference(
    hypothesis: Hypothesis,
    runs: pd.DataFrame,
    factors: Sequence[str],
    group: Selection,
    reference: Selection,
    *also: Selection,
    scale: str = "difference",
) -> tuple[PerSeedValues, int]:
    """Return ``group`` minus ``reference`` per seed (``group`` alone if ``reference`` is empty), and the number of diverged runs."""
    table = outcome_values(
        runs,
        hypothesis.metric,
        None,
        hypothesis.contrast,
        hypothesis.worst_end,
        "ratio" if scale == "ratio" else "difference",
        include_baselines=True,
    )
    left = select_runs(table, hypothesis.where, group, *also)
    right = select_runs(table, hypothesis.where, reference, *also) if reference else None
    named = {*group, *reference, *(name for selection in also for name in selection)}
    pairing = [f for f in factors if f not in named] if right is None else shared_factors(left, right, factors, list(named))
    return values_per_seed(left, right, pairing), count_diverged(runs, hypothesis.contrast, left, *([] if right is None else [right]))


def count_diverged(runs: pd.DataFrame, contrast: str, *sides: pd.DataFrame) -> int:
    """Count the diverged runs of the given sides once each; with ``contrast: iid_baseline`` their IID baselines are included."""
    baselines = [side["iid_baseline"] for side in sides if contrast == "iid_baseline"]
    names = set().union(*(side["run"] for side in sides), *baselines)
    return int(runs.drop_duplicates("run").set_index("run")["diverged"].reindex(sorted(map(str, names))).eq(True).sum())


def metric_label(hypothesis: Hypothesis) -> str:
    """Return the metric, with a note if it is relative to the IID baseline."""
    return hypothesis.metric + (" minus the IID baseline's" if hypothesis.contrast == "iid_baseline" else "")


def format_groups(group: Selection, reference: Selection) -> str:
    """Format the two sides in words, for example `` of algorithm FedAvg against algorithm FedSGD``."""
    first = f" of {format_selection(group)}" if group else ""
    return f"{first} against {format_selection(reference)}" if reference else first
