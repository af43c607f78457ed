"""The same federation over Flower: real machines, one client each. Only the fleet differs.

Flower is an extra. Nothing here names it before ``wanted()`` was asked.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError


def require_flower(simulation: bool = False) -> None:
    """Flower is needed from here on, and Ray for its simulation; raises UserError where they are not installed."""
    if find_spec("flwr") is None:
        raise UserError("this needs Flower, which is not installed: pip install 'fedrift[flower]'")
    if simulation and find_spec("ray") is None:
        raise UserError(
            "Flower's simulation needs Ray, which is not installed: pip install 'fedrift[flower]', or run on nodes: "
            "fedrift deploy EXPERIMENT.yaml --run"
        )


def __getattr__(name: str) -> Any:
    if name != "Diagnosed":
        raise AttributeError(f"module 'fedrift.flower' has no attribute {name!r}")
    require_flower()
    from .diagnosed import Diagnosed

    return Diagnosed


if TYPE_CHECKING:
    from .diagnosed import Diagnosed as Diagnosed

__all__ = ["Diagnosed", "require_flower"]
