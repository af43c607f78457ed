"""Partitioners: rules that assign the documents of a corpus to clients.

An experiment names a class of ``__all__`` as ``partition: {type: Name}``.
"""

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
