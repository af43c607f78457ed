"""What a round costs each client to send and to receive."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

from ..tree import Tree
from ..values import Round
from .bench import Bench
from .panel import After, Look
from .probe import Reading

GROUP = "cost"


class Sender(Protocol):
    """What is asked of an algorithm here."""

    tells: ClassVar[frozenset[str]]

    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]: ...


@dataclass(frozen=True, eq=False)
class Traffic:
    """``cost.down`` and ``cost.up``: bytes that a client receives and sends in the round, uncompressed, in the type they are in.

    Down: the model, what the algorithm sends beside it (SCAFFOLD's c doubles it) and, where an aggregate has merged something
    under the adapters, that matrix of every module. Up: the change of the model and what the server reads beside
    it (``tells``: the news of the memory, the gradient). Leaves that nobody trains in the round do not travel, in the model
    or beside it: the client has them. The frozen base model is not in here, nor what a client needs that joins.
    Where messages did travel, their own size is said: the mean over the cohort.
    """

    algorithm: Sender

    def __call__(self, done: Round) -> Reading:
        server, report = done.before.server, done.report
        if report.wire is not None:
            down, up = report.wire.double().nanmean(0).tolist()
            return {"cost.down": down, "cost.up": up}
        still = self.algorithm.frozen(server.params.keys(), done.before.round)
        beside = {"memory": report.news, "gradient": report.gradient}
        return {"cost.down": float(sum(size(tree, still) for tree in (server.params, server.shared, server.base))),
                "cost.up": float(size(report.delta, still) + sum(size(beside[name], still) for name in self.algorithm.tells))}


def size(tree: Tree, still: frozenset[str]) -> int:
    """Bytes of one row of a tree, without the leaves that stay."""
    return sum(leaf[0].numel() * leaf.element_size() for name, leaf in tree.items() if not stays(name, still))


def stays(name: str, still: frozenset[str]) -> bool:
    """Whether a leaf is one of those that nobody trains, under its own name or under one that an algorithm put before it."""
    return any(name == leaf or name.endswith("." + leaf) for leaf in still)


def looks(bench: Bench) -> list[Look | After]:
    return [Look("cost", Traffic(bench.algorithm))]
