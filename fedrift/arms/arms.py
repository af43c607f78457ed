"""The arms that a mitigation is held against, each the same experiment with one thing changed.

All train as many client steps a round as vanilla does, from the same first weights, on the same deal of the same seed; what
an arm costs beside that (IFCA's restarts and choices, a fleet that is called whole) is counted and told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Changes = dict[str, Any]  # path in the experiment -> value


@dataclass(frozen=True)
class Asked:
    """What the arms are made of. ``clusters``: of text and updates, None counts them; ``guess``: IFCA's J."""

    encoder: str = "wordllama"
    clusters: int | None = None
    guess: int = 4
    restarts: int = 5  # of IFCA
    draws: int = 1  # of the random clusters
    algorithm: Mapping[str, Any] = field(default_factory=lambda: {"is": "FedAvg"})  # the base experiment's

    @property
    def text(self) -> Changes:
        counted = {} if self.clusters is None else {"clusters": self.clusters}
        return {"is": "ByText", "encoder": self.encoder, **counted}


@dataclass(frozen=True)
class Arm:
    """``repeats``: how many runs a seed it takes, each with the changes of its number."""

    title: str
    changes: Callable[[Asked, int], Changes]
    repeats: Callable[[Asked], int] = lambda asked: 1
    groups: bool = True  # whether its clients share models in groups that can be held against the true domains


def frame(asked: Asked, kind: str) -> Changes:
    """The base's server and aggregate under another algorithm."""
    return {"is": kind, **{key: asked.algorithm[key] for key in ("server", "aggregate") if key in asked.algorithm}}


ARMS: dict[str, Arm] = {
    "vanilla": Arm("one model for all", lambda asked, _: {}, groups=False),
    "text": Arm("k-means on text embeddings", lambda asked, _: {"mitigation": asked.text}),
    "random": Arm("random clusters of the same sizes",
                  lambda asked, draw: {"mitigation": {"is": "AtRandom", "like": asked.text, "draw": draw}},
                  lambda asked: asked.draws),
    "oracle": Arm("the true domains", lambda asked, _: {"mitigation": {"is": "ByDomain"}}),
    "update": Arm("clusters of the first updates", lambda asked, _: {"mitigation": {
        "is": "ByUpdate", **({} if asked.clusters is None else {"clusters": asked.clusters})}}),
    "ifca": Arm("IFCA", lambda asked, start: {"mitigation": {"is": "ByLoss", "clusters": asked.guess, "restart": start}},
                lambda asked: asked.restarts),
    "local": Arm("everybody alone", lambda asked, _: {"algorithm": {"is": "LocalOnly"}}, groups=False),
    "tuned": Arm("vanilla, then local steps", lambda asked, _: {"algorithm": frame(asked, "FineTuned")}, groups=False),
    "text+tuned": Arm("text clusters, then local steps",
                      lambda asked, _: {"mitigation": asked.text, "algorithm": frame(asked, "FineTuned")}),
    "pooled": Arm("all text in one place, centralised", lambda asked, _: {"algorithm": {"is": "Centralised"}}, groups=False),
    "cfl": Arm("recursive bipartition, CFL", lambda asked, _: {"mitigation": {"is": "Bipartition"}}),
    "soft": Arm("soft mixtures of text clusters", lambda asked, _: {
        "mitigation": {"is": "Soft", "text": asked.text}, "algorithm": {**asked.algorithm, "aggregate": {"is": "FFA"}}}),
    "iid": Arm("vanilla, the documents dealt IID", lambda asked, _: {"partition.severity": 0.0}, groups=False),
}
OPTIONAL = ("cfl", "soft")
ALWAYS = ("vanilla", "iid")  # what the others are read against: nothing is told without them
DEFAULT = tuple(name for name in ARMS if name not in OPTIONAL)


def levels(arms: tuple[str, ...], asked: Asked) -> dict[str, Changes]:
    """The runs of a seed, by label: ``vanilla``, ``random 1``, ``ifca 1`` ... in the order of the table above."""
    found = {}
    for name, arm in ARMS.items():
        if name in arms:
            for number in range(arm.repeats(asked)):
                found[f"{name} {number + 1}" if name in ("random", "ifca") else name] = arm.changes(asked, number)
    return found


def arm_of(label: str) -> tuple[str, int]:
    """A label taken apart: the arm, and its number from 0 on."""
    name, _, number = label.partition(" ")
    return name, int(number or 1) - 1


__all__ = ["ALWAYS", "ARMS", "DEFAULT", "Arm", "Asked", "arm_of", "levels"]
