"""The same federation over Flower: real machines, one client each. Only the fleet differs.

Flower is an extra. Nothing here names it before ``wanted()`` was asked.
"""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import UserError


def wanted() -> None:
    """Flower is needed from here on; raises UserError where it is not installed."""
    if find_spec("flwr") is None:
        raise UserError("this needs Flower, which is not installed: pip install 'fedrift[flower]'")


__all__ = ["wanted"]
