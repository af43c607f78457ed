"""Causes, not correlations: a run forked at a round with one thing changed, and where the two part."""

from .asking import forked
from .parting import Apart, parted
from .telling import Told, told

__all__ = ["Apart", "Told", "forked", "parted", "told"]
