"""Mitigations: who shares a model with whom. One file each, one import line here. YAML finds them by these names."""

from .base import NoClustering
from .iterative import CFL, IFCA, UpdateClustering
from .one_shot import OracleClustering, RandomClustering, SoftClustering, TextClustering

__all__ = ["CFL", "IFCA", "NoClustering", "OracleClustering", "RandomClustering", "SoftClustering", "TextClustering", "UpdateClustering"]
