"""Callbacks of a run, which are called at its start, after each round and at its end.

Progress reports, checkpoints, the update log, early stopping and downstream tasks by lm-evaluation-harness (the package ``lm-eval``) are
callbacks. Users can write their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..core.errors import UserError, default_cache_dir
from ..core.records import Record
from ..core.types import FederatedState, RoundResult
from ..models.presets import PRESETS, pocket_folder
from ..storage import Run

if TYPE_CHECKING:
    from ..storage import Run
    from ..storage.checkpoint import Checkpoint
    from ..storage.updates import UpdateLog


RESULTS_NAME = "lm_eval"  # runs/<id>/lm_eval.json


class Progress(NamedTuple):
    """The progress of a run."""

    run_id: str
    round: int  # number of completed rounds
    num_rounds: int
    loss: float  # nats per token; NaN if the loss was not evaluated in this round


ProgressCallback = Callable[[Progress], None]


class RunBegin(NamedTuple):
    """The start of a run, or the point from which an interrupted run continues.

    Args:
        run: The stored run.
        state: The federated state before the next round.
        records: All records so far, in the order of recording.
        num_rounds: The last round of the configuration.
    """

    run: Run
    state: FederatedState
    records: Sequence[Record]
    num_rounds: int


class RoundEnd(NamedTuple):
    """The end of a round. The records of the round are stored already.

    Args:
        run: The stored run.
        result: The states before and after the round, the cohort, and its updates.
        records: The records of this round.
        num_rounds: The last round of the configuration.

    Example:
        >>> event = RoundEnd(run, result, run.records(), config.training.num_rounds)
        >>> event.round, event.value("loss") > 0
        (1, True)
    """

    run: Run
    result: RoundResult
    records: Sequence[Record]
    num_rounds: int

    @property
    def round(self) -> int:
        """The number of completed rounds."""
        return self.result.after.round

    def value(self, metric: str) -> float:
        """Return the value of a metric for the whole federation in this round; NaN if it was not evaluated."""
        return last_value(self.records, metric)


class Callback:
    """Base class of callbacks. Each method does nothing unless a subclass overrides it.

    Example:
        >>> class Print(fedrift.Callback):
        ...     def on_round_end(self, event):
        ...         print(event.round, event.value("loss"))
        >>> fedrift.run(config, runs_dir=folder, callbacks=[Print()]).status
        'finished'
    """

    def on_run_begin(self, event: RunBegin) -> None:
        """Handle the start of the run. It is called once, before the first round that is computed.

        Args:
            event: The stored run, its state and its earlier records.
        """

    def on_round_end(self, event: RoundEnd) -> bool | None:
        """Handle the end of a round. It is called after the records of the round are stored.

        Args:
            event: The result and the records of the round.

        Returns:
            True to stop the run after this round; False or None to continue.
        """

    def on_run_end(self, run: Run) -> None:
        """Handle the end of the run. It is called once, when the run is marked as finished.

        Args:
            run: The stored run.
        """


class ReportProgress(Callback):
    """A callback that passes the progress of the run to a function, at the start and after each round."""

    def __init__(self, on_progress: ProgressCallback) -> None:
        self.on_progress = on_progress

    def on_run_begin(self, event: RunBegin) -> None:
        self.on_progress(Progress(event.run.id, event.state.round, event.num_rounds, last_value(event.records, "loss")))

    def on_round_end(self, event: RoundEnd) -> None:
        self.on_progress(Progress(event.run.id, event.round, event.num_rounds, event.value("loss")))


class SaveUpdates(Callback):
    """A callback that stores the updates of all clients in each round, which ``fedrift fork`` needs."""

    def __init__(self, updates: UpdateLog) -> None:
        self.updates = updates

    def on_run_begin(self, event: RunBegin) -> None:
        self.updates.start(event.state)

    def on_round_end(self, event: RoundEnd) -> None:
        self.updates.add_round(event.result)


class SaveCheckpoint(Callback):
    """A callback that stores a checkpoint every ``interval`` rounds and after the last round."""

    def __init__(self, checkpoint: Checkpoint, interval: int) -> None:
        self.checkpoint, self.interval = checkpoint, interval

    def on_round_end(self, event: RoundEnd) -> None:
        if event.round % self.interval == 0 or event.round == event.num_rounds:
            self.checkpoint.save(event.result.after)


class EarlyStopping(Callback):
    """A callback that stops a run when a metric has not improved for several evaluations.

    Args:
        patience: The run stops after this number of consecutive evaluations without improvement.
        metric: A metric of the whole federation, for example ``"loss"``.
        min_delta: The smallest change that counts as an improvement, in the metric's unit.
        mode: Whether lower (``"min"``) or higher (``"max"``) is better.

    Example:
        >>> fedrift.run(config, runs_dir=folder, callbacks=[fedrift.EarlyStopping(patience=5)]).status
        'finished'
    """

    def __init__(self, patience: int = 5, metric: str = "loss", min_delta: float = 0.0, mode: Literal["min", "max"] = "min") -> None:
        self.patience, self.metric, self.min_delta, self.sign = patience, metric, min_delta, 1.0 if mode == "min" else -1.0
        self.best, self.waited = math.inf, 0

    def on_run_begin(self, event: RunBegin) -> None:
        self.best, self.waited = math.inf, 0
        for record in event.records:
            if is_federation_value(record, self.metric):
                self._observe(record.value)

    def on_round_end(self, event: RoundEnd) -> bool:
        if any(is_federation_value(record, self.metric) for record in event.records):  # else it was not evaluated in this round
            self._observe(event.value(self.metric))
        return self.waited >= self.patience

    def _observe(self, value: float) -> None:
        improved = self.sign * value < self.best - self.min_delta
        self.best, self.waited = (self.sign * value, 0) if improved else (self.best, self.waited + 1)


def is_federation_value(record: Record, metric: str) -> bool:
    """Return whether a record is the value of a metric for the whole federation."""
    return record.metric == metric and record.client < 0 and not record.domain


def last_value(records: Sequence[Record], metric: str) -> float:
    """Return the last value of a metric for the whole federation in some records; NaN if there is none."""
    matching = (record.value for record in reversed(records) if is_federation_value(record, metric))
    return next(matching, math.nan)


class LmEval(Callback):
    """A callback that evaluates the final models of a run on tasks of lm-evaluation-harness.

    The results are stored in ``runs/<id>/lm_eval.json``: model folder -> task -> metric -> value. The run itself, its id and its
    records are not changed. A finished run is not evaluated by ``fedrift.run``; ``LmEval(tasks).evaluate(run)`` does it at any time.

    Args:
        tasks: Names of tasks, for example ``["hellaswag", "arc_easy"]``. Their data are downloaded by the harness.
        num_fewshot: Examples before each question; None uses the default of each task.
        limit: Questions per task; None uses all of them.
        batch_size: Questions per forward pass.
        device: The device, for example ``"cuda"``.

    Raises:
        UserError: ``tasks`` is empty.

    Example:
        >>> from fedrift.callbacks import LmEval
        >>> fedrift.run(config, callbacks=[LmEval(["hellaswag"], limit=100)])  # doctest: +SKIP
    """

    def __init__(
        self, tasks: Sequence[str], num_fewshot: int | None = None, limit: int | None = None, batch_size: int = 8, device: str = "cpu"
    ) -> None:
        if isinstance(tasks, str) or not tasks:
            raise UserError(f"LmEval needs a list of tasks, got {tasks!r}; use e.g. LmEval(['hellaswag'])")
        self.tasks, self.num_fewshot, self.limit, self.batch_size, self.device = list(tasks), num_fewshot, limit, batch_size, device

    def on_run_begin(self, event: Any) -> None:
        """Report a missing package before the first round, and not after the last one."""
        import_harness()

    def on_run_end(self, run: Run) -> None:
        """Evaluate the models of the finished run."""
        self.evaluate(run)

    def evaluate(self, run: Run) -> dict[str, dict[str, Any]]:
        """Evaluate the models of a run and store the results.

        Args:
            run: A finished run.

        Returns:
            Model folder relative to the run -> task -> metric -> value.

        Raises:
            UserError: The package ``lm-eval`` is missing, or the run has no models.
        """
        harness = import_harness()
        results = {}
        for folder in model_folders(run):
            output = harness.simple_evaluate(
                model="hf",
                model_args=model_arguments(run, folder),
                tasks=self.tasks,
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                batch_size=self.batch_size,
                device=self.device,
            )
            results[folder.relative_to(run.folder).as_posix()] = output["results"]
        run.write_json(RESULTS_NAME, results)
        return results


def import_harness() -> Any:
    """Import lm-evaluation-harness.

    Raises:
        UserError: The package is missing.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise UserError(
            f"LmEval needs the package 'lm-eval' ({error}): pip install 'lm-eval>=0.4.9', or install fedrift with its extra lm-eval"
        ) from error
    return lm_eval


