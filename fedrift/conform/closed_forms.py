"""Published results with closed forms, as acceptance: AT-2 and AT-4 to AT-7.

AT-2 SCAFFOLD's lower-bound pair (arXiv:1910.06378, section 7), AT-4 the bias of a fixed learning rate (Li et al., ICLR
2020, arXiv:1907.02189), AT-5 FedNova's limits, AT-6 q-FFL's way to the minimax, AT-7 SCAFFOLD under heavy sampling.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..algorithms import AFL, Ditto, FedAvg, FedNova, QFedAvg, Scaffold
from ..optimizers import named, part
from ..seeds import numpy_stream
from ..tree import Tree
from ..values import Local
from .ours import Ours
from .outcome import Outcome, near
from .problem import Problem


def answer(algorithm: FedAvg, problem: Problem) -> list[float]:
    return Ours(problem.algorithm, lambda o, lr: algorithm).run(problem)


def duel(steps: int, gap: float, rounds: int) -> Problem:
    """f1 = x^2 + G x, f2 = -G x: SCAFFOLD paper, section 7; the optimum of the mean is 0."""
    return Problem("pair", "scaffold", "", (2.0, 0.0), (0.0, 0.0), ((0, 1),) * rounds, (steps, steps), x=1.0,
                   slope=(gap, -gap))


def q2(steps: tuple[int, int], rounds: int, lr: float = 0.1, x: float = 5.0) -> Problem:
    """a = (1, 4), b = (0, 1): the optimum of the mean is 0.8."""
    return Problem("Q2", "fedavg", "", (1.0, 4.0), (0.0, 1.0), ((0, 1),) * rounds, steps, lr=lr, x=x)


def ends(algorithm: FedAvg, problem: Problem) -> float:
    """The fixed point of a memoryless algorithm: a round is x <- m x + c."""
    c, other = (answer(algorithm, replace(problem, x=x, cohorts=((0, 1),)))[0] for x in (0.0, 1.0))
    return c / (1 - (other - c))


def first_within(path: list[float], goal: float, bound: float = 1e-6) -> int:
    return next((number for number, x in enumerate(path, 1) if abs(x - goal) < bound), -1)


def lower_bound() -> Iterable[Outcome]:
    for steps, bias in ((2, 0.0555555556), (10, 0.6202902)):
        for gap in (1.0, 10.0, 100.0):
            yield near("AT-2", f"FedAvg's bias, K={steps}, G={gap:g}", bias * gap, ends(FedAvg(), duel(steps, gap, 1)))
    for steps, needed in ((2, (65, 66, 69)), (10, (18, 24, 28))):
        for gap, rounds in zip((1.0, 10.0, 100.0), needed, strict=True):
            found = first_within(answer(Scaffold(), duel(steps, gap, rounds + 5)), 0.0)
            yield near("AT-2", f"SCAFFOLD's rounds to 1e-6, K={steps}, G={gap:g}", rounds, found, 0)
    found = first_within(answer(FedAvg(), duel(1, 1.0, 140)), 0.0)
    yield near("AT-2", "gradient descent's rounds to 1e-6", 132, found, 0)


def fixed_rate() -> Iterable[Outcome]:
    for lr, point in ((0.001, 0.7978358), (0.01, 0.7780381), (0.1, 0.6041260)):
        yield near("AT-4", f"FedAvg ends, lr={lr:g}", point, ends(FedAvg(), q2((10, 10), 1, lr)), 1e-7)
    x, errors = 5.0, {10: 0.0792, 100: 0.01125}
    for round in range(101):
        x = answer(FedAvg(), q2((10, 10), 1, 0.1 / (1 + round / 5), x))[0]
        if round in errors:
            yield near("AT-4", f"error after t={round}, lr = 0.1 / (1 + t/5)", errors[round], abs(x - 0.8), 1e-4)


def unequal_steps() -> Iterable[Outcome]:
    known = ((1e-3, 0.9747060, 0.7939637), (0.01, 0.9655648, 0.7371194), (0.1, 0.8403312, 0.3448193))
    for lr, fedavg, fednova in known:
        for rule, point in ((FedAvg(), fedavg), (FedNova(), fednova)):
            yield near("AT-5", f"{type(rule).__name__} ends, 2 and 20 steps, lr={lr:g}", point,
                       ends(rule, q2((2, 20), 1, lr)), 1e-7)


def fairness() -> Iterable[Outcome]:
    for q, point in ((0.0, 0.8), (1.0, 0.7158963), (5.0, 0.6805196), (20.0, 0.6704129)):
        yield near("AT-6", f"q-FedAvg ends, q={q:g}", point, answer(QFedAvg(q=q), q2((1, 1), 150, x=0.7))[-1], 2e-6)
    yield near("AT-6", "AFL ends at the minimax", 2 / 3, answer(AFL(rate=0.2), q2((1, 1), 300, x=0.7))[-1], 1e-4)


def own_models() -> Iterable[Outcome]:
    """Ditto on ``q2``: (a b + lam w) / (a + lam) around w = 0.8, where one step a round leads FedAvg."""
    for lam, points in ((0.0, (0.0, 1.0)), (1.0, (0.4, 0.96)), (5.0, (0.6666667, 0.8888889))):
        for client, point in enumerate(points):
            asked = replace(q2((1, 1), 250), algorithm="ditto", asks=client)
            yield near("Ditto", f"where it ends, lam={lam:g}, client {client}", point, answer(Ditto(lam=lam), asked)[-1])


@dataclass(frozen=True)
class OptionOne(Scaffold):
    """SCAFFOLD's Option I, c_k+ = g_k(w), as a negative control: it goes stale where Option II does not."""

    def correct(self, grad: Tree, at: Local) -> Tree:
        return grad - Tree({name: at.memory[name] for name in grad}) + at.shared

    def note(self, grad: Tree, at: Local, ours: torch.Tensor) -> Local:
        if part("first", at.memory):
            return at
        return replace(at, memory=Tree({**at.memory, **named("first", grad)}))

    def remember(self, at: Local) -> Tree:
        return part("first", at.memory)


