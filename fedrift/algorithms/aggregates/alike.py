"""Rules that count clients alike, whatever their weight: what they share is what cannot be combined with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .mean import Frame, Mean


@dataclass(frozen=True)
class Alike(Mean):
    """The frame of the rules that compare clients, or that must not tell who was there."""

    def refusals(self, algorithm: Frame, leaves: Collection[str]) -> list[str]:
        said, ours, theirs = super().refusals(algorithm, leaves), type(self).__name__, type(algorithm).__name__
        if algorithm.weighs:
            said.append(f"{theirs} weighs clients by what all of them report, and {ours} counts them alike and bounds what each "
                        "can do: use Mean")
        if algorithm.alone:
            said.append(f"{theirs} has one client a model, and {ours} is about many: use Mean")
        return said

    def caveats(self, algorithm: Frame, weighting: str) -> list[str]:
        said = super().caveats(algorithm, weighting)
        if weighting != "uniform":
            said.append(f"{type(self).__name__} counts clients alike; weighting={weighting!r} is not used for the changes")
        return said


@dataclass(frozen=True)
class Robust(Alike):
    """The frame of the rules that bear some clients who lie."""

    def caveats(self, algorithm: Frame, weighting: str) -> list[str]:
        said = super().caveats(algorithm, weighting)
        if "memory" in algorithm.tells:
            said.append(f"{type(self).__name__} bears liars in the changes only: the memories that {type(algorithm).__name__}'s "
                        "clients send beside them go into plain means")
        return said


__all__ = ["Alike", "Robust"]
