"""On what terms clients on other machines are waited for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args

from annotated_types import Ge, Gt, Le

from ..config import Rooms, read
from ..errors import UserError, quote, unknown
from ..experiment import Experiment, parse
from ..runtime import Dtype


@dataclass(frozen=True)
class Terms:
    """``least`` usable answers make a round; ``patience`` seconds for each round's answers, ``join`` for the clients to be
    there at first; ``gradients``: clients send their mean gradients too, for those who measure them; ``plain``: they are Flower
    clients of somebody else's, that know a model and nothing beside it."""

    least: Annotated[int, Ge(1)] = 1
    patience: Annotated[float, Gt(0), Le(1e8)] = 3600.0
    join: Annotated[float, Ge(0), Le(1e8)] = 600.0
    gradients: bool = False
    plain: bool = False


ARITHMETIC = ("compiled", "canary", "tf32", "deterministic")  # of a runtime, told to server and nodes where it is not the default


def arithmetic(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the arithmetic; a node's words come as text."""
    return {name: read_truth(said, name) for name in ARITHMETIC if str(said.get(name, ""))}


def read_truth(config: Mapping[str, Any], name: str) -> bool:
    """A truth value of a Flower configuration, as TOML or as text; false where it says nothing."""
    text = str(config.get(name, "")).lower()
    if text not in ("true", "false", ""):
        raise UserError(f"{name}: wanted true or false, got {quote(config[name])}")
    return text == "true"


def read_threads(config: Mapping[str, Any]) -> int | None:
    """The processor threads of a Flower configuration; None where it says nothing."""
    text = str(config.get("threads") or "")
    if text and not (text.isascii() and text.isdecimal() and 1 <= int(text[:5]) <= 1024):
        raise UserError(f"threads: wanted a whole number from 1 to 1,024, got {quote(config['threads'])}")
    return int(text) if text else None


def read_dtype(config: Mapping[str, Any]) -> Dtype:
    """What the frozen base computes in, of a Flower configuration."""
    name: Any = str(config.get("dtype") or "auto")
    if name not in get_args(Dtype):
        raise unknown("dtype", name, get_args(Dtype))
    return name  # type: ignore[no-any-return]


def read_terms(config: Mapping[str, Any]) -> Terms:
    """The terms of a Flower run's configuration."""
    terms: Terms = read(Terms, {f.name: config[f.name] for f in fields(Terms) if f.name in config}, Rooms({}), "fleet")
    return terms


def read_experiment(config: Mapping[str, Any]) -> Experiment:
    """The experiment of a Flower run's configuration, which holds it as JSON."""
    text = config.get("experiment", "")
    try:
        written = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        written = None
    if not isinstance(written, dict):
        raise UserError(f"experiment: wanted the experiment as JSON, as `fedrift deploy` writes it, got {quote(text)}")
    return parse(written)


__all__ = ["ARITHMETIC", "Terms", "arithmetic", "read_dtype", "read_experiment", "read_terms", "read_threads", "read_truth"]
