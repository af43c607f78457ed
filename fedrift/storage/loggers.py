"""What a sink is: told what was asked, then the numbers of one round after another, then how it ended."""

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
    """``folder``: where a sink that keeps files puts them; ``again``: the run was told of before and goes on."""

    package: ClassVar[str] = ""
    pip_name: ClassVar[str] = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = import_library(self.package, self.pip_name)

    def start_run(self, run_id: str, name: str, config: JsonObject, is_resumed: bool) -> None:
        raise NotImplementedError

    def log_metrics(self, round: int, metrics: dict[str, float]) -> None:
        """All numbers of one round; each round once, in order."""
        raise NotImplementedError

    def finish_run(self, summary: JsonObject) -> None:
        """``summary`` is empty where the run is not finished."""
        raise NotImplementedError


def import_library(package: str, pip_name: str) -> ModuleType:
    """The package, or the line that installs it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"this sink needs {pip_name}, which is not here ({error}): pip install '{pip_name}', "
            "or all sinks with pip install 'fedrift[sinks]'"
        ) from None


# TensorBoard: `tensorboard --logdir runs/sinks/tensorboard`.


class TensorBoard(LoggingBackend):
    """One folder a run."""

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


# MLflow: its own files under the folder of runs, or the server that MLFLOW_TRACKING_URI names.

MLFLOW_EXPERIMENT = "fedrift"
MAX_PARAM_LENGTH = 500  # characters of a parameter


class Mlflow(LoggingBackend):
    """A run of MLflow's for each of ours, found again by its tag."""

    package, pip_name = "mlflow", "mlflow-skinny"

    def start_run(self, run_id: str, name: str, config: JsonObject, is_resumed: bool) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its newer versions would rather have a database
            self.module.set_tracking_uri(self.folder.resolve().as_uri())
        self.client = self.module.MlflowClient()
        found = self.client.get_experiment_by_name(MLFLOW_EXPERIMENT)
        place = found.experiment_id if found else self.client.create_experiment(MLFLOW_EXPERIMENT)
        known = self.client.search_runs([place], f"tags.fedrift = '{run_id}'")
        if known:
            self.id = known[0].info.run_id
            return
        made = self.client.create_run(place, run_name=f"{name} {run_id[:6]}", tags={"fedrift": run_id})
        self.id = made.info.run_id
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
    """Only letters that MLflow allows, and no slash: `loss` and `loss/sport` would be a file and a folder of one name."""
    return re.sub(r"[^\w\-. ]", "_", name.replace("/", " "))


# Weights & Biases: project ``fedrift``. WANDB_MODE=offline keeps it on this machine; `wandb sync` sends it later.


class Wandb(LoggingBackend):
    """The run has our id there too, so that one that resumes goes on in the same place."""

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


# trackio: `trackio show --project fedrift`; its database is where TRACKIO_DIR says.


class Trackio(LoggingBackend):
    """The run's name is our id."""

    package, pip_name = "trackio", "trackio"

    def start_run(self, run_id: str, name: str, config: JsonObject, is_resumed: bool) -> None:
        self.run = self.module.init(project="fedrift", name=run_id, group=name, config=config, resume="allow", embed=False)

    def log_metrics(self, round: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=round)

    def finish_run(self, summary: JsonObject) -> None:
        self.run.finish()


# Other places to watch a run from: TensorBoard, MLflow, W&B, trackio. Each is one small file and one line here.
#
# A sink is fed from what the run has stored, so nothing depends on it: reports are made of the runs alone. It needs the extra
# ``sinks`` (`pip install 'fedrift[sinks]'`).

LOGGING_BACKENDS: dict[str, type[LoggingBackend]] = {"tensorboard": TensorBoard, "mlflow": Mlflow, "wandb": Wandb, "trackio": Trackio}


# Feeding sinks from what a run has stored. What each was told is noted beside the run, so that a run which was killed and
# resumes tells nothing twice: the rounds that are done again come out the same, bit for bit.

PROGRESS_FILE = "sinks.json"  # name of the sink -> the last round that it was told


