"""Logging backends: TensorBoard, MLflow, Weights & Biases and trackio.

A logging backend receives the configuration of a run, then the numbers of each round, and finally its summary. It reads what the run has
stored, so nothing depends on it: reports use the stored runs only. The backends need the extra ``loggers``
(`pip install 'fedrift[loggers]'`).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from ..core.errors import UserError, unknown_name_error
from ..core.records import Record
from .files import write_atomically
from .query import flatten
from .run import Run

JsonObject = dict[str, Any]


class LoggingBackend:
    """Base class of logging backends.

    Subclasses set ``package``, the module to import, and ``pip_name``, the package to install. ``LOGGING_BACKENDS`` registers them by name.

    Args:
        folder: The folder for backends that write files.

    Example:
        >>> class Console(LoggingBackend):
        ...     package, pip_name = "sys", ""
        ...     def start_run(self, run_id, name, config, is_resumed):
        ...         print("start", run_id, name)
        ...     def log_metrics(self, round, metrics):
        ...         print(round, metrics)
        ...     def finish_run(self, summary):
        ...         print("finish", summary)
        >>> LOGGING_BACKENDS["console"] = Console
    """

    package: ClassVar[str] = ""
    pip_name: ClassVar[str] = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = import_library(self.package, self.pip_name)

    def start_run(self, run_id: str, name: str, config: JsonObject, is_resumed: bool) -> None:
        """Begin a run.

        Args:
            run_id: The run id.
            name: A short title of the run.
            config: The flattened experiment, path -> value.
            is_resumed: Whether the run was logged before and continues.
        """
        raise NotImplementedError

    def log_metrics(self, round: int, metrics: dict[str, float]) -> None:
        """Log all numbers of one round. Each round is logged once, in order."""
        raise NotImplementedError

    def finish_run(self, summary: JsonObject) -> None:
        """End a run. ``summary`` is empty if the run is not finished."""
        raise NotImplementedError


def import_library(package: str, pip_name: str) -> ModuleType:
    """Import a package, or raise UserError with the command that installs it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"this logging backend needs {pip_name}, which is not installed ({error}). Install it with pip install '{pip_name}', "
            "or all backends with pip install 'fedrift[loggers]'"
        ) from None


class TensorBoard(LoggingBackend):
    """TensorBoard, with one folder per run. View it by `tensorboard --logdir runs/logs/tensorboard`."""

    package, pip_name = "torch.utils.tensorboard", "tensorboard"

    def start_run(self, run_id: str, name: str, config: JsonObject, is_resumed: bool) -> None:
        self.writer = self.module.SummaryWriter(str(self.folder / f"{run_id}"))
        if not is_resumed:
            self.writer.add_text("experiment", f"{name}\n\n```json\n{json.dumps(config, indent=1)}\n```", 0)

    def log_metrics(self, round: int, metrics: dict[str, float]) -> None:
        for metric, value in metrics.items():
            self.writer.add_scalar(metric, value, round)
        self.writer.flush()

    def finish_run(self, summary: JsonObject) -> None:
        self.writer.close()


MLFLOW_EXPERIMENT = "fedrift"
MAX_PARAM_LENGTH = 500  # characters per parameter


