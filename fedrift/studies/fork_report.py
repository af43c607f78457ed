"""Test causes by forks: rerun a run from some round on with one change, and compare the fork with its origin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.loader import parse_yaml
from ..config.schema import METADATA_KEYS, ExperimentConfig, parse_config
from ..core.errors import UserError, quote_value
from ..core.records import Trajectory
from ..core.tree import Tree, adapter_modules, to_float64
from ..diagnosis import Diagnosis, diagnose
from ..diagnosis.cases import RunIndex
from ..engine.fork import ForkedRun
from ..storage import Run
from ..storage.updates import UpdateLog

# Overrides of a fork, e.g. ``exclude_clients=3 training.client_optimizer.lr=0.1``.

EXCLUSION_KEYS = ("exclude_clients", "exclude_until")


def make_fork_config(origin: Run, round: int, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Build the configuration of a fork.

    This does not check that the fork is possible; ``ForkedRun.from_config`` does.

    Args:
        origin: The run to fork.
        round: First round that differs from the origin.
        overrides: Overrides such as ``training.client_optimizer.lr=0.1``, ``exclude_clients=3`` or ``exclude_until=9``.

    Raises:
        UserError: An override has no value or an invalid value.
    """
    overrides = list(overrides)
    config = {key: value for key, value in origin.config.items() if key not in (*METADATA_KEYS, "fork")}
    fork: dict[str, object] = {"run": origin.id, "from_round": round}
    config_overrides = [text for text in overrides if text.partition("=")[0].strip() not in EXCLUSION_KEYS]
    for text in overrides:
        key, separator, value = (part.strip() for part in text.partition("="))
        if key in EXCLUSION_KEYS and not separator:
            raise UserError(f"the override {quote_value(text)} has no value; write {key}=VALUE, e.g. exclude_clients=3")
        if key == "exclude_clients":
            fork[key] = [*fork.get(key, ()), *parse_clients(value)]  # type: ignore[misc]
        elif key == "exclude_until":
            fork[key] = parse_int(value, text)
    return parse_config({**config, "fork": fork}, config_overrides)


def parse_clients(value: str) -> list[int]:
    """Parse client ids such as ``3``, ``3,4`` or ``[3, 4]``."""
    return [parse_int(part, f"exclude_clients={value}") for part in value.strip("[]").split(",")]


def parse_int(value: str, override: str) -> int:
    """Parse a whole number of an override."""
    number = parse_yaml(value, f"the override {quote_value(override)}")
    if isinstance(number, bool) or not isinstance(number, int):
        raise UserError(
            f"{quote_value(value.strip())} in the override {quote_value(override)} is not a whole number; "
            "use a whole number, or several for exclude_clients (exclude_clients=3,4)"
        )
    return number


# Distance between the server models of two runs per round, and differences of their losses.
#
# The distance compares the weights that clients receive, i.e. B A plus the weights merged under the adapters. Factors B and A can
# differ although the models are equal. The distance is relative to the distance that the origin moved since the fork:
# sqrt(mean_k |W'_k - W_k|^2) / sqrt(mean_k |W_k - W0_k|^2), where k runs over clients and W_k is the model that serves client k.

ServedModels = tuple[Tree, Tree, Tensor]
"""Parameters ``[M, ...]``, merged base weights ``[M, ...]``, and the model of each client ``[N]``."""


@dataclass(frozen=True)
class RunDifference:
    """Difference between a fork and its origin after one round."""

    round: int
    distance: float  # distance of the server models, relative to the origin's movement since the fork
    origin: float  # loss of the origin in nats per token; NaN without an evaluation
    fork: float  # loss of the fork in nats per token; NaN without an evaluation
    domains: dict[str, float]  # loss of the fork minus the origin's, by domain

    @property
    def difference(self) -> float:
        """Return the fork's loss minus the origin's."""
        return self.fork - self.origin


