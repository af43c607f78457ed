"""Federated algorithms: one file each, one import line here. YAML finds them by these names."""

from .afl import AFL
from .anchors import Centralised, LocalOnly, ZeroShot
from .fedavg import FedAvg
from .feddyn import FedDyn
from .fednova import FedNova
from .fedprox import FedProx
from .fedsgd import FedSGD
from .qfedavg import QFedAvg
from .scaffold import Scaffold
from .scaffold_weighted import ScaffoldWeighted

__all__ = ["AFL", "Centralised", "FedAvg", "FedDyn", "FedNova", "FedProx", "FedSGD", "LocalOnly", "QFedAvg", "Scaffold",
           "ScaffoldWeighted", "ZeroShot"]
