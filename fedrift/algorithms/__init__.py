"""Federated algorithms: one file each, one import line here. YAML finds them by these names."""

from .afl import AFL
from .anchors import Centralised, LocalOnly, ZeroShot
from .ditto import Ditto
from .fedavg import FedAvg
from .feddyn import FedDyn
from .fednova import FedNova
from .fedper import FedPer
from .fedprox import FedProx
from .fedsgd import FedSGD
from .fine_tuned import FineTuned
from .moon import MOON
from .pfedme import PFedMe
from .qfedavg import QFedAvg
from .scaffold import Scaffold
from .scaffold_weighted import ScaffoldWeighted

__all__ = [
           "AFL",
           "MOON",
           "Centralised",
           "Ditto",
           "FedAvg",
           "FedDyn",
           "FedNova",
           "FedPer",
           "FedProx",
           "FedSGD",
           "FineTuned",
           "LocalOnly",
           "PFedMe",
           "QFedAvg",
           "Scaffold",
           "ScaffoldWeighted",
           "ZeroShot",
]