def trace_differences(origin: Run, fork: Run) -> list[RunDifference]:
    """Compare a fork with its origin in every round that both have, from the last common round on.

    Both runs must have stored their updates.
    """
    start_round = int(fork.config["fork"]["from_round"]) - 1
    origin_log, fork_log = UpdateLog(origin), UpdateLog(fork)
    origin_records, fork_records = origin.trajectory(), fork.trajectory()
    start_params, rows = origin_log.load_params(start_round), []
    for round in sorted({*origin_log.rounds} & {*fork_log.rounds}):
        origin_params, fork_params = origin_log.load_params(round), fork_log.load_params(round)
        moved = model_distance(origin_params, start_params)
        distance = model_distance(fork_params, origin_params) / moved if moved else 0.0 if round == start_round else math.nan
        rows.append(
            RunDifference(
                round,
                distance,
                loss_at_round(origin_records, round),
                loss_at_round(fork_records, round),
                {
                    domain: loss_at_round(fork_records, round, domain) - loss_at_round(origin_records, round, domain)
                    for domain in loss_domains(origin_records)
                },
            )
        )
    return rows


def model_distance(first: ServedModels, second: ServedModels) -> float:
    """Compute sqrt(mean_k |W_k - W'_k|^2) over the clients k."""
    pairs, count = torch.stack([first[2].cpu(), second[2].cpu()], 1).unique(dim=0, return_counts=True)
    total = torch.zeros(len(pairs), dtype=torch.float64)
    first_weights, second_weights = effective_weights(*first[:2]), effective_weights(*second[:2])
    for name in first_weights:
        total += (to_float64(first_weights[name])[pairs[:, 0]] - to_float64(second_weights[name])[pairs[:, 1]]).square().flatten(1).sum(1)
    return float(((total * count).sum() / count.sum()).sqrt())


def effective_weights(params: Tree, base: Tree) -> Tree:
    """Compute the weights that clients receive, ``[M, ...]``.

    These are B A plus the merged base weights for modules with adapters; other leaves are unchanged.

    Args:
        params: Trained parameters, ``[M, ...]``.
        base: Merged base weights, ``[M, ...]``.
    """
    modules = adapter_modules(params)
    weights = {name: leaf for name, leaf in params.items() if name[:-2] not in modules}
    for module in modules:
        weights[module] = to_float64(params[module + ".B"]) @ to_float64(params[module + ".A"])
        if module + ".base" in base:
            weights[module] = weights[module] + to_float64(base[module + ".base"])
    return Tree(weights)


def loss_domains(run: Trajectory) -> tuple[str, ...]:
    """Return the domains for which a run recorded losses."""
    return run.domains_of("loss") if "loss" in run.metrics else ()


def loss_at_round(run: Trajectory, round: int, domain: str = "") -> float:
    """Return the loss after a round; NaN without an evaluation."""
    if not run.has_curve("loss", domain):
        return math.nan
    index = np.searchsorted(run.rounds, round)
    is_recorded = index < len(run.rounds) and run.rounds[index] == round
    return float(run.curve("loss", domain)[index]) if is_recorded else math.nan


# Report of a fork: a summary, and the findings of the detectors in both runs.

POSITIVE_GRADES = ("suspected", "confirmed")
MIN_VISIBLE_DIFFERENCE = 0.0005  # nats; smaller differences vanish when rounded to three digits


@dataclass(frozen=True)
class FindingChange:
    """The diagnosis of one failure mode in the origin and in the fork."""

    failure: str
    origin: Diagnosis
    fork: Diagnosis

    @property
    def sentence(self) -> str:
        """Describe the change in plain English.

        For example: ``divergence: only in the origin. Training failed: the loss is not a finite number in round 3 (1 of 1 seed). ...``
        """
        in_origin, in_fork = self.origin.grade in POSITIVE_GRADES, self.fork.grade in POSITIVE_GRADES
        if in_origin and in_fork:
            return f"{self.failure}: in both runs ({self.origin.strength:.1f}x and {self.fork.strength:.1f}x the threshold)"
        return f"{self.failure}: only in the {'origin' if in_origin else 'fork'}. {(self.origin if in_origin else self.fork).sentence}"


