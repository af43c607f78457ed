"""Causes, not correlations: a run forked at a round with one thing changed, and where the two part."""

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
from ..core.tree import Tree, to_float64
from ..probes.lora import adapter_modules
from ..storage import Run
from ..storage.fork import ForkedRun, UpdateLog
from .across_seeds import Diagnosis, diagnose
from .cases import RunIndex

# What is asked of a fork, in words: ``exclude_clients=3 training.client_optimizer.lr=0.1``.

EXCLUSION_KEYS = ("exclude_clients", "exclude_until")


def make_fork_config(origin: Run, round: int, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """The experiment of a fork of a run from a round on. Whether it can be is asked when it begins."""
    overrides = list(overrides)
    said = {key: value for key, value in origin.config.items() if key not in (*METADATA_KEYS, "fork")}
    fork: dict[str, object] = {"run": origin.id, "from_round": round}
    rest = [text for text in overrides if text.partition("=")[0].strip() not in EXCLUSION_KEYS]
    for text in overrides:
        key, sign, value = (part.strip() for part in text.partition("="))
        if key in EXCLUSION_KEYS and not sign:
            raise UserError(f"{quote_value(text)}: wanted {key}=VALUE, e.g. exclude_clients=3")
        if key == "exclude_clients":
            fork[key] = [*fork.get(key, ()), *parse_clients(value)]  # type: ignore[misc]
        elif key == "exclude_until":
            fork[key] = parse_int(value, text)
    return parse_config({**said, "fork": fork}, rest)


def parse_clients(value: str) -> list[int]:
    """``3``, ``3,4`` or ``[3, 4]``."""
    return [parse_int(one, f"exclude_clients={value}") for one in value.strip("[]").split(",")]


def parse_int(value: str, override: str) -> int:
    number = parse_yaml(value, f"the override {quote_value(override)}")
    if isinstance(number, bool) or not isinstance(number, int):
        raise UserError(
            f"{quote_value(override)}: wanted a whole number, or several for exclude_clients (exclude_clients=3,4); "
            f"got {quote_value(value.strip())}"
        )
    return number


# Where two runs part: how far apart their servers are, round by round, and what that does to the losses.
#
# The distance is between the weights that clients are served, B A and what is merged under it, not between B and B and A and A,
# which can differ where the models do not. It is told in units of how far the origin has gone since the fork began:
# sqrt(mean_k |W'_k - W_k|^2) / sqrt(mean_k |W_k - W0_k|^2), k over the clients, each with the model it shares.

ServedModels = tuple[Tree, Tree, Tensor]
"""Params ``[M, ...]``, what is merged under them ``[M, ...]``, and who shares which ``[N]``."""


@dataclass(frozen=True)
class Divergence:
    """One round of both. Losses in nats per token, NaN where there was no evaluation; ``domains``: the fork's loss less the
    origin's."""

    round: int
    distance: float
    origin: float
    fork: float
    domains: dict[str, float]

    @property
    def difference(self) -> float:
        return self.fork - self.origin


def trace_divergence(origin: Run, fork: Run) -> list[Divergence]:
    """Round by round, from the one before the fork on, as far as both went."""
    since = int(fork.config["fork"]["from_round"]) - 1
    one, two = UpdateLog(origin), UpdateLog(fork)
    ours, theirs = origin.trajectory(), fork.trajectory()
    start, rows = one.load_params(since), []
    for round in sorted({*one.rounds} & {*two.rounds}):
        before, after = one.load_params(round), two.load_params(round)
        gone = model_distance(before, start)
        distance = model_distance(after, before) / gone if gone else 0.0 if round == since else math.nan
        rows.append(
            Divergence(
                round,
                distance,
                loss_at_round(ours, round),
                loss_at_round(theirs, round),
                {domain: loss_at_round(theirs, round, domain) - loss_at_round(ours, round, domain) for domain in loss_domains(ours)},
            )
        )
    return rows


def model_distance(one: ServedModels, two: ServedModels) -> float:
    """sqrt(mean_k |W_k - W'_k|^2) over the clients."""
    pairs, count = torch.stack([one[2].cpu(), two[2].cpu()], 1).unique(dim=0, return_counts=True)
    total = torch.zeros(len(pairs), dtype=torch.float64)
    first, second = effective_weights(*one[:2]), effective_weights(*two[:2])
    for name in first:
        total += (to_float64(first[name])[pairs[:, 0]] - to_float64(second[name])[pairs[:, 1]]).square().flatten(1).sum(1)
    return float(((total * count).sum() / count.sum()).sqrt())


def effective_weights(params: Tree, base: Tree) -> Tree:
    """What is served, ``[M, ...]``: B A and what is merged under it where there are adapters, any other leaf as it is."""
    modules = adapter_modules(params)
    served = {name: leaf for name, leaf in params.items() if name[:-2] not in modules}
    for module in modules:
        served[module] = to_float64(params[module + ".B"]) @ to_float64(params[module + ".A"])
        if module + ".base" in base:
            served[module] = served[module] + to_float64(base[module + ".base"])
    return Tree(served)


def loss_domains(run: Trajectory) -> tuple[str, ...]:
    return run.domains_of("loss") if "loss" in run.metrics else ()


def loss_at_round(run: Trajectory, round: int, domain: str = "") -> float:
    """The loss after a round."""
    if not run.has_curve("loss", domain):
        return math.nan
    place = np.searchsorted(run.rounds, round)
    there = place < len(run.rounds) and run.rounds[place] == round
    return float(run.curve("loss", domain)[place]) if there else math.nan


# What the parting of two runs says: sentences, and what the detectors find in the one and in the other.

POSITIVE_GRADES = ("suspected", "confirmed")
MIN_VISIBLE_DIFFERENCE = 0.0005  # nats; less is not to be seen in three digits


@dataclass(frozen=True)
class FindingChange:
    """One failure, before and after the change."""

    failure: str
    origin: Diagnosis
    fork: Diagnosis

    @property
    def sentence(self) -> str:
        """``divergence: gone (was: loss is no number; ...)``."""
        was, now = self.origin.grade in POSITIVE_GRADES, self.fork.grade in POSITIVE_GRADES
        if was and now:
            return f"{self.failure}: in both ({self.origin.strength:.1f}x and {self.fork.strength:.1f}x its limit)"
        return f"{self.failure}: {'gone. It was ' if was else 'new. '}{(self.origin if was else self.fork).sentence}"


@dataclass(frozen=True)
class ForkReport:
    """A fork beside its origin."""

    origin: str
    fork: str
    round: int
    baseline: str  # the IID twin that both are held against; "" if none was run
    change: str  # what was changed
    has_reused_updates: bool
    rounds: tuple[Divergence, ...]
    findings: tuple[FindingChange, ...]

    @property
    def sentence(self) -> str:
        """What the change did, in plain English."""
        words = f"{self.change[:1].upper()}{self.change[1:]} from round {self.round} on"
        seen = [row for row in self.rounds if row.round >= self.round and math.isfinite(row.difference)]
        if all(row.distance == 0 for row in self.rounds):
            return f"{words}, it is the same run, bit for bit."
        if not seen:
            return f"{words}, the servers part in round {self.first_divergent_round}; there is no finite loss to compare."
        first, last = seen[0], seen[-1]
        words += f", the loss after round {first.round} is {format_loss_change(first)}"
        if last is not first:
            words += f"; after round {last.round} it is {format_loss_change(last)}"
        return (
            f"{words}. The servers part in round {self.first_divergent_round} and end {self.rounds[-1].distance:.2f} times as "
            f"far apart as the origin went since round {self.round - 1}."
        )

    @property
    def first_divergent_round(self) -> int:
        """The first round after which the servers differ."""
        return next((row.round for row in self.rounds if row.distance != 0), self.round)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
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
    """Both runs side by side. The fork is judged by the baseline and the anchors of its origin: they are of the same seed."""
    origin, fork = forked_run.origin, forked_run.run
    shelf = RunIndex.from_runs([*known_runs, origin, fork])
    twin = shelf.find_baseline(origin)
    before = shelf.build_evidence(origin, twin)
    after = replace(before, run=fork.trajectory())
    return ForkReport(
        origin.id,
        fork.id,
        forked_run.fork.from_round,
        twin.id if twin else "",
        forked_run.description,
        forked_run.can_reuse_updates,
        tuple(trace_divergence(origin, fork)),
        compare_diagnoses(diagnose([before]), diagnose([after]), forked_run.fork.exclude_clients),
    )


def compare_diagnoses(before: Sequence[Diagnosis], after: Sequence[Diagnosis], excluded: Sequence[int]) -> tuple[FindingChange, ...]:
    """What is found in either. Excluded clients that count as failed clients are no finding."""
    now, ours = {each.failure: each for each in after}, set(excluded)
    pairs = [FindingChange(each.failure, each, now[each.failure]) for each in before if each.failure in now]
    pairs = [each for each in pairs if each.origin.grade in POSITIVE_GRADES or each.fork.grade in POSITIVE_GRADES]
    return tuple(
        each
        for each in pairs
        if not (each.failure == "failed clients" and each.origin.grade not in POSITIVE_GRADES and set(each.fork.clients) <= ours)
    )


def format_loss_change(row: Divergence) -> str:
    """``4.301 nats per token instead of 4.420 (-0.119), most in business (-0.400)``."""
    words = f"{row.fork:.3f} nats per token instead of {row.origin:.3f} ({row.difference:+.3f})"
    most = max(
        (domain for domain, value in row.domains.items() if abs(value) >= MIN_VISIBLE_DIFFERENCE),
        key=lambda domain: abs(row.domains[domain]),
        default="",
    )
    return words + (f", most in {most} ({row.domains[most]:+.3f})" if most else "")


def summarize_diagnosis(diagnosis: Diagnosis) -> dict[str, Any]:
    """What a script wants of a diagnosis."""
    keys = ("grade", "cause", "first_round", "clients", "locations", "strength", "sentence")
    return {name: getattr(diagnosis, name) for name in keys}


__all__ = [
    "Divergence",
    "FindingChange",
    "ForkReport",
    "effective_weights",
    "make_fork_config",
    "model_distance",
    "report_fork",
    "trace_divergence",
]
