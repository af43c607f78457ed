"""What a study will cost: its tokens, and the time they take at the speed that a short probe measures on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np

from ..experiment import Experiment, edit
from ..run import carry_out
from ..stock import Stock
from ..store import Run

ROUNDS = 3  # of the probe; the first is not counted


@dataclass(frozen=True)
class Speed:
    """Seconds of one kind of run: in all before its rounds, a token trained, a round's evaluation, the end."""

    begin: float
    token: float
    evaluate: float
    end: float

    def seconds(self, experiment: Experiment) -> float:
        evaluations = experiment.plan.rounds / experiment.evaluate.every
        return self.begin + tokens(experiment) * self.token + evaluations * self.evaluate + self.end


@dataclass(frozen=True)
class Cost:
    runs: int
    done: int
    tokens: float  # of the runs that are left
    seconds: float  # one after another on this machine; NaN if it was not measured
    tokens_per_second: float


def tokens(experiment: Experiment) -> float:
    """The tokens that all clients together train on, padding included; by ``steps`` also where epochs decide."""
    plan = experiment.plan
    return float(plan.rounds * plan.cohort(experiment.partition.clients) * plan.steps * plan.batch * plan.seq_len)


def kind(experiment: Experiment) -> tuple[object, ...]:
    """What decides how fast a run is, about: one probe serves all runs of a kind."""
    plan = experiment.plan
    return (experiment.model, experiment.tune, type(experiment.partition), plan.cohort(experiment.partition.clients), plan.batch,
            plan.seq_len, replace(experiment.evaluate, every=1, split="test"))


def probe(experiment: Experiment, stock: Stock) -> Speed:
    """A few rounds of an experiment, in a folder that goes again."""
    short = edit(experiment, {"plan__rounds": ROUNDS, "evaluate__every": 1})
    with tempfile.TemporaryDirectory() as folder:
        begun = perf_counter()
        run = carry_out(short, replace(stock, runtime=replace(stock.runtime, root=Path(folder))))
        wall, timings = perf_counter() - begun, run.timings()
    rounds = [row for row in timings if "train" in row]
    end = sum(row.get("final", 0.0) for row in timings)
    inside = sum(row["train"] + row["evaluate"] + row["store"] for row in rounds)
    late = rounds[1:]
    return Speed(max(0.0, wall - inside - end), float(np.mean([row["train"] for row in late])) / (tokens(short) / ROUNDS),
                 float(np.mean([row["evaluate"] + row["store"] for row in late])), end)


def cost(experiments: Iterable[Experiment], stock: Stock, measured: bool = True) -> Cost:
    """Of the runs that are not finished yet; ``measured``: with a probe of every kind of run among them."""
    every = list(experiments)
    left = [experiment for experiment in every if not Run(Path(stock.runtime.root), experiment.id).finished]
    speeds: dict[tuple[object, ...], Speed] = {}
    seconds = 0.0 if measured else float("nan")
    for experiment in left if measured else ():
        of = kind(experiment)
        if of not in speeds:
            speeds[of] = probe(experiment, stock)
        seconds += speeds[of].seconds(experiment)
    rate = 1 / float(np.mean([speed.token for speed in speeds.values()])) if speeds else float("nan")
    return Cost(len(every), len(every) - len(left), sum(map(tokens, left)), seconds, rate)