def model_folders(run: Run) -> list[Path]:
    """Return the folders of the models of a run: ``model``, or ``model/0``, ``model/1`` ... if there are several.

    Personalized models of single clients are left out.

    Raises:
        UserError: The run has no models.
    """
    names = ("adapter_config.json", "config.json")
    folders = sorted({path.parent for name in names for path in (run.folder / "model").rglob(name) if "clients" not in path.parts})
    if not folders:
        raise UserError(f"run {run.id[:6]} has no model in {run.folder / 'model'}; finish it with `fedrift run` first")
    return folders


def model_arguments(run: Run, folder: Path) -> str:
    """Return ``--model_args`` of the harness: ``pretrained=BASE,peft=FOLDER`` for adapters, else ``pretrained=FOLDER``."""
    if not (folder / "adapter_config.json").exists():
        return f"pretrained={folder.resolve()}"
    return f"pretrained={base_model(run, folder)},peft={folder.resolve()}"


def base_model(run: Run, folder: Path) -> str:
    """Return the base model of adapters as transformers finds it: a local folder, or a hub id."""
    name = str(run.config["model"])
    preset = PRESETS.get(name)
    if preset is not None:
        converted = default_cache_dir() / "models" / preset.name
        return str(pocket_folder()) if preset.origin == "package" else str(converted) if converted.is_dir() else preset.hub_id
    if Path(name).is_dir():
        return str(Path(name).resolve())
    return str(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
