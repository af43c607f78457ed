"""Settings of a federation over Flower, and readers for the run configuration that Flower passes to servers and clients."""

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
    """Settings of the Flower backend, given on the command line as ``backend.NAME=VALUE``.

    Attributes:
        min_results: The minimum number of usable results per round; with fewer, the run stops.
        round_timeout_s: The number of seconds that the server waits for the results of a round.
        join_timeout_s: The number of seconds that the server waits, once, for the clients to connect.
        send_gradients: Whether clients also send their mean gradients, which gradient probes need.
        plain_clients: Whether the clients are plain Flower clients, which know only a model and no other state.
    """

    min_results: Annotated[int, Ge(1)] = 1
    round_timeout_s: Annotated[float, Gt(0), Le(1e8)] = 3600.0
    join_timeout_s: Annotated[float, Ge(0), Le(1e8)] = 600.0
    send_gradients: bool = False
    plain_clients: bool = False


# Fields of Runtime that are passed to server and clients if they differ from their defaults.
ARITHMETIC_OPTIONS = ("compiled", "check_device", "tf32", "deterministic")


def arithmetic_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numeric options in a Flower configuration. Values in a node configuration are strings."""
    return {name: read_bool(values, name) for name in ARITHMETIC_OPTIONS if str(values.get(name, ""))}


def read_bool(config: Mapping[str, Any], name: str) -> bool:
    """Read a boolean from a Flower configuration, where it is a TOML value or a string; a missing value is False.

    Raises:
        UserError: If the value is not true or false.
    """
    text = str(config.get(name, "")).lower()
    if text not in ("true", "false", ""):
        raise UserError(f"{name} must be true or false, got {quote_value(config[name])}")
    return text == "true"


def read_threads(config: Mapping[str, Any]) -> int | None:
    """Read the number of CPU threads from a Flower configuration; None if it is missing.

    Raises:
        UserError: If the value is not a whole number from 1 to 1,024.
    """
    text = str(config.get("threads") or "")
    if text and not (text.isascii() and text.isdecimal() and 1 <= int(text[:5]) <= 1024):
        raise UserError(f"threads must be a whole number from 1 to 1,024, got {quote_value(config['threads'])}")
    return int(text) if text else None


def read_dtype(config: Mapping[str, Any]) -> Dtype:
    """Read the data type of the frozen base weights from a Flower configuration; ``auto`` if it is missing.

    Raises:
        UserError: If there is no such data type, or if it is ``fastest``, for which each node would choose on its own.
    """
    name: Any = str(config.get("dtype") or "auto")
    names = [each for each in get_args(Dtype) if each != "fastest"]
    if name not in names:
        raise unknown_name_error("dtype over Flower", name, names)
    return name  # type: ignore[no-any-return]


def read_flower_config(config: Mapping[str, Any]) -> FlowerConfig:
    """Read the backend settings from the configuration of a Flower run."""
    settings = {config_field.name: config[config_field.name] for config_field in fields(FlowerConfig) if config_field.name in config}
    flower_config: FlowerConfig = parse_value(FlowerConfig, settings, Registry({}), "backend")
    return flower_config


def read_experiment_config(config: Mapping[str, Any]) -> ExperimentConfig:
    """Read the experiment from the configuration of a Flower run, which contains it as JSON.

    Raises:
        UserError: If the experiment is missing or invalid.
    """
    text = config.get("experiment", "")
    try:
        content = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"experiment must be the experiment as JSON, as `fedrift deploy` writes it, got {quote_value(text)}")
    return parse_config(content)