def heavy_sampling(rounds: int = 150) -> Iterable[Outcome]:
    """Ten quadratics of curvature 0.5 to 4.667, one of them a round; and the two of ``q2``, one a round."""
    draw = numpy_stream(0, "ten clients")
    a, b = np.linspace(0.5, 4.667, 10), draw.normal(0, 1, 10)
    goal = float((a * b).sum() / a.sum())
    one = tuple((int(k),) for k in draw.integers(0, 10, rounds))
    for reach in (2.0, 4.0):
        asked = Problem("ten", "scaffold", "", tuple(a.tolist()), tuple(b.tolist()), one, (10,) * 10, x=goal + 1,
                        lr=reach / (10 * 4.667))
        fedavg, first, second = (float(np.abs(np.array(answer(rule, asked)[-50:]) - goal).mean())
                                 for rule in (FedAvg(), OptionOne(), Scaffold()))
        yield Outcome("AT-7", f"one of ten a round, K lr L = {reach:g}: error of SCAFFOLD II",
                      "< 1/10 of I's and FedAvg's",
                      f"{second:.2g} (I {first:.2g}, FedAvg {fedavg:.2g})", 10 * second < min(first, fedavg))
    turns = tuple((int(k),) for k in draw.integers(0, 2, 60))
    stale, sound = (answer(rule, replace(q2((10, 10), 1), cohorts=turns)) for rule in (OptionOne(), Scaffold()))
    peak, end = max(abs(x - 0.8) for x in stale[10:]), abs(sound[-1] - 0.8)
    yield Outcome("AT-7", "one of two a round: SCAFFOLD I's worst error after round 10", "> 1", f"{peak:.2g}", peak > 1)
    yield Outcome("AT-7", "one of two a round: SCAFFOLD II's error after round 60", "< 1e-5", f"{end:.2g}", end < 1e-5)


def closed_forms() -> list[Outcome]:
    """AT-2 and AT-4 to AT-7: seconds."""
    return [*lower_bound(), *fixed_rate(), *unequal_steps(), *fairness(), *own_models(), *heavy_sampling()]
