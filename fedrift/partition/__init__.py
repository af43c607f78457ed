"""Every way to deal a corpus to clients. In an experiment ``{type: Name}`` is a class named in ``__all__``."""

from .base import Partition as Partition
from .base import Partitioner as Partitioner
from .base import Rewrite as Rewrite
from .composite import Calibrated, Composed
from .size_skew import Length, Quantity
from .style_skew import Style, Truncate
from .token_skew import StopwordDrop, Substitute, TokenTilt
from .topic_skew import BySource, Dirichlet, KDomains, TopicMix

__all__ = [
    "BySource",
    "Calibrated",
    "Composed",
    "Dirichlet",
    "KDomains",
    "Length",
    "Quantity",
    "StopwordDrop",
    "Style",
    "Substitute",
    "TokenTilt",
    "TopicMix",
    "Truncate",
]
