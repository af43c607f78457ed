"""On what terms clients on other machines are waited for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt


@dataclass(frozen=True)
class Terms:
    """``least`` usable answers make a round; ``patience`` seconds for each round's answers, ``join`` for the clients to be
    there at first; ``gradients``: clients send their mean gradients too, for those who measure them; ``plain``: they are Flower
    clients of somebody else's, that know a model and nothing beside it."""

    least: Annotated[int, Ge(1)] = 1
    patience: Annotated[float, Gt(0)] = 3600.0
    join: Annotated[float, Ge(0)] = 600.0
    gradients: bool = False
    plain: bool = False


ARITHMETIC = ("compiled", "canary", "tf32", "deterministic")  # of a runtime, told to server and nodes where it is not the default


def arithmetic(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the arithmetic; a node's words come as text."""
    return {name: str(said[name]).lower() == "true" for name in ARITHMETIC if str(said.get(name, ""))}
