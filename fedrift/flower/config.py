"""On what terms clients on other machines are waited for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args

from annotated_types import Ge, Gt, Le

from ..config.loader import Registry, parse_value
from ..config.runtime import Dtype
from ..config.schema import ExperimentConfig, parse_config
from ..core.errors import UserError, quote_value, unknown_name_error


@dataclass(frozen=True)
class FlowerConfig:
    """``min_results`` usable answers make a round; ``round_timeout_s`` seconds for each round's answers, ``join_timeout_s`` for
    the clients to be there at first; ``send_gradients``: clients send their mean gradients too, for those who measure them;
    ``stock_clients``: they are Flower clients of somebody else's, that know a model and nothing beside it."""

    min_results: Annotated[int, Ge(1)] = 1
    round_timeout_s: Annotated[float, Gt(0), Le(1e8)] = 3600.0
    join_timeout_s: Annotated[float, Ge(0), Le(1e8)] = 600.0
    send_gradients: bool = False
    stock_clients: bool = False


# Of a runtime, told to server and nodes where it is not the default.
ARITHMETIC_OPTIONS = ("compiled", "check_device", "tf32", "deterministic")


def arithmetic_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the arithmetic; a node's words come as text."""
    return {name: read_bool(values, name) for name in ARITHMETIC_OPTIONS if str(values.get(name, ""))}


def read_bool(config: Mapping[str, Any], name: str) -> bool:
    """A truth value of a Flower configuration, as TOML or as text; false where it says nothing."""
    text = str(config.get(name, "")).lower()
    if text not in ("true", "false", ""):
        raise UserError(f"{name}: wanted true or false, got {quote_value(config[name])}")
    return text == "true"


def read_threads(config: Mapping[str, Any]) -> int | None:
    """The processor threads of a Flower configuration; None where it says nothing."""
    text = str(config.get("threads") or "")
    if text and not (text.isascii() and text.isdecimal() and 1 <= int(text[:5]) <= 1024):
        raise UserError(f"threads: wanted a whole number from 1 to 1,024, got {quote_value(config['threads'])}")
    return int(text) if text else None


def read_dtype(config: Mapping[str, Any]) -> Dtype:
    """What the frozen base computes in, of a Flower configuration."""
    name: Any = str(config.get("dtype") or "auto")
    if name not in get_args(Dtype):
        raise unknown_name_error("dtype", name, get_args(Dtype))
    return name  # type: ignore[no-any-return]


def read_flower_config(config: Mapping[str, Any]) -> FlowerConfig:
    """The terms of a Flower run's configuration."""
    known = {f.name: config[f.name] for f in fields(FlowerConfig) if f.name in config}
    terms: FlowerConfig = parse_value(FlowerConfig, known, Registry({}), "backend")
    return terms


def read_experiment_config(config: Mapping[str, Any]) -> ExperimentConfig:
    """The experiment of a Flower run's configuration, which holds it as JSON."""
    text = config.get("experiment", "")
    try:
        written = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        written = None
    if not isinstance(written, dict):
        raise UserError(f"experiment: wanted the experiment as JSON, as `fedrift deploy` writes it, got {quote_value(text)}")
    return parse_config(written)


__all__ = [
    "ARITHMETIC_OPTIONS",
    "FlowerConfig",
    "arithmetic_options",
    "read_bool",
    "read_dtype",
    "read_experiment_config",
    "read_flower_config",
    "read_threads",
]