class Mlflow(LoggingBackend):
    """MLflow, with files under the folder of runs, or the server that MLFLOW_TRACKING_URI names.

    Each run is one MLflow run, which is found again by its tag ``fedrift``.
    """

    package, pip_name = "mlflow", "mlflow-skinny"

    def start_run(self, run_id: str, name: str, config: JsonObject, is_resumed: bool) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions require this for file storage
            self.module.set_tracking_uri(self.folder.resolve().as_uri())
        self.client = self.module.MlflowClient()
        experiment = self.client.get_experiment_by_name(MLFLOW_EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(MLFLOW_EXPERIMENT)
        existing = self.client.search_runs([experiment_id], f"tags.fedrift = '{run_id}'")
        if existing:
            self.id = existing[0].info.run_id
            return
        created = self.client.create_run(experiment_id, run_name=f"{name} {run_id[:6]}", tags={"fedrift": run_id})
        self.id = created.info.run_id
        for path, value in config.items():
            self.client.log_param(self.id, to_mlflow_name(path), str(value)[:MAX_PARAM_LENGTH])

    def log_metrics(self, round: int, metrics: dict[str, float]) -> None:
        metric = self.module.entities.Metric
        now = self.module.utils.time.get_current_time_millis()
        # MLflow 3 stores infinity as 1.8e308 without a word, so values that are not finite are left out and marked by a tag.
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if len(finite) < len(metrics):
            self.client.set_tag(self.id, "fedrift.not_finite", f"round {round}: {', '.join(sorted(metrics.keys() - finite.keys()))}"[:500])
        self.client.log_batch(self.id, [metric(to_mlflow_name(name), value, now, round) for name, value in finite.items()])

    def finish_run(self, summary: JsonObject) -> None:
        self.client.set_terminated(self.id, "FINISHED" if summary else "KILLED")


def to_mlflow_name(name: str) -> str:
    """Replace characters that MLflow does not allow, and slashes: `loss` and `loss/sport` would be a file and a folder of the same name."""
    return re.sub(r"[^\w\-. ]", "_", name.replace("/", " "))


class Wandb(LoggingBackend):
    """Weights & Biases, in the project ``fedrift``.

    The W&B run has the id of the run, so a resumed run continues it. With WANDB_MODE=offline the data stay on this machine until `wandb
    sync`.
    """

    package, pip_name = "wandb", "wandb"

    def start_run(self, run_id: str, name: str, config: JsonObject, is_resumed: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = self.module.init(
            project="fedrift",
            id=run_id,
            name=f"{name} {run_id[:6]}",
            config=config,
            dir=str(self.folder),
            resume="allow",
            reinit="create_new",
        )

    def log_metrics(self, round: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=round)

    def finish_run(self, summary: JsonObject) -> None:
        self.run.summary.update(summary)
        self.run.finish(exit_code=0 if summary else 1)


class Trackio(LoggingBackend):
    """trackio, with the run id as the name of the run.

    View it by `trackio show --project fedrift`. TRACKIO_DIR sets the folder of its database.
    """

    package, pip_name = "trackio", "trackio"

    def start_run(self, run_id: str, name: str, config: JsonObject, is_resumed: bool) -> None:
        self.run = self.module.init(project="fedrift", name=run_id, group=name, config=config, resume="allow", embed=False)

    def log_metrics(self, round: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=round)

    def finish_run(self, summary: JsonObject) -> None:
        self.run.finish()


LOGGING_BACKENDS: dict[str, type[LoggingBackend]] = {"tensorboard": TensorBoard, "mlflow": Mlflow, "wandb": Wandb, "trackio": Trackio}


# The last logged round of each backend is stored with the run, so a run that resumes after an interruption logs nothing twice. Repeated
# rounds have the same numbers, bit for bit.

PROGRESS_FILE = "loggers.json"  # name of the backend -> last logged round


class Logger:
    """The connection of one run to one logging backend."""

    def __init__(self, name: str, backend: LoggingBackend, run: Run) -> None:
        self.name, self.backend, self.run = name, backend, run
        self.last_logged_round = self._read_progress().get(name, -1)
        self._unlogged: list[Record] = []  # records that were read and not logged yet
        self._num_bytes = 0  # the size of the part of the records file that was read
        config = {path: value for path, value in flatten(run.config).items() if not path.startswith("partition_table")}
        title = " ".join(str(config.get(path, "")) for path in ("algorithm", "partition", "partition.severity"))
        backend.start_run(run.id, title, config, self.last_logged_round >= 0)

    def push(self) -> None:
        """Log new rounds. The newest round may be incomplete, so it is logged with the next one, or at the end."""
        self._push_records(is_complete=False)

    def close(self) -> None:
        """Log the remaining rounds and the summary."""
        self._push_records(is_complete=True)
        self.backend.finish_run(self.run.read_json("finished") if self.run.is_finished else {})

    def _push_records(self, is_complete: bool) -> None:
        added, self._num_bytes = self.run.read_added_records(self._num_bytes)
        records = [*self._unlogged, *added]
        newest = max((record.round for record in records), default=-1)
        by_round: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            if record.round > self.last_logged_round and (is_complete or record.round < newest):
                by_round[record.round].append(record)
        for round in sorted(by_round):
            self.backend.log_metrics(round, flatten_records(by_round[round]))
            self.last_logged_round = round
        self._unlogged = [record for record in records if record.round > self.last_logged_round]
        if by_round:
            progress = {**self._read_progress(), self.name: self.last_logged_round}
            write_atomically(self.run.folder / PROGRESS_FILE, json.dumps(progress).encode() + b"\n")

    def _read_progress(self) -> dict[str, int]:
        path = self.run.folder / PROGRESS_FILE
        return dict(json.loads(path.read_bytes())) if path.exists() else {}


def flatten_records(records: Iterable[Record]) -> dict[str, float]:
    """Return the numbers of a round by name: ``loss``, ``loss/sport``, and over clients ``loss/clients.mean``, ``.min`` and ``.max``."""
    numbers: dict[str, float] = {}
    clients: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.client >= 0:
            clients[record.metric].append(record.value)
        else:
            numbers[f"{record.metric}/{record.domain}" if record.domain else record.metric] = record.value
    for metric, values in clients.items():
        valid = [value for value in values if not math.isnan(value)]
        if valid:
            numbers |= {
                f"{metric}/clients.mean": sum(valid) / len(valid),
                f"{metric}/clients.min": min(valid),
                f"{metric}/clients.max": max(valid),
            }
    return numbers


def create_backends(names: Iterable[str], root: Path) -> dict[str, LoggingBackend]:
    """Create the backends of these names; raise UserError if a name is unknown or a package is missing."""
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in LOGGING_BACKENDS:
            raise unknown_name_error("logging backend", name, LOGGING_BACKENDS)
    return {name: LOGGING_BACKENDS[name](Path(root) / "logs" / name) for name in chosen}


class Loggers:
    """The connections of one run to all logging backends.

    They open on the first push, because the folder of the run may not exist before.
    """

    def __init__(self, backends: dict[str, LoggingBackend]) -> None:
        self.backends = backends
        self.loggers: list[Logger] = []

    def push(self, run: Run) -> None:
        """Log the new rounds of a run to all backends."""
        if not self.loggers:
            self.loggers = [Logger(name, backend, run) for name, backend in self.backends.items()]
        for logger in self.loggers:
            logger.push()


@contextmanager
def open_loggers(names: Iterable[str], root: Path) -> Iterator[Loggers]:
    """Open loggers that are closed at the end of the block, also after an exception.

    Raises:
        UserError: A name is unknown, or a package is not installed.
    """
    loggers = Loggers(create_backends(names, root))
    try:
        yield loggers
    finally:
        for logger in loggers.loggers:
            logger.close()


def log_finished_runs(
    on_start: Callable[[str, Sequence[Any]], Callable[[str, int], None]], names: Sequence[str], root: Path
) -> Callable[[str, Sequence[Any]], Callable[[str, int], None]]:
    """Wrap the ``on_start`` callback of a study so that each run is logged when it ends; runs that ended before are logged at once.

    Runs are logged one after another, because a backend may support only one run at a time.

    Args:
        on_start: The callback of ``fedrift.studies.run.run_study``.
        names: The names of the backends.
        root: The folder of runs.
    """

    def on_start_with_logging(phase: str, configs: Sequence[Any]) -> Callable[[str, int], None]:
        on_progress, unlogged = on_start(phase, configs), {config.id for config in configs}

        def log(run: Run) -> None:
            if run.id in unlogged and (run.is_finished or (run.folder / "failed.json").exists()):
                unlogged.discard(run.id)
                progress_file = run.folder / PROGRESS_FILE
                if not progress_file.exists() or set(names) - set(json.loads(progress_file.read_bytes())):
                    with open_loggers(names, root) as loggers:
                        loggers.push(run)

        def on_progress_with_logging(run_id: str, round: int) -> None:
            on_progress(run_id, round)
            log(Run(root, run_id))

        for config in configs:
            run = Run(root, config.id)
            if run.is_finished:
                log(run)
        return on_progress_with_logging

    return on_start_with_logging if names else on_start
