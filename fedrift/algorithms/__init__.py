"""Federated algorithms and baselines.

Configurations select an algorithm by its name in ``__all__``. ``base.Algorithm`` documents how to write another one.
"""

from .baselines import Centralized, LocalOnly, Pretrained
from .fair import AFL, QFedAvg
from .fedavg import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedNova, FedProx, FedSGD, FedYogi
from .feddyn import FedDyn
from .personalized import MOON, Ditto, FedAvgFineTuning, FedPer, PFedMe
from .scaffold import Scaffold, ScaffoldWeighted

__all__ = [
    "AFL",
    "MOON",
    "Centralized",
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgFineTuning",
    "FedAvgM",
    "FedDyn",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedSGD",
    "FedYogi",
    "LocalOnly",
    "PFedMe",
    "Pretrained",
    "QFedAvg",
    "Scaffold",
    "ScaffoldWeighted",
]
