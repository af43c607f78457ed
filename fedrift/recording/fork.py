"""A fork: a run that resumes from the past of another, changed from one round on.

What it shares with its origin it does not compute again: records, events and state are the origin's. In the first round that may
differ the clients' own reports are taken from the record, unless the change touches what they would have sent.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from ..algorithms import FedAvg
from ..experiment import Experiment, Fork, parse_stored
from ..fleet import Fleet
from ..memory import Memory
from ..setting import Setting
from ..store import Run, find_run
from ..tree import Tree
from ..values import State
from .leaving import ForkedFleet
from .refusals import refused
from .state import device
from .updates import Updates

CLIENT = ("memory", "frozen", "start", "penalty", "correct", "settle", "note", "finish", "aside", "remember")  # hooks


@dataclass(frozen=True, eq=False)
class Parting:
    """A fork ``run`` and the run that it parts from, with what was asked of both."""

    run: Run
    origin: Run
    old: Experiment
    new: Experiment
    fork: Fork

    @staticmethod
    def of(run: Run, new: Experiment) -> Parting | None:
        """None where the experiment is no fork. Raises UserError where the run it names cannot be forked so."""
        if new.fork is None:
            return None
        origin = find_run(run.root, new.fork.run)
        old = asked(origin)
        refused(origin, old, new, new.fork)
        return Parting(run, origin, old, new, new.fork)

    def inherit(self) -> None:
        """Begin the fork's folder: all that its origin wrote of the rounds before, and its environment."""
        before, run = self.fork.round, self.run
        run.rewind(-1)
        run.write_json("environment", self.origin.environment)  # the same choices of arithmetic, or the last bits differ
        run.append(row for row in self.origin.records() if row.round < before)
        for event in self.origin.events():
            if event["round"] < before:
                run.event(**event)
        for took in self.origin.timings():
            if took["round"] < before:
                run.timing(**took)
        if decisions := self.origin.decisions():
            run.write_json("mitigation", [said for said in decisions if said["round"] < before])
        run.event(before - 1, "fork", f"it goes on {self.said} from here; so far it is run {self.origin.id}")

    def state(self, setting: Setting) -> State:
        """The origin's state before the fork's first round, as the fork's algorithm has it."""
        where = device(setting.state)
        return converted(Updates(self.origin).state(self.fork.round - 1, where), self.old.algorithm, self.new.algorithm)

    def fleet(self, inner: Fleet, setting: Setting) -> Fleet:
        """The fleet, with the record in place of the first round where that is right, and without those left out."""
        sent = partial(Updates(self.origin).report, self.fork.round, device(setting.state)) if self.reuses else None
        return ForkedFleet(inner, self.fork, sent)

    @cached_property
    def reuses(self) -> bool:
        """Whether the clients would have sent the same in the fork's first round."""
        return server_side(self.old, self.new, self.fork.round, self.leaves)

    @property
    def leaves(self) -> Collection[str]:
        return Updates(self.origin).params(self.fork.round - 1)[0].keys()

    @property
    def said(self) -> str:
        """What is changed, in words: ``without client 3 up to round 9, with plan.clip 0.5 instead of 1.0``."""
        gone, until = self.fork.drop_client, self.fork.drop_until
        without = f"without client{'s' if len(gone) > 1 else ''} {', '.join(map(str, gone))}" + (
            f" up to round {until}" if until else "")
        other = [f"{path} {new}" + (f" instead of {old}" if old is not None else "")
                 for path, old, new in changes(self.old, self.new) if new is not None]
        words = ([without] if gone else []) + ([f"with {', '.join(other)}"] if other else [])
        return ", ".join(words) or "with nothing changed"


def asked(run: Run) -> Experiment:
    """The experiment of a stored run."""
    return parse_stored(run.experiment)


def changes(old: Experiment, new: Experiment) -> list[tuple[str, object, object]]:
    """Path, old and new value of everything that is not the same in two experiments, but for the fork."""
    one, two = flat(old.written()), flat(new.written())
    return [(path, one.get(path), two.get(path)) for path in {**one, **two}
            if one.get(path) != two.get(path) and path.split(".")[0] != "fork"]


def flat(said: object, path: str = "") -> dict[str, object]:
    """Nested keys as dotted paths; the class of a value goes by the path of the value."""
    if not isinstance(said, dict):
        return {path: said}
    return {at: leaf for key, part in said.items()
            for at, leaf in flat(part, path if key == "is" else f"{path}.{key}" if path else key).items()}


def server_side(old: Experiment, new: Experiment, round: int, leaves: Collection[str]) -> bool:
    """Whether a change leaves what the clients send in this round: they train the same steps at the same rate by the same
    hooks. (What is sent to them is the same in any case: the state is.)"""
    alike = replace(new.plan, rounds=old.plan.rounds, schedule=old.plan.schedule) == old.plan
    if not alike or old.plan.factor(round - 1) != new.plan.factor(round - 1):
        return False
    one, two = old.algorithm, new.algorithm
    if one.frozen(leaves, round - 1) != two.frozen(leaves, round - 1):
        return False
    if type(one) is type(two):
        return replace(two, server=one.server, aggregate=one.aggregate) == one
    return all(getattr(type(each), hook) is getattr(FedAvg, hook) for each in (one, two) for hook in CLIENT if hook != "frozen")


def converted(state: State, old: FedAvg, new: FedAvg) -> State:
    """The state under another algorithm: the models stay; what the new one keeps and the old one did not begins anew.

    A server rule that stays of its class keeps its moments, an algorithm that stays of its class what it shares and remembers.
    What was merged under the adapters stays, for it is part of the model.
    """
    if old == new:
        return state
    server, params = state.server, state.server.params
    fresh = new.server.init(params)
    same, rule = type(old) is type(new), type(old.server) is type(new.server) and fresh.keys() == server.moments.keys()
    shared = server.shared if same else new.shared(params)
    kept = new.memory(params.to(torch.device("cpu")).rows(state.group.cpu()))
    averages = state.averages if same else Tree()  # of another memory: the round loop computes them anew
    return replace(state, memory=state.memory if same else Memory.of(kept, len(state.group)), averages=averages, server=replace(
        server, shared=shared, moments=server.moments if rule else fresh, base=server.base or new.aggregate.begin(params)))


__all__ = ["Parting", "asked", "changes", "converted", "server_side"]