@dataclass(frozen=True)
class ForkReport:
    """Comparison of a fork with its origin."""

    origin: str  # id of the origin
    fork: str  # id of the fork
    round: int  # first round of the fork
    baseline: str  # id of the IID baseline that both are compared with, or ""
    change: str  # description of the change, e.g. ``without client 3``.
    has_reused_updates: bool  # whether the first round used the recorded updates of the clients
    rounds: tuple[RunDifference, ...]  # differences per round
    findings: tuple[FindingChange, ...]  # failure modes that are at least suspected in one of the runs

    @property
    def sentence(self) -> str:
        """Describe the effect of the change in plain English."""
        text = f"{self.change[:1].upper()}{self.change[1:]} from round {self.round} on"
        evaluated = [row for row in self.rounds if row.round >= self.round and math.isfinite(row.difference)]
        if all(row.distance == 0 for row in self.rounds):
            return f"{text}, the fork is identical to its origin, bit for bit."
        if not evaluated:
            return f"{text}, the server models differ from round {self.first_different_round} on; there is no finite loss to compare."
        first, last = evaluated[0], evaluated[-1]
        text += f", the loss after round {first.round} is {format_loss_change(first)}"
        if last is not first:
            text += f"; after round {last.round} it is {format_loss_change(last)}"
        return (
            f"{text}. The server models differ from round {self.first_different_round} on; their final distance is "
            f"{self.rounds[-1].distance:.2f} times the distance that the origin moved since round {self.round - 1}."
        )

    @property
    def first_different_round(self) -> int:
        """Return the first round after which the server models differ."""
        return next((row.round for row in self.rounds if row.distance != 0), self.round)

    def to_json(self) -> dict[str, Any]:
        """Convert the report to JSON values."""
        keys = ("origin", "fork", "round", "baseline", "change", "has_reused_updates", "sentence")
        return {
            **{name: getattr(self, name) for name in keys},
            "rounds": [{**asdict(row), "difference": row.difference} for row in self.rounds],
            "findings": [
                {
                    "failure": each.failure,
                    "sentence": each.sentence,
                    "origin": summarize_diagnosis(each.origin),
                    "fork": summarize_diagnosis(each.fork),
                }
                for each in self.findings
            ],
        }


def report_fork(forked_run: ForkedRun, known_runs: Iterable[Run]) -> ForkReport:
    """Compare a fork with its origin.

    The fork is diagnosed with the baseline and the reference runs of its origin, because these have the same seed.

    Args:
        forked_run: The finished fork.
        known_runs: Stored runs among which the baseline and the reference runs are found.
    """
    origin, fork = forked_run.origin, forked_run.run
    index = RunIndex.from_runs([*known_runs, origin, fork])
    baseline = index.find_baseline(origin)
    origin_evidence = index.build_evidence(origin, baseline)
    fork_evidence = replace(origin_evidence, run=fork.trajectory())
    return ForkReport(
        origin.id,
        fork.id,
        forked_run.fork.from_round,
        baseline.id if baseline else "",
        forked_run.description,
        forked_run.can_reuse_updates,
        tuple(trace_differences(origin, fork)),
        compare_diagnoses(diagnose([origin_evidence]), diagnose([fork_evidence]), forked_run.fork.exclude_clients),
    )


def compare_diagnoses(before: Sequence[Diagnosis], after: Sequence[Diagnosis], excluded: Sequence[int]) -> tuple[FindingChange, ...]:
    """Return the failure modes that are at least suspected in one of the two runs.

    Args:
        before: Diagnoses of the origin.
        after: Diagnoses of the fork.
        excluded: Clients that the fork excludes. Counting them as failed clients is not a finding.
    """
    by_failure, excluded_clients = {each.failure: each for each in after}, set(excluded)
    changes = [FindingChange(each.failure, each, by_failure[each.failure]) for each in before if each.failure in by_failure]
    changes = [each for each in changes if each.origin.grade in POSITIVE_GRADES or each.fork.grade in POSITIVE_GRADES]
    return tuple(
        each
        for each in changes
        if not (
            each.failure == "failed clients" and each.origin.grade not in POSITIVE_GRADES and set(each.fork.clients) <= excluded_clients
        )
    )


def format_loss_change(row: RunDifference) -> str:
    """Format the losses of a round, e.g. ``4.301 nats per token instead of 4.420 (-0.119), most in business (-0.400)``."""
    text = f"{row.fork:.3f} nats per token instead of {row.origin:.3f} ({row.difference:+.3f})"
    domain_name = max(
        (domain for domain, value in row.domains.items() if abs(value) >= MIN_VISIBLE_DIFFERENCE),
        key=lambda domain: abs(row.domains[domain]),
        default="",
    )
    return text + (f", most in {domain_name} ({row.domains[domain_name]:+.3f})" if domain_name else "")


def summarize_diagnosis(diagnosis: Diagnosis) -> dict[str, Any]:
    """Convert the main fields of a diagnosis to JSON values."""
    keys = ("grade", "cause", "first_round", "clients", "locations", "strength", "sentence")
    return {name: getattr(diagnosis, name) for name in keys}
