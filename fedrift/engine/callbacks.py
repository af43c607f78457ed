"""Callbacks of a run: what happens at its begin, after each round and at its end.

Progress, checkpoints, the update log, experiment trackers and early stopping are callbacks; so is anything of a user's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..core.records import Record
from ..core.types import FederatedState, RoundResult

if TYPE_CHECKING:
    from ..storage import Run
    from ..storage.checkpoint import Checkpoint
    from ..storage.loggers import Loggers
    from ..storage.updates import UpdateLog


class Progress(NamedTuple):
    """How far a run is. ``loss``: nats per token, NaN between evaluations."""

    run_id: str
    round: int
    num_rounds: int
    loss: float


ProgressCallback = Callable[[Progress], None]


class RunBegin(NamedTuple):
    """A run that begins, or continues.

    Args:
        run: The stored run.
        state: The federated state that the next round begins from.
        records: All rows that were recorded before, in order.
        num_rounds: The last round of the configuration.
    """

    run: Run
    state: FederatedState
    records: Sequence[Record]
    num_rounds: int


class RoundEnd(NamedTuple):
    """A round that is over; its rows are stored.

    Args:
        run: The stored run.
        result: States before and after the round, the cohort, and what it sent.
        records: The rows that were recorded in this round.
        num_rounds: The last round of the configuration.
    """

    run: Run
    result: RoundResult
    records: Sequence[Record]
    num_rounds: int

    @property
    def round(self) -> int:
        return self.result.after.round

    def value(self, metric: str) -> float:
        """The federation's value of a metric in this round; NaN if it was not evaluated."""
        return last_value(self.records, metric)


class Callback:
    """Base of callbacks; each method does nothing unless it is overridden.

    Example:
        >>> class Print(Callback):
        ...     def on_round_end(self, event: RoundEnd) -> None:
        ...         print(event.round, event.value("loss"))
    """

    def on_run_begin(self, event: RunBegin) -> None:
        """Called once, before the first round that is computed."""

    def on_round_end(self, event: RoundEnd) -> bool | None:
        """Called after each round, once its rows are stored. Return True to stop the run after this round."""

    def on_run_end(self, run: Run) -> None:
        """Called once, when the run is finished."""


class ReportProgress(Callback):
    """Calls a function with the progress of the run, at its begin and after each round."""

    def __init__(self, on_progress: ProgressCallback) -> None:
        self.on_progress = on_progress

    def on_run_begin(self, event: RunBegin) -> None:
        self.on_progress(Progress(event.run.id, event.state.round, event.num_rounds, last_value(event.records, "loss")))

    def on_round_end(self, event: RoundEnd) -> None:
        self.on_progress(Progress(event.run.id, event.round, event.num_rounds, event.value("loss")))


class SaveUpdates(Callback):
    """Records what each client sent, for ``fedrift fork``."""

    def __init__(self, updates: UpdateLog) -> None:
        self.updates = updates

    def on_run_begin(self, event: RunBegin) -> None:
        self.updates.start(event.state)

    def on_round_end(self, event: RoundEnd) -> None:
        self.updates.add_round(event.result)


class SaveCheckpoint(Callback):
    """Stores the state every ``interval`` rounds and after the last one, so that the run can continue from there."""

    def __init__(self, checkpoint: Checkpoint, interval: int) -> None:
        self.checkpoint, self.interval = checkpoint, interval

    def on_round_end(self, event: RoundEnd) -> None:
        if event.round % self.interval == 0 or event.round == event.num_rounds:
            self.checkpoint.save(event.result.after)


class LogMetrics(Callback):
    """Sends what a run records to experiment trackers, such as TensorBoard."""

    def __init__(self, loggers: Loggers) -> None:
        self.loggers = loggers

    def on_round_end(self, event: RoundEnd) -> None:
        self.loggers.push(event.run)

    def on_run_end(self, run: Run) -> None:
        self.loggers.push(run)


class EarlyStopping(Callback):
    """Stops a run once a metric has not improved for some evaluations.

    Args:
        patience: Evaluations in a row without improvement after which the run stops.
        metric: A metric of the federation, for example ``"loss"``.
        min_delta: The smallest change that counts as an improvement, in the metric's unit.
        mode: Whether lower (``"min"``) or higher (``"max"``) is better.

    Example:
        >>> fedrift.run(config, callbacks=[fedrift.EarlyStopping(patience=5)])  # doctest: +SKIP
    """

    def __init__(self, patience: int = 5, metric: str = "loss", min_delta: float = 0.0, mode: Literal["min", "max"] = "min") -> None:
        self.patience, self.metric, self.min_delta, self.sign = patience, metric, min_delta, 1.0 if mode == "min" else -1.0
        self.best, self.waited = math.inf, 0

    def on_run_begin(self, event: RunBegin) -> None:
        self.best, self.waited = math.inf, 0
        for record in event.records:
            if record.metric == self.metric and record.client < 0 and not record.domain:
                self._observe(record.value)

    def on_round_end(self, event: RoundEnd) -> bool:
        self._observe(event.value(self.metric))
        return self.waited >= self.patience

    def _observe(self, value: float) -> None:
        if math.isnan(value):  # not evaluated in this round
            return
        improved = self.sign * value < self.best - self.min_delta
        self.best, self.waited = (self.sign * value, 0) if improved else (self.best, self.waited + 1)


def last_value(records: Sequence[Record], metric: str) -> float:
    """Return the federation's latest value of a metric in some records; NaN if there is none."""
    return next((row.value for row in reversed(records) if row.metric == metric and row.client < 0 and not row.domain), math.nan)
