"""A Flower strategy that records what breaks: any strategy of Flower's message API, unchanged, with a run folder beside it.

Every call goes to the wrapped strategy with the same objects, and its answer is returned as it is. No random number is drawn and no
message is changed, so a run has the same arrays to the last bit with the wrapper and without. What fails in recording is a warning;
the app goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from time import perf_counter, process_time
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from ..core.errors import UserError
from ..core.records import Record
from ..recorder import Recorder
from ..storage import Run
from .wire import content_num_bytes

logger = logging.getLogger("fedrift")
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
WRAPPED = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")
# fedrift's name of a number -> the names that apps give it; the first that a record has is read.
TRAIN_METRICS = {
    "train.loss": ("train_loss", "train-loss", "loss"),
    "train.loss.start": ("first_loss", "first-loss"),
    "train.steps": ("num_steps", "num-steps", "local-steps"),
    "train.tokens": ("num_tokens", "num-tokens"),
    "loss.before": ("loss_before", "loss-before", "eval_loss", "val_loss"),
}
LOSS_NAMES = ("eval_loss", "eval-loss", "loss", "val_loss", "test_loss")
DOMAIN_MARK = "@"  # ``loss@sport`` of a server evaluation is the loss of the domain sport


class Diagnosed(Strategy):  # type: ignore[misc]
    """Wraps a Flower strategy and records each round into a run folder that fedrift reads.

    Recorded are the geometry of the clients' updates, their weights, training losses, bytes and failures, who took part, the
    aggregation error of LoRA factors, held-out losses and seconds. Run the same app on IID data with ``severity=0`` and the same
    ``name``; then ``fedrift diagnose`` compares the two.

    Args:
        strategy: Any strategy of ``flwr.serverapp.strategy`` (Flower 1.38 or later), or a subclass of ``Strategy``.
        runs_dir: The folder that holds the runs.
        name: The name of the experiment. Runs of one name differ only in severity and seed.
        severity: How non-IID the clients' data is, from 0 (IID) to 1.
        seed: The seed of the app's run.
        num_clients: The number of clients. Default: the nodes that are connected when the first round is configured.
        client_key: The metric by which a reply reports its client's number, from 0 on. If no reply of the first round has it, clients are
            numbered in the order of their node ids, which are other ones in each run.
        metric_names: How the app calls ``train.loss``, ``train.loss.start``, ``train.steps``, ``train.tokens``, ``loss.before`` and
            ``loss``. Default: the names that Flower's examples use, such as ``train_loss`` and ``eval_loss``.
        **options: Further arguments of ``fedrift.Recorder``: ``partition``, ``model``, ``local_steps``, ``lora_scale``,
            ``vocab_size``, ``partition_table``, ``settings`` and ``fresh``.

    Raises:
        UserError: A run of this name, severity and seed is stored already.

    Example:
        >>> strategy = Diagnosed(FedAvg(fraction_train=0.5), name="my-app", severity=1.0)               # doctest: +SKIP
        >>> result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=20, evaluate_fn=fn)   # doctest: +SKIP
        >>> fedrift.diagnose(strategy.run)                                                             # doctest: +SKIP
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        runs_dir: str | PathLike[str] = "runs",
        name: str,
        severity: float = 1.0,
        seed: int = 0,
        num_clients: int | None = None,
        client_key: str = "partition-id",
        metric_names: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.strategy, self.client_key, self.metric_names = strategy, client_key, dict(metric_names or {})
        self.num_clients = num_clients
        self.num_rounds: int | None = None
        self._options = {"runs_dir": runs_dir, "name": name, "severity": severity, "seed": seed, **options}
        self._inner = {method: getattr(strategy, method) for method in WRAPPED}
        self.recorder: Recorder | None = None
        self.is_recording = True  # False once recording has failed
        self.recording_seconds = self.recording_cpu_seconds = 0.0  # what recording has taken so far, by clock and by processor
        self._numbers: dict[int, int] = {}  # node id -> client number
        self._nodes_report_numbers: bool | None = None  # whether nodes report their numbers; not known until a node has answered
        self._noted: set[int] = set()  # nodes about whose number an event was logged
        self._sent: dict[int, int] = {}  # node id -> bytes of the model that it was sent in this round
        self._initial: dict[str, float] = {}  # the server's evaluation before round 1
        self._client_loss: float | None = None  # of the last client evaluation, until the server's own comes
        self._has_server_evaluation = False
        self._clock = 0.0  # when the last messages were handed to the grid

    def __getattr__(self, name: str) -> Any:
        if name == "strategy":
            raise AttributeError(name)
        return getattr(self.strategy, name)

    @property
    def run(self) -> Run:
        """The run folder.

        Raises:
            UserError: No round was configured yet.
        """
        if self.recorder is None:
            raise UserError("nothing is recorded yet: the folder is made when the first round is configured")
        return self.recorder.run

    def summary(self) -> None:
        """Log what the wrapped strategy logs."""
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run the wrapped strategy's own ``start`` and return its result; arguments as there."""
        self.num_rounds, self._has_server_evaluation = num_rounds, evaluate_fn is not None
        before = {method: vars(self.strategy)[method] for method in WRAPPED if method in vars(self.strategy)}
        for method in WRAPPED:
            setattr(self.strategy, method, getattr(self, method))
        observed = None if evaluate_fn is None else self._observe_evaluation(evaluate_fn)
        try:
            result = self.strategy.start(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, observed)
        except Exception as error:
            if self.recorder:
                self.recorder.run.mark_failed(self._round, f"{type(error).__name__}: {error}")
            raise
        finally:
            for method in WRAPPED:
                delattr(self.strategy, method)
            vars(self.strategy).update(before)
        if self.recorder:
            self._try(self.recorder.finish)
        return result

    # The four methods of a strategy

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Ask the wrapped strategy, and note whom it asks."""
        messages = list(self._inner["configure_train"](server_round, arrays, config, grid))
        if self.recorder is None:
            self.recorder = self._make_recorder(grid)
        self._try(self._begin_round, arrays, messages)
        self._clock = perf_counter()
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note what came, ask the wrapped strategy, and record the round."""
        replies, seconds = list(replies), {"train": perf_counter() - self._clock}
        self._try(self._read_updates, replies)
        began = perf_counter()
        arrays, metrics = self._inner["aggregate_train"](server_round, replies)
        self._try(self._end_round, arrays, {**seconds, "aggregate": perf_counter() - began})
        return arrays, metrics

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Ask the wrapped strategy."""
        messages = list(self._inner["configure_evaluate"](server_round, arrays, config, grid))
        self._clock = perf_counter()
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Ask the wrapped strategy, and record the clients' losses."""
        replies = list(replies)
        self._try(self._read_evaluations, replies, perf_counter() - self._clock)
        metrics: MetricRecord | None = self._inner["aggregate_evaluate"](server_round, replies)
        return metrics

    # What is recorded

    @property
    def _round(self) -> int:
        return self.recorder.state.round if self.recorder and self.recorder.state else 0

    def _make_recorder(self, grid: Grid) -> Recorder:
        if self.num_rounds is None:
            raise UserError("the number of rounds is not known: call start, which takes num_rounds")
        nodes = sorted(grid.get_node_ids())
        self._numbers = {node: number for number, node in enumerate(nodes)}
        return Recorder(
            num_clients=self.num_clients or len(nodes),
            num_rounds=self.num_rounds,
            **{"algorithm": type(self.strategy).__name__, **self._options},
        )

    def _try(self, record: Callable[..., Any], *arguments: Any) -> None:
        """Record, unless it failed before; a failure is a warning, for the app must go on."""
        if not self.is_recording:
            return
        began, worked = perf_counter(), process_time()
        try:
            record(*arguments)
        except Exception as error:
            self.is_recording = False
            logger.warning("fedrift stopped recording this run: %s: %s", type(error).__name__, error)
            if self.recorder:
                self.recorder.run.mark_failed(self._round, f"recording stopped: {type(error).__name__}: {error}")
        finally:
            self.recording_seconds += perf_counter() - began
            self.recording_cpu_seconds += process_time() - worked

    def _begin_round(self, arrays: ArrayRecord, messages: list[Message]) -> None:
        assert self.recorder is not None
        if self.recorder.is_open:  # a strategy with its own start has left out aggregate_train
            self.recorder.skip_round()
        self._sent = {message.metadata.dst_node_id: content_num_bytes(message.content) for message in messages}
        self.recorder.round_begins(to_tensors(arrays))
        if self._initial:
            self._log_server_losses(0, self._initial)
            self._initial = {}

    def _read_updates(self, replies: list[Message]) -> None:
        assert self.recorder is not None
        weight_key, record_key = self._find_key("weighted_by_key", "num-examples"), self._find_key("arrayrecord_key", "arrays")
        silent, failures = dict(self._sent), {}
        reports = read_replies(replies)
        clients = self._number_clients(reports)
        for reply in replies:
            node = reply.metadata.src_node_id
            sent = silent.pop(node, 0)
            if reply.has_error():
                failures[node] = str(reply.error.reason)
                continue
            if node not in clients:
                continue
            reported = reports[node]
            numbers = {name: reported.get(self._name_of(name, names, reported), math.nan) for name, names in TRAIN_METRICS.items()}
            for name in ("train.steps", "train.tokens"):  # an impossible number of a client is an unknown one
                numbers[name] = numbers[name] if 0 <= numbers[name] < math.inf else math.nan
            self.recorder.client_update(
                clients[node],
                to_tensors(select_arrays(reply.content, record_key)),
                weight=reported.get(weight_key, 1.0),
                train_loss=numbers["train.loss"],
                first_loss=numbers["train.loss.start"],
                steps=None if math.isnan(numbers["train.steps"]) else int(numbers["train.steps"]),
                tokens=numbers["train.tokens"],
                loss_before=numbers["loss.before"],
                num_bytes=(float(sent), float(content_num_bytes(reply.content))),
            )
        failures |= dict.fromkeys(silent, "it did not answer in time")
        for node, reason in failures.items():  # last, so that no failure takes the number of a client that answered
            self._note_failure(node, reason)

    def _note_failure(self, node: int, reason: str) -> None:
        assert self.recorder is not None
        client = self._numbers.get(node, -1)
        if 0 <= client < self.recorder.num_clients and all(client != other.client for other in self.recorder.updates):
            self.recorder.client_update(client, failed=True, message=reason)
        else:
            self.recorder.run.log_event(self._round + 1, "client failed", f"node {node}: {reason}")

    def _end_round(self, arrays: ArrayRecord | None, seconds: Mapping[str, float]) -> None:
        assert self.recorder is not None and self.recorder.state is not None
        if not self.recorder.updates:  # the next round has the next number all the same, as in Flower
            self.recorder.skip_round()
            return
        unchanged = {name: leaf[0] for name, leaf in self.recorder.state.server.params.items()}
        self.recorder.round_ends(to_tensors(arrays) if arrays else unchanged, seconds=seconds)

    def _read_evaluations(self, replies: list[Message], seconds: float) -> None:
        """The clients' losses under the new model; their mean by weight is the federation's where the server does not evaluate."""
        assert self.recorder is not None
        weight_key = self._find_key("weighted_by_key", "num-examples")
        reports = read_replies(replies)
        clients = self._number_clients(reports)
        losses, total, mass = {}, 0.0, 0.0
        for node, reported in reports.items():
            loss = reported.get(self._name_of("loss", LOSS_NAMES, reported), math.nan)
            if not math.isnan(loss):
                if node in clients:
                    losses[clients[node]] = loss
                total, mass = total + reported.get(weight_key, 1.0) * loss, mass + reported.get(weight_key, 1.0)
        if not replies:
            return
        self.recorder.log_loss(by_client=losses)
        self.recorder.log_records([Record(self._round, "loss.after", "", client, loss) for client, loss in losses.items()])
        self._client_loss = total / mass if mass else None
        if not self._has_server_evaluation:
            self._use_client_loss(self._round)
        self.recorder.run.log_timing(self._round, evaluate=seconds)

    def _use_client_loss(self, round: int) -> None:
        if self._client_loss is not None and self.recorder:
            self.recorder.log_loss(self._client_loss, round=round)
        self._client_loss = None

    def _observe_evaluation(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        """The app's evaluation on the server, with its numbers recorded."""

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate_fn(server_round, arrays)
            self._try(self._read_server_evaluation, server_round, dict(metrics or {}))
            return metrics

        return evaluate

    def _read_server_evaluation(self, server_round: int, metrics: dict[str, float]) -> None:
        if self.recorder is None:
            self._initial = metrics
        else:
            self._log_server_losses(server_round, metrics)

    def _log_server_losses(self, server_round: int, metrics: Mapping[str, float]) -> None:
        assert self.recorder is not None
        name = self._name_of("loss", LOSS_NAMES, metrics)
        domains = {key.removeprefix(name + DOMAIN_MARK): value for key, value in metrics.items() if key.startswith(name + DOMAIN_MARK)}
        if name in metrics:
            self.recorder.log_loss(metrics[name], domains, round=server_round)
            self._client_loss = None
        else:
            self._use_client_loss(server_round)

    def _name_of(self, metric: str, names: Iterable[str], reported: Mapping[str, float]) -> str:
        """How the app calls a number."""
        own = self.metric_names.get(metric)
        return own or next((name for name in names if name in reported), "")

    def _find_key(self, name: str, default: str) -> str:
        """A key of the strategy's records. Flower's strategies of differential privacy have those of the strategy that they wrap."""
        strategy: Any = self.strategy
        while not hasattr(strategy, name) and isinstance(getattr(strategy, "strategy", None), Strategy):
            strategy = strategy.strategy
        return str(getattr(strategy, name, default))

    def _number_clients(self, reports: Mapping[int, Mapping[str, float]]) -> dict[int, int]:
        """The numbers of the clients that some nodes are, without the nodes whose number is not known.

        The first answers decide whether nodes report their numbers or are numbered by position, and the first number of a node stays.
        Otherwise the records of one client would be those of another from some round on.
        """
        if reports and self._nodes_report_numbers is None:
            self._nodes_report_numbers = any(self.client_key in reported for reported in reports.values())
            if self._nodes_report_numbers:
                self._numbers = {}
        return {node: number for node, reported in reports.items() if (number := self._number_client(node, reported)) >= 0}

    def _number_client(self, node: int, reported: Mapping[str, float]) -> int:
        """Return the number of a node's client, or -1 if it is unknown; an unknown or contradictory number is logged once per node."""
        assert self.recorder is not None
        size, reported_number = self.recorder.num_clients, int(reported.get(self.client_key, -1))
        if not self._nodes_report_numbers:
            self._numbers.setdefault(node, len(self._numbers))
        elif 0 <= reported_number < size:
            self._numbers.setdefault(node, reported_number)
        number = self._numbers.get(node, reported_number)
        note = ""
        if self.client_key not in reported and number < 0:
            note = f"it has not reported its client's number ({self.client_key}), as others have, so what it sent is recorded for no client"
        elif not 0 <= number < size:
            note = f"it is client {number} and the clients are 0 to {size - 1}: what it sent is not recorded; pass num_clients"
        elif reported_number not in (-1, number):
            note = f"it reports {self.client_key}={reported_number} and is recorded as client {number}; each reply must report the same"
        if note and node not in self._noted:
            self._noted.add(node)
            self.recorder.run.log_event(self._round + self.recorder.is_open, "client number", f"node {node}: {note}")
        return number if 0 <= number < size else -1


def read_replies(replies: Iterable[Message]) -> dict[int, dict[str, float]]:
    """Return the single numbers of each reply by node, without the nodes that failed."""
    return {reply.metadata.src_node_id: read_metrics(reply.content) for reply in replies if not reply.has_error()}


def read_metrics(content: RecordDict) -> dict[str, float]:
    """Return all single numbers of a message."""
    reported = {name: value for record in content.metric_records.values() for name, value in record.items()}
    return {name: float(value) for name, value in reported.items() if isinstance(value, (int, float))}


def select_arrays(content: RecordDict, key: str) -> ArrayRecord:
    """The arrays of a reply: those of the strategy's key, or the only ones."""
    records = content.array_records
    if key not in records and len(records) != 1:
        raise UserError(f"a reply has the array records {sorted(records)}, and none is called {key!r}")
    return records[key] if key in records else next(iter(records.values()))


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Arrays by name, as tensors."""
    return {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}
