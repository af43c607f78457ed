"""The hypotheses that a study file can state, and the statistical test of each kind.

Every hypothesis is about one metric and is written down before the runs. ``verdicts.evaluate_hypotheses`` turns the results into
verdicts. The list ``hypotheses:`` of a study file accepts the classes that ``__all__`` names.

A selection is ``{factor: level}`` or ``{factor: [levels]}``. IID baselines are excluded unless a selection has ``{iid: true}``. Two
sides are paired within each seed by all factors that neither selection names, and the pairs are averaged to one number per seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import MinLen

from ..core.lazy_imports import pd
from .comparisons import Equivalent, Greater, Interaction, Less, RateGreater, RecoveredFraction
from .contrasts import LinearContrast, MatchedDifference
from .hypothesis_base import Hypothesis
from .results import DecisionCriteria, HypothesisResult
from .trends import Trend


@dataclass(frozen=True, kw_only=True)
class All(Hypothesis):
    """Every hypothesis in ``parts`` holds.

    This is an intersection-union test (Berger, Technometrics 24, 1982): the p-value is the largest p-value of the parts, and the number of
    parts needs no correction.
    """

    parts: Annotated[tuple[Hypothesis, ...], MinLen(1)]

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        return combine_parts(self, [part.evaluate(runs, factors, criteria) for part in self.parts])


def combine_parts(hypothesis: All, results: Sequence[HypothesisResult]) -> HypothesisResult:
    """Combine the results of all parts by intersection-union; one part with the opposite sign refutes the whole hypothesis."""
    opposite = [part for part in results if not part.has_predicted_sign]
    if opposite:
        weakest = min(opposite, key=lambda part: part.p.value if not math.isnan(part.p.value) else 2.0)
        p = replace(weakest.p, value=min(1.0, weakest.p.value * len(results)))
    else:
        weakest = max(results, key=lambda part: part.p.value)
        p = replace(weakest.p, min_attainable_p=max(part.p.min_attainable_p for part in results))
    notes = tuple(
        f"{part_hypothesis.name}: {part.description} {part.interval.estimate:.3g} ({part.p})"
        for part_hypothesis, part in zip(hypothesis.parts, results, strict=True)
    )
    return replace(
        weakest,
        p=p,
        has_predicted_sign=not opposite,
        is_ruled_out=any(part.is_ruled_out for part in results),
        incomplete=max(part.incomplete for part in results),
        diverged=max(part.diverged for part in results),
        detectable=max(part.detectable for part in results),
        notes=notes,
        both_diverged=max(part.both_diverged for part in results),
        description=f"the weakest of {len(results)} parts, {weakest.description}",
    )


__all__ = [
    "All",
    "Equivalent",
    "Greater",
    "Interaction",
    "Less",
    "LinearContrast",
    "MatchedDifference",
    "RateGreater",
    "RecoveredFraction",
    "Trend",
]
