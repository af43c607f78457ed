"""Run an experiment over Flower, with each client in its own process or on its own machine.

Only the client pool differs from a simulated run. Flower is an optional dependency: call ``require_flower`` before importing a
module of this package.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError


def require_flower(simulation: bool = False) -> None:
    """Check that Flower is installed.

    Args:
        simulation: Whether to check for Ray too, which Flower's simulation needs.

    Raises:
        UserError: If Flower or Ray is not installed.
    """
    if find_spec("flwr") is None:
        raise UserError("this needs Flower, which is not installed: pip install 'fedrift[flower]'")
    if simulation and find_spec("ray") is None:
        raise UserError(
            "Flower's simulation needs Ray, which is not installed: pip install 'fedrift[flower]', or run without Ray: "
            "fedrift deploy EXPERIMENT.yaml"
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