class Logger:
    """One run's way into one sink."""

    def __init__(self, name: str, backend: LoggingBackend, run: Run) -> None:
        self.name, self.backend, self.run = name, backend, run
        self.last_logged_round = self._read_progress().get(name, -1)
        asked = {path: value for path, value in flatten(run.config).items() if not path.startswith("partition_table")}
        title = " ".join(str(asked.get(path, "")) for path in ("algorithm", "partition", "partition.severity"))
        backend.start_run(run.id, title, asked, self.last_logged_round >= 0)

    def push(self) -> None:
        """Tell what is new. The newest round may not be whole yet: it is told with the next, or at the end."""
        self._push_records(self.run.records(), is_complete=False)

    def close(self) -> None:
        """Tell the rest, and how it ended."""
        self._push_records(self.run.records(), is_complete=True)
        self.backend.finish_run(self.run.read_json("finished") if self.run.is_finished else {})

    def _push_records(self, records: Sequence[Record], is_complete: bool) -> None:
        newest = max((record.round for record in records), default=-1)
        by_round: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            if record.round > self.last_logged_round and (is_complete or record.round < newest):
                by_round[record.round].append(record)
        for round in sorted(by_round):
            self.backend.log_metrics(round, flatten_records(by_round[round]))
            self.last_logged_round = round
        if by_round:
            noted = {**self._read_progress(), self.name: self.last_logged_round}
            write_atomically(self.run.folder / PROGRESS_FILE, json.dumps(noted).encode() + b"\n")

    def _read_progress(self) -> dict[str, int]:
        path = self.run.folder / PROGRESS_FILE
        return dict(json.loads(path.read_bytes())) if path.exists() else {}


def flatten_records(records: Iterable[Record]) -> dict[str, float]:
    """A round's numbers by name: ``loss``, ``loss/sport``; of clients ``loss/clients.mean``, ``.min``, ``.max``."""
    found: dict[str, float] = {}
    clients: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.client >= 0:
            clients[record.metric].append(record.value)
        else:
            found[f"{record.metric}/{record.domain}" if record.domain else record.metric] = record.value
    for metric, values in clients.items():
        known = [value for value in values if not math.isnan(value)]
        if known:
            found |= {
                f"{metric}/clients.mean": sum(known) / len(known),
                f"{metric}/clients.min": min(known),
                f"{metric}/clients.max": max(known),
            }
    return found


def create_backends(names: Iterable[str], root: Path) -> dict[str, LoggingBackend]:
    """The sinks of these names; what is missing is told before anything is run."""
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in LOGGING_BACKENDS:
            raise unknown_name_error("sink", name, LOGGING_BACKENDS)
    return {name: LOGGING_BACKENDS[name](Path(root) / "sinks" / name) for name in chosen}


class Loggers:
    """One run's feeds into all sinks; they begin with its first word, for before that there may be no folder."""

    def __init__(self, backends: dict[str, LoggingBackend]) -> None:
        self.backends = backends
        self.loggers: list[Logger] = []

    def push(self, run: Run) -> None:
        if not self.loggers:
            self.loggers = [Logger(name, sink, run) for name, sink in self.backends.items()]
        for feed in self.loggers:
            feed.push()


@contextmanager
def open_loggers(names: Iterable[str], root: Path) -> Iterator[Loggers]:
    """Feeds that are ended however the block ends."""
    feeds = Loggers(create_backends(names, root))
    try:
        yield feeds
    finally:
        for feed in feeds.loggers:
            feed.close()


def log_finished_runs(
    on_start: Callable[[str, Sequence[Any]], Callable[[str, int], None]], names: Sequence[str], root: Path
) -> Callable[[str, Sequence[Any]], Callable[[str, int], None]]:
    """A study's ``begin`` whose runs are told to the sinks, each when it is over; those that were over before, now.

    One after the other, wherever they are computed, for a sink may have room for one run at a time.
    """

    def started(what: str, experiments: Sequence[Any]) -> Callable[[str, int], None]:
        tell, left = on_start(what, experiments), {experiment.id for experiment in experiments}

        def feed(run: Run) -> None:
            if run.id in left and (run.is_finished or (run.folder / "failed.json").exists()):
                left.discard(run.id)
                noted = run.folder / PROGRESS_FILE
                if not noted.exists() or set(names) - set(json.loads(noted.read_bytes())):
                    with open_loggers(names, root) as feeds:
                        feeds.push(run)

        def told(run: str, round: int) -> None:
            tell(run, round)
            feed(Run(root, run))

        for experiment in experiments:
            run = Run(root, experiment.id)
            if run.is_finished:
                feed(run)
        return told

    return started if names else on_start


__all__ = [
    "LOGGING_BACKENDS",
    "Logger",
    "Loggers",
    "LoggingBackend",
    "Mlflow",
    "TensorBoard",
    "Trackio",
    "Wandb",
    "create_backends",
    "log_finished_runs",
    "open_loggers",
]
