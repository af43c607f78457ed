"""The way that the server's model takes: how far each step, how far in all, how straight, and whether it turns back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..tree import Tree
from ..values import Round
from .bench import Bench
from .panel import After, Look, Past, number
from .probe import Reading

GROUP = "updates"


@dataclass(frozen=True, eq=False)
class Path:
    """``update.step`` |w_{t+1} - w_t|, ``update.travelled`` |w_{t+1} - w_0|, ``update.turn`` cos(Delta_t, Delta_{t-1}).

    A turn that stays below 0 is oscillation in the space of the parameters; of independent steps it is about 0. Where
    there are several models, the mean over the clients of the model that each shares. What an aggregate merges under the
    adapters is not in here (``product.turn`` is not said there at all).
    """

    start: Tree  # [1, ...] w_0

    def __call__(self, done: Round) -> Reading:
        moved, group = done.after.moved, done.after.group.cpu()
        reading: Reading = {
            "update.step": moved.norm().cpu()[group].mean(),
            "update.travelled": apart(done.after.server.params, self.start).cpu()[group].mean()}
        before = done.before.moved
        if before and len(next(iter(before.values()))) == len(next(iter(moved.values()))):
            turn = moved.dot(before) / (moved.norm() * before.norm())
            reading["update.turn"] = turn.cpu()[group].nanmean()  # a model that stood still has no direction
        return reading


def apart(params: Tree, start: Tree) -> Tensor:
    """How far each model is from one, ``[M, ...]`` and ``[1, ...]`` to ``[M]``, float64."""
    return params.map(lambda leaf, first: leaf.double() - first.double(), start).norm()


def efficiency(reading: Reading, past: Past) -> Reading:
    """``update.efficiency``: the distance travelled over the length of the path, 1 on a straight line, about 1 / sqrt(t) on
    a random one."""
    step, far = number(reading, "update.step"), number(reading, "update.travelled")
    length = past.total.get(("update.step", ""), 0.0) + step
    return {"update.efficiency": far / length} if length > 0 else {}


def looks(bench: Bench) -> list[Look | After]:
    """The server's way, and what the algorithm itself knows of the round."""
    return [Look("path", Path(bench.start)), After("path", efficiency), Look("evidence", bench.algorithm.evidence)]


__all__ = ["Path", "apart", "efficiency", "looks"]
