"""Values of conditions for the paper of the study: means, and paired differences with their intervals, by their address in its texts.

An address is ``study/stage/level, level/metric``, as in ``study_paper.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedrift.report import study_outcomes
from fedrift.report.format import DASH, format_interval, format_number, format_signed, pluralize, seed_mean_ci
from fedrift.report.study_data import Condition, StudyData

IN_NATS = (
    *("loss", "gap", "last.", "final.loss", "final.gap", "final.clients", "gain.clients", "worst client"),
    *("absence", "baseline.absence", "rise after"),
)


def is_in_nats(metric: str) -> bool:
    """Return whether an outcome is a loss or a difference of losses."""
    return metric.startswith(IN_NATS) and not metric.startswith("gap.relative")


def read_values(studies: Mapping[str, StudyData], address: str) -> dict[int, float]:
    """Return an outcome of a condition by seed.

    Args:
        studies: The studies by name.
        address: ``study/stage/level, level/outcome``, with an outcome of `study_outcomes.find_outcome`, which may end in `` of the IID
            baseline``. The condition is the one of the stage that has all the levels, which may be
            written as ``factor=level``. With several levels separated by ``|``, or ``*`` in
            place of the stage, the result is the smallest value among the conditions, in each seed.

    Raises:
        SystemExit: No condition or several conditions have the levels, or the address is not complete.
    """
    parts = address.split("/")
    if len(parts) != 4:
        raise SystemExit(f"scripts/study_paper.yaml: {address!r} is not study/stage/levels/outcome")
    data, stage = studies[parts[0]], parts[1]
    is_level = any(parts[2] in list_level_names(condition) for condition in data.conditions)  # the name of a level may have a comma
    wanted = [{parts[2]}] if is_level else [set(level.split("|")) for level in parts[2].split(", ")]
    found = [
        condition
        for condition in data.conditions
        if stage in ("*", condition.stage) and all(levels & list_level_names(condition) for levels in wanted)
    ]
    if not found or (len(found) > 1 and stage != "*" and "|" not in parts[2]):
        raise SystemExit(f"scripts/study_paper.yaml: {len(found)} conditions of {parts[0]}/{stage} have {parts[2]!r}; name exactly one")
    name, _, of_baseline = parts[3].partition(" of the ")
    values = study_outcomes.find_outcome(data, name)
    columns = [condition.baselines if of_baseline else condition.runs for condition in found]
    return {seed: min(values.get(column.get(seed, ""), math.nan) for column in columns) for seed in found[0].runs}


def list_level_names(condition: Condition) -> set[str]:
    """Return the names of the levels of a condition, alone and with their factor: ``1`` and ``partition.severity=1``."""
    return {*condition.levels.values(), *(f"{factor}={level}" for factor, level in condition.levels.items())}


def mean_of_condition(studies: Mapping[str, StudyData], address: str) -> float:
    """Return the mean of an outcome over the seeds of a condition; ``ADDRESS - ADDRESS`` is the difference of two means.

    Raises:
        SystemExit: No condition or several conditions have the levels, or the outcome is missing.
    """
    if " - " in address:
        first, second = address.split(" - ")
        return mean_of_condition(studies, first) - mean_of_condition(studies, second)
    mean = mean_of_finite(list(read_values(studies, address).values()))
    if math.isnan(mean):
        raise SystemExit(f"scripts/study_paper.yaml: {address} is missing in a seed, or not finite")
    return mean


@dataclass(frozen=True)
class Difference:
    """Hold a difference with its interval.

    Attributes:
        mean: The difference.
        low: The lower end of its interval.
        high: The upper end of its interval.
        level: The confidence level of the interval, from 0 to 1.
        is_loss: Whether it is in nats per token.
    """

    mean: float
    low: float
    high: float
    level: float
    is_loss: bool

    def format(self) -> str:
        """Format the difference with its sign: ``-0.116 nats (-0.133 to -0.100)``, and ``, 90 %`` after an interval of another level."""
        return f"{format_signed(self.mean)}{self.unit} ({format_interval(self.low, self.high, is_signed=True)}{self.other_level})"

    def describe(self) -> str:
        """State the difference in words: ``0.116 nats (0.100 to 0.133) below``. A negative end of the interval lies on the other side."""
        low, high = (-self.high, -self.low) if self.mean < 0 else (self.low, self.high)
        side = "below" if self.mean < 0 else "above"
        return f"{format_number(abs(self.mean))}{self.unit} ({format_interval(low, high)}{self.other_level}) {side}"

    @property
    def unit(self) -> str:
        """Return the unit, after a space."""
        return " nats" if self.is_loss else ""

    @property
    def other_level(self) -> str:
        """Return the confidence level if it is not 95 %."""
        return "" if math.isnan(self.level) or round(100 * self.level, 6) == 95 else f", {100 * self.level:.4g} %"


def read_difference(studies: Mapping[str, StudyData], words: str) -> Difference:
    """Return the mean over seeds of the difference of two conditions, or of one, with its 95 % t-interval.

    Raises:
        SystemExit: The two conditions have other seeds, or an outcome is missing.
    """
    first, *others = [read_values(studies, address) for address in words.split(" - ")]
    seeds = set(first)
    if len(others) > 1 or any(set(other) != seeds for other in others):
        raise SystemExit(f"scripts/study_paper.yaml: {words!r} does not name one or two conditions with the same seeds")
    values = [first[seed] - sum(other[seed] for other in others) for seed in sorted(seeds)]
    mean, low, high, _ = seed_mean_ci(values)
    if math.isnan(mean) or any(map(math.isnan, values)):
        raise SystemExit(f"scripts/study_paper.yaml: {words} is missing in a seed, or not finite")
    return Difference(mean, low, high, 0.95, is_in_nats(words.split(" - ")[0].split("/")[3]))


def matched_progress(studies: Mapping[str, StudyData]) -> str:
    """Compare the damped server with FedAvg at the round at which FedAvg's IID baseline has the loss of the damped server's.

    The round is interpolated between evaluations, in each seed. Both losses are of one evaluation.
    """
    data, parts = studies["recency"], []
    curves = {run: study_outcomes.get_series(each, "loss") for run, each in study_outcomes.trajectories(data).items()}

    def find(stage: str, regime: str, method: str) -> Condition:
        wanted = {regime, method, "1"}
        return next(each for each in data.conditions if each.stage == stage and wanted == set(each.levels.values()))

    for regime, words in (("style", "under styles"), ("sandbox", "on the synthetic corpus")):
        if (regime, "damped") not in {(each.levels.get("regime"), each.levels.get("method")) for each in data.conditions}:
            return ""
        damped, fedavg = find("remedies", regime, "damped"), find("participation", regime, "FedAvg")
        rounds, differences = [], []
        for seed, run in damped.runs.items():
            target = curves[damped.baselines[seed]][1][-1]
            places, losses = curves[fedavg.baselines[seed]]
            crossed = np.flatnonzero(losses <= target)
            if not len(crossed):  # the other baseline never comes so far
                continue
            after = int(crossed[0])
            share = 0.0 if after == 0 else (losses[after - 1] - target) / (losses[after - 1] - losses[after])
            rounds.append(places[after] if after == 0 else places[after - 1] + share * (places[after] - places[after - 1]))
            differences.append(curves[run][1][-1] - np.interp(rounds[-1], *curves[fedavg.runs[seed]]))
        mean, low, high, count = seed_mean_ci(differences)
        if count:
            parts.append(
                f"{Difference(mean, low, high, 0.95, True).describe()} FedAvg {words} (round {sum(rounds) / len(rounds):.1f} of"
                f" {int(places[-1])}, {pluralize(count, 'seed')})"
            )
    return (
        "Exploratory, not registered: the damped server and FedAvg are also compared at equal progress, which is the round at which the IID"
        " baseline of FedAvg has the last loss of the damped server's IID baseline; seeds without such a round are left out. At the end the"
        f" damped server lies {' and '.join(parts)} at that round."
        if parts
        else ""
    )


def value_cell(studies: Mapping[str, StudyData], row: str, column: str) -> str:
    """Return one cell of a table of `value_tables`."""
    outcome, *reference = column.split(" - ")
    address = row.replace("@", outcome)
    if all(map(math.isnan, read_values(studies, address).values())):
        return DASH
    if reference:
        return read_difference(studies, f"{address} - {reference[0]}").format().replace(" nats", "")
    return format_number(mean_of_finite(list(read_values(studies, address).values())))


def mean_of_finite(values: Sequence[float]) -> float:
    """Return the mean, or NaN if one of the values is not finite, since a mean over the rest would be over other conditions."""
    return sum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan
