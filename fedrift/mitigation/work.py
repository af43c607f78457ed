"""A mitigation at work in one run: the first state, who takes part, what happens between rounds, what probes see."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..algorithms import FedAvg
from ..errors import UserError
from ..fleet.fleet import Fleet
from ..rounds import begin
from ..tree import Tree
from ..values import Round, State
from .carry import carried
from .decision import Decision, Ground
from .draw import stratified
from .soft import MixingFleet, Soft, mixed
from .vanilla import Vanilla


@dataclass(frozen=True, eq=False)
class Work:
    """One mitigation on its ground, around one algorithm. ``told``: the decisions that nobody has read yet, with their rounds."""

    mitigation: Vanilla
    ground: Ground
    algorithm: FedAvg
    told: list[tuple[int, Decision]] = field(default_factory=list, repr=False)

    def begin(self, params: Tree) -> State:
        """Round 0, from params ``[1, ...]``: one model a group, all the same unless the mitigation must tell them apart."""
        decision = self.mitigation.begin(self.ground)
        state = begin(self.algorithm, params, self.ground.size)
        if decision is None:
            return state
        if state.server.models > 1:
            raise UserError(f"{type(self.algorithm).__name__} gives every client a model of its own: there is nobody to group by "
                            f"{type(self.mitigation).__name__}; leave the mitigation out")
        models = params.rows(torch.zeros(decision.models, dtype=torch.long))
        state = replace(state, server=self.algorithm.begin(self.mitigation.first(models, self.ground)),
                        group=torch.as_tensor(decision.group).long(), mitigation=decision.keep)
        settled = self.mitigation.settle(state, self.ground)
        self.told.append((0, settled or decision))
        return carried(state, settled, self.algorithm) if settled else state

    def draw(self, state: State, count: int, seed: int) -> Tensor:
        """The coming round's cohort: every group in proportion, or the whole fleet where the mitigation calls it."""
        if self.mitigation.calls(state.round):
            return torch.arange(self.ground.size)
        if type(self.mitigation) is Vanilla:  # an algorithm may group clients for itself
            return stratified(torch.zeros_like(state.group), count, seed, state.round)
        return stratified(state.group, count, seed, state.round)

    def regroup(self, done: Round) -> State:
        """The state after a round, under whatever the mitigation decides now."""
        decision = self.mitigation.regroup(done, self.ground)
        if decision is None:
            return done.after
        self.told.append((done.after.round, decision))
        return carried(done.after, decision, self.algorithm)

    def fleet(self, fleet: Fleet) -> Fleet:
        """Who trains: the fleet, or the fleet with mixtures."""
        return MixingFleet(fleet) if isinstance(self.mitigation, Soft) else fleet

    def worn(self, state: State) -> State:
        """The state in the models that clients use: where they mix them, N mixtures."""
        return mixed(state) if "share" in state.mitigation else state

    def seen(self, done: Round) -> Round:
        """A round as probes see it."""
        return replace(done, before=self.worn(done.before), after=self.worn(done.after))


__all__ = ["Work"]
