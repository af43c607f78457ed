"""Clustering strategies: rules that decide which clients share a model.

A configuration names a class of ``__all__`` as ``clustering: {type: Name}``. A new strategy needs a file in this package and an
import here.
"""

from .base import NoClustering
from .iterative import CFL, IFCA, UpdateClustering
from .one_shot import OracleClustering, RandomClustering, SoftClustering, TextClustering

__all__ = ["CFL", "IFCA", "NoClustering", "OracleClustering", "RandomClustering", "SoftClustering", "TextClustering", "UpdateClustering"]
