"""Federated algorithms and baselines.

Configurations select an algorithm by its name in ``__all__``. ``base.Algorithm`` documents how to write another one.
"""

from .baselines import Centralized, LocalOnly, Pretrained
from .fair import AFL, QFedAvg
from .fedavg import FedAvg, FedNova, FedProx, FedSGD
from .feddyn import FedDyn
from .personalized import MOON, Ditto, FedAvgFineTuning, FedPer, PFedMe
from .scaffold import Scaffold, ScaffoldWeighted

__all__ = [
    "AFL",
    "MOON",
    "Centralized",
    "Ditto",
    "FedAvg",
    "FedAvgFineTuning",
    "FedDyn",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedSGD",
    "LocalOnly",
    "PFedMe",
    "Pretrained",
    "QFedAvg",
    "Scaffold",
    "ScaffoldWeighted",
]
