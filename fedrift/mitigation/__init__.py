"""Mitigations: who shares a model with whom. One file each, one import line here. YAML finds them by these names."""

from .at_random import AtRandom
from .bipartition import Bipartition
from .by_domain import ByDomain
from .by_loss import ByLoss
from .by_text import ByText
from .by_update import ByUpdate
from .soft import Soft
from .vanilla import Vanilla

__all__ = ["AtRandom", "Bipartition", "ByDomain", "ByLoss", "ByText", "ByUpdate", "Soft", "Vanilla"]
