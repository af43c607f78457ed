"""Costs of a run as study metrics: quality under a cost budget, and cost to a target quality.

The two protocols are those of EdgeFlowerTune (Geng et al., arXiv:2605.08636), from the costs that every run records:

- ``loss.under:bytes=2e6``, ``loss.under:tokens=50000``, ``loss.under:seconds=30``: the loss at the last evaluation before the run has
  spent more than that; never the best one. Round 0 has cost nothing.
- ``bytes.to:4.2``, ``tokens.to:4.2``, ``seconds.to:4.2``: what the run had spent at its first evaluation with a loss not above 4.2;
  infinite if there is none.

Bytes are those to and from all clients of the rounds, tokens those that all clients trained on, and seconds those of the training phase
as they were measured. The seconds of a simulation are those of the machine that simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ..core.errors import UserError, quote_value
from ..core.records import Trajectory

Cost = Literal["bytes", "tokens", "seconds"]
COSTS: tuple[Cost, ...] = get_args(Cost)
# What a trajectory must hold for them.
COST_RECORDS = ("loss", "weight", "cost.down", "cost.up", "wire.down", "wire.up", "train.tokens")
BUDGET_PREFIX = "loss.under:"


@dataclass(frozen=True)
class CostMetric:
    """A study metric about costs: the loss under a cost budget of ``value``, or the cost to a loss of ``value``."""

    cost: Cost
    value: float
    is_budget: bool


def parse_cost_metric(name: str) -> CostMetric | None:
    """Read the name of a study metric; None if it is not about costs.

    Raises:
        UserError: The cost or the number in it is not allowed.
    """
    if name.startswith(BUDGET_PREFIX):
        cost, _, text = name.removeprefix(BUDGET_PREFIX).partition("=")
        if cost not in COSTS:
            raise UserError(
                f"metrics: {quote_value(name)} has the cost {quote_value(cost)}; write loss.under:bytes=2e6, tokens= or seconds="
            )
        return CostMetric(cost, parse_positive(name, text), True)
    cost, mark, text = name.partition(".to:")
    if mark and cost in COSTS:
        return CostMetric(cost, parse_positive(name, text), False)
    return None


def parse_positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UserError(f"metrics: {quote_value(name)} needs a number above 0, for example loss.under:bytes=2e6 or bytes.to:4.2")
    return value


def summarize_cost(metric: CostMetric, run: Trajectory, timings: Sequence[Mapping[str, Any]] = ()) -> float:
    """One metric about costs.

    Args:
        metric: What is asked.
        run: The run's records, ``COST_RECORDS`` among them.
        timings: The run's timings, which seconds are read from.

    Returns:
        The loss in nats per token, or the cost in bytes, tokens or seconds; NaN where the run did not record the cost or a loss.
    """
    spent = cumulative_cost(run, metric.cost, timings)
    if spent is None or not run.has_curve("loss"):
        return math.nan
    observed = run.observed_mask("loss")
    loss, spent = run.curve("loss")[observed], spent[observed]
    if metric.is_budget:
        within = np.flatnonzero(spent <= metric.value)
        return float(loss[within[-1]]) if len(within) else math.nan
    reached = np.flatnonzero(loss <= metric.value)
    return float(spent[reached[0]]) if len(reached) else math.inf


def cumulative_cost(run: Trajectory, cost: Cost, timings: Sequence[Mapping[str, Any]] = ()) -> np.ndarray | None:
    """What the run had spent after each of its rounds, ``[rounds]``; None if that was not recorded."""
    per_round = {"bytes": bytes_per_round, "tokens": tokens_per_round}.get(cost)
    values = seconds_per_round(run, timings) if per_round is None else per_round(run)
    return None if values is None else np.cumsum(np.nan_to_num(values))


def bytes_per_round(run: Trajectory) -> np.ndarray | None:
    """Bytes to and from all clients of each round: as they traveled, or the sizes of the tensors times the clients that took part."""
    if run.has_client_table("wire.down") and run.has_client_table("wire.up"):
        return np.nansum(run.client_table("wire.down"), axis=1) + np.nansum(run.client_table("wire.up"), axis=1)
    if not (run.has_curve("cost.down") and run.has_curve("cost.up") and run.has_client_table("weight")):
        return None
    cohort = (~np.isnan(run.client_table("weight"))).sum(axis=1)
    return (run.curve("cost.down") + run.curve("cost.up")) * cohort


def tokens_per_round(run: Trajectory) -> np.ndarray | None:
    """Tokens that all clients trained on in each round."""
    return np.nansum(run.client_table("train.tokens"), axis=1) if run.has_client_table("train.tokens") else None


def seconds_per_round(run: Trajectory, timings: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Seconds of the training phase of each round."""
    if not any("train" in row for row in timings):
        return None
    total: dict[int, float] = {}
    for row in timings:
        total[int(row["round"])] = total.get(int(row["round"]), 0.0) + float(row.get("train", 0.0))
    return np.array([total.get(int(number), 0.0) for number in run.rounds])


__all__ = ["COSTS", "COST_RECORDS", "CostMetric", "cumulative_cost", "parse_cost_metric", "summarize_cost"]
