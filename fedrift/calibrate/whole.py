"""Whole runs of language models with something planted in them: the real setting, round loop and panel, and no run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..detectors.finding import Facts
from ..experiment import Experiment
from ..fleet import Fleet, SimulatedFleet
from ..fleet.fleet import Rule
from ..fleet.simulated import Batches
from ..models.tune import blocks_of
from ..probes import Past, recorded
from ..records import Trajectory
from ..rounds import rounds
from ..run import observe
from ..setting import prepare
from ..stock import Stock
from ..streams import torch_stream
from ..tree import Tree
from ..values import Draw, Report, State


@dataclass(frozen=True)
class Asked:
    """An experiment, and what is planted in it.

    ``draw``: who takes part, where it is not left to chance. ``broken``: clients whose losses are not numbers. ``drawn``: how
    far the last block's states are drawn onto one direction in the last round, growing from half-way on. ``turned``: every
    second client sends -B and -A, the same model written otherwise, so that the mean of factors cancels.
    """

    experiment: Experiment
    draw: Draw | None = None
    broken: tuple[int, ...] = ()
    drawn: float = 0.0
    turned: bool = False


@dataclass(frozen=True)
class InTurn:
    """One client a round, in turn: all others sit out."""

    def __call__(self, state: State, count: int, seed: int) -> Tensor:
        return torch.tensor([state.round % len(state.group)])


@dataclass(frozen=True)
class Only:
    """These clients and nobody else."""

    clients: tuple[int, ...]

    def __call__(self, state: State, count: int, seed: int) -> Tensor:
        return torch.tensor(self.clients)


def carry_out(asked: Asked, stock: Stock) -> tuple[Trajectory, Facts]:
    """The run, from round 0 to its end, and what is known of it."""
    experiment = asked.experiment
    plan = experiment.plan
    setting = prepare(experiment, stock)
    state, past, model = setting.state, Past(), setting.model
    fleet = setting.fleet
    if asked.broken:
        fleet = replace(fleet, batches=Marked(fleet.batches, asked.broken), objective=Spoilt(fleet.objective))
    at = Place(plan.rounds)
    working: Fleet = Turned(fleet) if asked.turned else fleet
    with crowded(model, asked.drawn, at) if asked.drawn else nullcontext():
        rows = recorded(setting.panel.first(state, past)[0], 0, [], fleet.size)
        past.note(rows)
        for done in rounds(state, working, experiment.algorithm, until=plan.rounds, cohort=setting.cohort, seed=experiment.seed,
                           draw=asked.draw or setting.work.draw):
            at.round = done.after.round
            rows += observe(done, setting, past)[0]
    table = setting.table
    return Trajectory(tuple(rows)), Facts(plan.steps, tuple(table["domains"]), tuple(map(tuple, table["tokens"])))


@dataclass(frozen=True)
class Marked:
    """Batches that say whose loss is to be spoilt, ``spoilt [A]``."""

    batches: Batches
    clients: tuple[int, ...]

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        for batch in self.batches(round, cohort):
            who = cohort[batch.get("rows", torch.arange(len(cohort)))]
            yield {**batch, "spoilt": torch.isin(who, torch.tensor(self.clients))}


@dataclass(frozen=True)
class Spoilt:
    """A loss that is not a number for those who are marked."""

    objective: Any

    def __call__(self, params: Tree, batch: dict[str, Tensor]) -> Tensor:
        spoilt = batch["spoilt"]
        loss: Tensor = self.objective(params, {name: leaf for name, leaf in batch.items() if name != "spoilt"})
        return torch.where(spoilt.to(loss.device), torch.nan, 1.0).to(loss) * loss


@dataclass(frozen=True)
class Turned:
    """A fleet whose odd clients write their adapters B A as (-B)(-A)."""

    fleet: SimulatedFleet

    @property
    def size(self) -> int:
        return self.fleet.size

    def train(self, state: State, algorithm: Rule, cohort: Tensor) -> Report:
        report = self.fleet.train(state, algorithm, cohort)
        start, odd = state.server.params.rows(state.group[cohort]), cohort % 2 == 1
        return replace(report, delta=(start * -2.0 - report.delta).where(odd & ~report.failed, report.delta))


@dataclass
class Place:
    """Where a run is."""

    last: int
    round: int = 0

    def strength(self, most: float) -> float:
        """Nothing in the first half, then growing evenly to ``most``."""
        return most * max(0.0, 2 * self.round / self.last - 1)


@contextmanager
def crowded(model: Any, most: float, at: Place) -> Iterator[None]:
    """The last block's states h become h - s (h - v v'h), with one direction v: what later layers see is crowded together."""
    block = blocks_of(model.network)[1][-1]
    width = model.network.get_input_embeddings().weight.shape[1]
    way = torch.nn.functional.normalize(torch.randn(width, generator=torch_stream(0, "crowded")), dim=0)

    def draw(module: Any, args: Any, out: Any) -> Any:
        states, strength = out[0] if isinstance(out, tuple) else out, at.strength(most)
        v = way.to(states)
        states = states - strength * (states - (states @ v)[..., None] * v)
        return (states, *out[1:]) if isinstance(out, tuple) else states

    hook = block.register_forward_hook(draw)
    try:
        yield
    finally:
        hook.remove()
