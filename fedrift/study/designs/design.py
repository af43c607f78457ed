"""What a design is: from the levels of every factor to the cells that are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from ...errors import UserError, unknown

Levels: TypeAlias = dict[str, tuple[Any, ...]]
"""The labels of each factor's levels, by the factor's name."""
Cell: TypeAlias = dict[str, Any]
"""One label a factor, by the factor's name."""


@dataclass(frozen=True)
class Design:
    """Called with the levels of the factors it gives the cells, each once, in an order that never changes."""

    def __call__(self, levels: Levels) -> list[Cell]:
        raise NotImplementedError


def level(levels: Levels, factor: str, label: Any) -> Any:
    """The level of a factor that ``label`` names."""
    if factor not in levels:
        raise unknown("factor", factor, levels)
    if label not in levels[factor]:
        raise UserError(f"factor {factor!r} has no level {label!r}; it has {', '.join(map(str, levels[factor]))}")
    return levels[factor][levels[factor].index(label)]
