"""Every way to deal a corpus to clients. In an experiment ``{is: Name}`` is a class named in ``__all__``."""

from .by_source import BySource
from .calibrated import Calibrated
from .composed import Composed
from .dirichlet import Dirichlet
from .k_domains import KDomains
from .length import Length
from .partition import Partition as Partition
from .partition import Partitioner as Partitioner
from .partition import Rewrite as Rewrite
from .quantity import Quantity
from .stopword_drop import StopwordDrop
from .style import Style
from .substitute import Substitute
from .token_tilt import TokenTilt
from .topic_mix import TopicMix
from .truncate import Truncate

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
