"""fedrift: when, how and why does federated fine-tuning of language models break under non-IID data, and what repairs it?

The public names are listed in ``fedrift.__all__``. They are loaded on first use, so ``import fedrift`` itself does not import torch.
Names outside ``__all__`` are internal and can change without notice, except those that the pages of docs/how-to import.

Example:
    >>> import fedrift
    >>> config = fedrift.load_config({"dataset": "bbc", "training": {"num_rounds": 3}})
    >>> config.algorithm
    FedAvg(server_optimizer=Sgd(lr=1.0, momentum=0.0, dampening=0.0, weight_decay=0.0), aggregator=Mean())

Examples of the public names use ``config``, a small experiment; ``run`` and ``baseline``, its stored run and that of its IID baseline;
``folder``, the folder of these runs; ``corpus``, documents of three topics, and ``rng``, a NumPy generator; and ``simulator``, ``params``
and ``result``, two clients with quadratic losses, their initial parameters and the result of a round.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = {
    "fedrift.api": ("run", "study", "diagnose", "compare", "load_config", "load_run"),
    "fedrift.adapters": ("aggregate_adapters", "AggregatedAdapter"),
    "fedrift.partitioners": ("partitioner", "heterogeneity"),
    "fedrift.recorder": ("Recorder",),
    "fedrift.core.registry": ("register",),
    "fedrift.core.errors": ("UserError",),
    "fedrift.config.schema": ("ExperimentConfig", "TrainingConfig", "EvaluationConfig"),
    "fedrift.config.runtime": ("Runtime",),
    "fedrift.data": ("DatasetConfig",),
    "fedrift.models.trainable": ("Lora", "LastBlocks", "All"),
    "fedrift.core.optimizers": ("Sgd", "SwaSgd", "AdamW", "Adam", "Yogi", "Adagrad"),
    "fedrift.core.tree": ("Tree",),
    "fedrift.core.records": ("Record", "Trajectory"),
    "fedrift.core.types": ("ServerState", "LocalState", "CohortUpdate", "FederatedState", "RoundResult"),
    "fedrift.storage": ("Run",),
    "fedrift.engine.callbacks": ("Callback", "EarlyStopping", "RoundEnd"),
    "fedrift.engine.cache": ("ResourceCache",),
    "fedrift.engine.loop": ("run_rounds", "init_state"),
    "fedrift.simulation": ("ClientSimulator",),
    "fedrift.diagnosis": ("Diagnosis",),
    "fedrift.partition": (
        "TopicMix",
        "KDomains",
        "Dirichlet",
        "BySource",
        "Quantity",
        "Length",
        "TokenTilt",
        "StopwordDrop",
        "Substitute",
        "Style",
        "Truncate",
        "Composed",
        "Calibrated",
        "Partition",
        "Partitioner",
    ),
    "fedrift.algorithms": (
        "FedAvg",
        "FedProx",
        "FedNova",
        "FedSGD",
        "FedAvgM",
        "FedAdam",
        "FedYogi",
        "FedAdagrad",
        "Scaffold",
        "ScaffoldWeighted",
        "FedDyn",
        "QFedAvg",
        "AFL",
        "Ditto",
        "PFedMe",
        "FedPer",
        "MOON",
        "FedAvgFineTuning",
        "Centralized",
        "LocalOnly",
        "Pretrained",
    ),
    "fedrift.clustering": (
        "NoClustering",
        "TextClustering",
        "UpdateClustering",
        "IFCA",
        "OracleClustering",
        "RandomClustering",
        "CFL",
        "SoftClustering",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *_MODULE_OF]

if TYPE_CHECKING:
    from .adapters import AggregatedAdapter as AggregatedAdapter
    from .adapters import aggregate_adapters as aggregate_adapters
    from .api import compare as compare
    from .api import diagnose as diagnose
    from .api import load_config as load_config
    from .api import load_run as load_run
    from .api import run as run
    from .api import study as study
    from .config.runtime import Runtime as Runtime
    from .config.schema import EvaluationConfig as EvaluationConfig
    from .config.schema import ExperimentConfig as ExperimentConfig
    from .config.schema import TrainingConfig as TrainingConfig
    from .core.errors import UserError as UserError
    from .core.registry import register as register
    from .engine.cache import ResourceCache as ResourceCache
    from .engine.callbacks import Callback as Callback
    from .engine.callbacks import EarlyStopping as EarlyStopping
    from .engine.callbacks import RoundEnd as RoundEnd
    from .partitioners import heterogeneity as heterogeneity
    from .partitioners import partitioner as partitioner
    from .recorder import Recorder as Recorder
    from .storage import Run as Run


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fedrift' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
