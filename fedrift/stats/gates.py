"""Which conditions count: where the IID baseline learned too little, nothing that happens beside it is evidence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from ..core.lazy_imports import pd
from .hypothesis_base import Hypothesis
from .selection import require_columns, select_runs
from .verdicts import Verdict, evaluate_hypotheses


@dataclass(frozen=True)
class Gate:
    """A condition counts only where the mean of ``metric`` over its seeds is at least ``min``.

    Attributes:
        metric: The outcome that is asked; by default what the IID baseline gained from its start to its end, in nats.
        min: The least mean that counts.
        action: ``void``: a hypothesis that uses a void condition has no verdict but "void". ``drop``: void conditions are left out, and
            the hypothesis is judged on the others, if any are left on each side.
    """

    metric: str = "baseline.gain"
    min: float = 0.15
    action: Literal["void", "drop"] = "void"


def find_void_conditions(runs: pd.DataFrame, gate: Gate) -> dict[tuple[Any, Any], float]:
    """The conditions, by stage and name, whose mean is below the gate's, and their means; those without a number count."""
    require_columns(runs, [gate.metric, "stage", "condition"], "outcome")
    rows = runs[~runs["iid"].to_numpy(dtype=bool)]
    means = rows.groupby(["stage", "condition"], observed=True)[gate.metric].agg(_mean_of_known)
    return {cast(tuple[Any, Any], name): float(value) for name, value in means.items() if value < gate.min}


def _mean_of_known(values: pd.Series) -> float:
    known = values.dropna().to_numpy(dtype=np.float64)
    return float(known.mean()) if len(known) else math.nan


def list_selections(hypothesis: Hypothesis) -> Iterator[tuple[dict[str, Any], ...]]:
    """Every set of selections by which a hypothesis chooses runs."""
    parts = getattr(hypothesis, "parts", ())
    for part in parts:
        yield from list_selections(part)
    if parts:
        return
    where = hypothesis.where
    if terms := getattr(hypothesis, "terms", ()):
        yield from ((where, term.select) for term in terms)
        return
    sides = [getattr(hypothesis, "group", {})] + [side for name in ("reference", "target") if (side := getattr(hypothesis, name, {}))]
    places = [getattr(hypothesis, name) for name in ("inside", "outside") if hasattr(hypothesis, name)] or [{}]
    yield from ((where, side, place) for side in sides for place in places)


def list_used_conditions(hypothesis: Hypothesis, runs: pd.DataFrame) -> set[tuple[Any, Any]]:
    """The conditions whose runs a hypothesis compares, by stage and name."""
    found: set[tuple[Any, Any]] = set()
    for selections in list_selections(hypothesis):
        rows = select_runs(runs, *selections)
        found |= set(zip(rows["stage"], rows["condition"], strict=True))
    return found


def evaluate_gated(
    hypotheses: Sequence[Hypothesis], runs: pd.DataFrame, factors: Sequence[str], gate: Gate | None = None
) -> tuple[Verdict, ...]:
    """The verdict on every hypothesis; "void" where a condition that it uses did not pass the gate.

    A void hypothesis keeps its place in its family: Holm's correction is for all that were registered.
    """
    if gate is None or not len(runs):
        return evaluate_hypotheses(hypotheses, runs, factors)
    void = find_void_conditions(runs, gate)
    names = list(zip(runs["stage"], runs["condition"], strict=True))
    outside = np.array([name in void for name in names], dtype=bool) & ~runs["iid"].to_numpy(dtype=bool)
    remaining = runs[~outside] if gate.action == "drop" else runs
    found = []
    for hypothesis, verdict in zip(hypotheses, evaluate_hypotheses(hypotheses, remaining, factors), strict=True):
        used = list_used_conditions(hypothesis, runs)
        bad = sorted(((void[name], name[1]) for name in used if name in void), key=lambda pair: (pair[0], str(pair[1])))
        if bad and (gate.action == "void" or len(bad) == len(used)):
            verdict = void_verdict(verdict, bad, gate)
        elif bad:
            verdict = replace(
                verdict, notes=(*verdict.notes, f"{len(bad)} of {len(used)} conditions are void and left out: {describe_gate(bad, gate)}")
            )
        found.append(verdict)
    return tuple(found)


def void_verdict(verdict: Verdict, conditions: Sequence[tuple[float, str]], gate: Gate) -> Verdict:
    """The same numbers without a judgment."""
    message = f"{verdict.name} is void: {describe_gate(conditions, gate)}."
    return replace(verdict, verdict="void", sentence=message, notes=(verdict.sentence, *verdict.notes))


def describe_gate(conditions: Sequence[tuple[float, str]], gate: Gate) -> str:
    """By how much the weakest condition failed, in words."""
    value, name = conditions[0]
    if gate.metric == "baseline.gain":
        return f"the baseline gained only {value:.3g} nats in {name}, and {gate.min:g} were needed"
    return f"{gate.metric} is only {value:.3g} in {name}, and {gate.min:g} was needed"
