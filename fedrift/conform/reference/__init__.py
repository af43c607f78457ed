"""The papers' lines in plain numbers, one client after the other: what every implementation is compared with.

Nothing is shared with ``fedrift.algorithms``, and nothing is clever. Sources stand in the modules there.
"""

from .adapters import ADAPTERS
from .personal import PERSONAL
from .rules import RULES

REFERENCES = {**RULES, **PERSONAL, **ADAPTERS}

__all__ = ["REFERENCES"]
