"""Other places to watch a run from: TensorBoard, MLflow, W&B, trackio. Each is one small file and one line here.

A sink is fed from what the run has stored, so nothing depends on it: reports are made of the runs alone. It needs the extra
``sinks`` (`pip install 'fedrift[sinks]'`).
"""

from .feed import Feed, Feeds, fed, ready, told_when_over
from .mlflow import Mlflow
from .sink import Sink
from .tensorboard import TensorBoard
from .trackio import Trackio
from .wandb import Wandb

SINKS: dict[str, type[Sink]] = {"tensorboard": TensorBoard, "mlflow": Mlflow, "wandb": Wandb, "trackio": Trackio}

__all__ = ["SINKS", "Feed", "Feeds", "Mlflow", "Sink", "TensorBoard", "Trackio", "Wandb", "fed", "ready",
           "told_when_over"]
