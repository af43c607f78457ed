"""A recorder for training loops of one's own: what clients send goes in, a run folder that fedrift reads comes out.

The numbers are those of a native run, because the same probes make them: ``update_geometry``, ``aggregation_error`` and their
like are called with a ``RoundResult`` that is built from what the loop hands over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import torch
from torch import Tensor

from .core.errors import UserError, quote_value
from .core.records import Record
from .core.tree import Tree
from .core.types import ClientStateStore, CohortUpdate, FederatedState, RoundResult, ServerState, single_cluster
from .diagnosis.failures import find_exploding_updates
from .probes import (
    DerivedMetric,
    MetricHistory,
    ProbeSuite,
    ScheduledProbe,
    aggregation_error,
    to_records,
    training_metrics,
    update_geometry,
)
from .probes.federation import CommunicationCost, fairness_metrics
from .probes.lora import ProductGeometry, product_efficiency
from .probes.updates import ServerPath, path_efficiency
from .storage import Run, archive_run, collect_environment

Params = Mapping[str, Tensor]
LORA_FACTOR = re.compile(r"\.lora_([AB])(?:\.([^.]+))?\.weight$")
MAX_INT = 1_000_000  # the largest number of clients and of rounds, as in a configuration
UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")  # characters that a folder's name may not have


@dataclass(frozen=True)
class PlainAlgorithm:
    """An algorithm of which only the model travels, for the cost of communication."""

    uploads: ClassVar[frozenset[str]] = frozenset()

    def frozen_params(self, param_names: Iterable[str], round: int) -> frozenset[str]:
        return frozenset()

    def is_personal(self, name: str) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What one client sent in a round; numbers that are not known are NaN or None."""

    client: int
    delta: Tree | None  # [1, ...]; None of a client that failed
    weight: float
    train_losses: tuple[float, float]  # of the first step, and the mean over the steps
    steps: int | None
    tokens: float
    mean_grad: Tree | None
    losses: tuple[float, float]  # on the client's held-out data, before and after averaging
    num_bytes: tuple[float, float] | None
    message: str


class Recorder:
    """Records the rounds of any federated training loop into a run folder.

    ``fedrift diagnose``, ``report``, ``show``, ``compare`` and ``list`` read the folder like that of a native run. Record the same
    loop on IID data with ``severity=0`` and the same ``name``: the two are then a run and its IID baseline.

    Args:
        runs_dir: The folder that holds the runs.
        name: The name of the experiment. Runs of one name differ only in severity and seed.
        num_clients: The number of clients, N. Clients are numbered 0 to N - 1.
        num_rounds: The number of rounds. The run is finished once so many have ended.
        severity: How non-IID the clients' data is, from 0 (IID) to 1.
        seed: The seed of the loop. Three seeds can confirm a failure, one can raise a suspicion.
        partition: The name of the partition, for titles.
        algorithm: The name of the algorithm, for titles.
        model: The name of the model, for titles.
        local_steps: The local steps of a client in a round; 0 if they vary or are not known.
        lora_scale: alpha / r of LoRA adapters; it scales ``product.norm``.
        vocab_size: The size of the vocabulary. With it a model that gives every token the same probability is called dead.
        partition_table: ``{"domains": [J names], "tokens": [N][J]}``, the training tokens of each client in each domain.
        settings: What else identifies the experiment, such as the learning rate. Runs that differ in it are different experiments.
        fresh: Whether a stored run of the same name, severity and seed is moved aside. Default: it is refused.

    Raises:
        UserError: A run of this name, severity and seed is stored already, or an argument is not allowed.

    Example:
        >>> import torch
        >>> recorder = fedrift.Recorder(folder, "my-loop", num_clients=2, num_rounds=1)
        >>> recorder.round_begins({"w": torch.zeros(3)})
        >>> for client in range(2):
        ...     recorder.client_update(client, {"w": torch.ones(3)}, weight=100, train_loss=4.0)
        >>> recorder.round_ends({"w": torch.ones(3)}, loss=4.1)
        >>> recorder.run.status
        'finished'
    """

    def __init__(  # noqa: PLR0913 - the public signature lists every setting of a run
        self,
        runs_dir: str | PathLike[str],
        name: str,
        *,
        num_clients: int,
        num_rounds: int,
        severity: float = 1.0,
        seed: int = 0,
        partition: str = "custom",
        algorithm: str = "FedAvg",
        model: str = "custom",
        local_steps: int = 0,
        lora_scale: float = 1.0,
        vocab_size: int | None = None,
        partition_table: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        fresh: bool = False,
    ) -> None:
        check_arguments(name, num_clients, num_rounds, severity)
        check_whole({"seed": seed, "local_steps": local_steps, **({} if vocab_size is None else {"vocab_size": vocab_size})})
        check_numbers({"lora_scale": lora_scale}, is_amount=True)
        if not lora_scale > 0:  # NaN is an unknown number elsewhere
            raise UserError(f"lora_scale is {quote_value(lora_scale)}, and must be a finite number above 0: alpha / r of the adapters")
        if vocab_size is not None and vocab_size < 2:
            raise UserError(f"vocab_size is {vocab_size}; give the size of the vocabulary, at least 2, or leave it out")
        self.num_clients, self.num_rounds, self.lora_scale, self.vocab_size = num_clients, num_rounds, lora_scale, vocab_size
        config = {
            "dataset": {"name": name},
            "model": model,
            "partition": {"type": partition, "num_clients": num_clients, "severity": float(severity)},
            "algorithm": {"type": algorithm},
            "training": {"num_rounds": num_rounds, "local_steps": local_steps},
            "evaluation": {},
            "settings": dict(settings or {}),
            "seed": int(seed),
            "recorded_by": "fedrift.Recorder",
        }
        self.run = open_folder(Path(runs_dir), make_id(name, severity, seed, config), fresh)
        table = {"partition_table": dict(partition_table)} if partition_table else {}
        self.run.write_json("experiment", {**config, "id": self.run.id, **table})
        self.run.write_json("environment", collect_environment("cpu", torch.get_num_threads(), {}))
        self.history = MetricHistory()
        self.suite: ProbeSuite | None = None
        self.state: FederatedState | None = None
        self.updates: list[ClientUpdate] = []
        self.is_open = False
        self._whole_numbers: frozenset[str] = frozenset()  # tensors that held whole numbers when round 1 began
        self._begun = self._own = 0.0  # when the round began, and the recorder's own seconds in it

    # The three calls

    def round_begins(self, params: Params, loss: float | None = None, loss_by_domain: Mapping[str, float] | None = None) -> None:
        """Take the model that the clients of the next round receive.

        Args:
            params: The trained parameters by name. PEFT's names of LoRA factors are recognized. Tensors that hold whole
                numbers when round 1 begins are left out, also where a later call has their mean.
            loss: The held-out loss of this model in nats per token, if it was evaluated; before round 1 that of the untrained model.
            loss_by_domain: The same for each domain.

        Raises:
            UserError: The last round has not ended, all rounds have, or the parameters have other names or shapes than before.
        """
        began = perf_counter()
        if self.is_open:
            raise UserError("round_begins was called twice: call round_ends at the end of each round")
        if self._round >= self.num_rounds:
            raise UserError(f"round {self._round + 1} begins, but num_rounds is {self.num_rounds}: count all rounds in num_rounds")
        if self.state is None:
            check_tensors(params)
            self._whole_numbers = frozenset(name for name, leaf in params.items() if not leaf.is_floating_point())
        received = self._read(params)
        state = self._start(received) if self.state is None else self.state
        check_like(received, state.server.params, "the model of round_begins")
        self.state = replace(state, server=replace(state.server, params=received))
        self.updates, self.is_open = [], True
        self.log_loss(loss, loss_by_domain, round=state.round)
        self._begun = perf_counter()
        self._own = self._begun - began

    def client_update(  # noqa: PLR0913 - the public signature lists all that a client may report
        self,
        client: int,
        params: Params | None = None,
        *,
        delta: Params | None = None,
        weight: float = 1.0,
        train_loss: float = math.nan,
        first_loss: float = math.nan,
        steps: int | None = None,
        tokens: float = math.nan,
        mean_grad: Params | None = None,
        loss_before: float = math.nan,
        loss_after: float = math.nan,
        num_bytes: tuple[float, float] | None = None,
        failed: bool = False,
        message: str = "",
    ) -> None:
        """Take what one client sends.

        Args:
            client: The client's number, from 0 to N - 1.
            params: The client's parameters after its local steps. Give this or ``delta``.
            delta: The change of the parameters since the round began.
            weight: The weight of the client in the mean, for example its training tokens.
            train_loss: The mean training loss over the local steps, in nats per token.
            first_loss: The training loss of the first local step.
            steps: The local steps that the client took.
            tokens: The tokens that the client trained on.
            mean_grad: The mean raw gradient over the local steps, if it is known; the same names and shapes as the parameters.
            loss_before: The loss of the client's own model on its held-out data, before averaging.
            loss_after: The loss of the averaged model on the same data.
            num_bytes: The bytes that traveled to the client and back. Default: the sizes of the tensors.
            failed: Whether the client sent nothing that can be used. Updates that are not finite count as failed.
            message: Why it failed, or what else is to be noted.

        Raises:
            UserError: No round has begun, the client's number is not allowed or came before, the weight is not a number of at least 0, or
                the parameters or the gradient do not fit.
        """
        began, state = perf_counter(), self._open_state()
        if not self._is_client(client) or any(int(client) == other.client for other in self.updates):
            raise UserError(f"client {quote_value(client)}: each of the clients 0 to {self.num_clients - 1} can send one update per round")
        if not failed and not (is_number(weight) and 0 <= weight < math.inf):
            raise UserError(f"client {client}: its weight is {quote_value(weight)}; allowed: a finite number of at least 0, or failed=True")
        who = f"client {client}: its "
        check_numbers({f"{who}number of steps": math.nan if steps is None else steps, f"{who}number of tokens": tokens}, is_amount=True)
        losses = {"train_loss": train_loss, "first_loss": first_loss, "loss_before": loss_before, "loss_after": loss_after}
        check_numbers({f"{who}{what}": value for what, value in losses.items()})
        if num_bytes is not None:
            if not isinstance(num_bytes, Sequence) or len(num_bytes) != 2:
                raise UserError(f"{who}num_bytes is {quote_value(num_bytes)}: give two numbers, the bytes to the client and back")
            check_numbers({f"{who}num_bytes": num_bytes[0], f"{who}num_bytes back": num_bytes[1]}, is_amount=True)
        moved = None if failed else self._read_delta(state.server.params, params, delta)
        gradient = None if mean_grad is None or failed else self._read(mean_grad)
        if gradient is not None:
            check_like(gradient, state.server.params, "mean_grad")
        self.updates.append(
            ClientUpdate(
                int(client),
                moved if moved is not None and bool(moved.is_finite().all()) else None,
                float(weight),
                (float(first_loss), float(train_loss)),
                steps,
                float(tokens),
                gradient,
                (float(loss_before), float(loss_after)),
                num_bytes,
                message,
            )
        )
        self._own += perf_counter() - began

    def round_ends(
        self,
        params: Params,
        loss: float | None = None,
        loss_by_domain: Mapping[str, float] | None = None,
        loss_by_client: Mapping[int, float] | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Take the model that the server made of the round, and write the round's records.

        Args:
            params: The trained parameters after aggregation.
            loss: The held-out loss of this model in nats per token. For the verdict beside an IID baseline it must be on the same text
                in both runs.
            loss_by_domain: The same for each domain.
            loss_by_client: The same for each client, on its own data.
            seconds: Seconds by phase, for example ``{"train": 4.1, "evaluate": 0.5}``. Default: the time since ``round_begins`` is
                ``train``.

        Raises:
            UserError: No round has begun, no client sent an update, a client's number is not allowed, or the parameters do not fit.
        """
        began, state = perf_counter(), self._open_state()
        if not self.updates:
            raise UserError(f"round {state.round + 1} ends without an update: call client_update for each client of the round")
        self._check_clients(loss_by_client or {})
        check_numbers({f"seconds of {phase}": value for phase, value in (seconds or {}).items()}, is_amount=True)
        self.updates.sort(key=lambda update: update.client)
        result = make_result(state, self._read(params), self.updates)
        rows = self._evaluate(result)
        self.run.append_records(rows)
        self._log_events(result, rows)
        self.state, self.is_open = result.after, False
        self.log_loss(loss, loss_by_domain, loss_by_client)
        train = began - self._begun - self._own
        self.run.log_timing(result.after.round, **{"train": train, **(seconds or {})}, store=self._own + perf_counter() - began)
        if result.after.round >= self.num_rounds:
            self.finish()

    # What may be added

    def log_loss(
        self,
        loss: float | None = None,
        by_domain: Mapping[str, float] | None = None,
        by_client: Mapping[int, float] | None = None,
        round: int | None = None,
    ) -> None:
        """Record held-out losses of the server's model in nats per token.

        Args:
            loss: The loss of the federation.
            by_domain: The loss of each domain.
            by_client: The loss of each client on its own data.
            round: The round after which the model was evaluated; 0 is the untrained model. Default: the last round that ended.

        Raises:
            UserError: A client's number is not allowed.
        """
        self._check_clients(by_client or {})
        check_numbers(
            {"the loss": math.nan if loss is None else loss, **{f"the loss of client {n}": x for n, x in (by_client or {}).items()}}
        )
        for domain, value in (by_domain or {}).items():
            if not isinstance(domain, str) or not domain.strip():
                raise UserError(f"loss_by_domain has the domain {quote_value(domain)}: the name of a domain is a text that is not empty")
            check_numbers({f"the loss of the domain {quote_value(domain)}": value})
        number = self._round if round is None else round
        rows = [] if loss is None else [Record(number, "loss", "", -1, float(loss))]
        rows += [Record(number, "loss", domain, -1, float(value)) for domain, value in (by_domain or {}).items()]
        rows += [Record(number, "loss", "", int(client), float(value)) for client, value in (by_client or {}).items()]
        if by_client:
            fairness = fairness_metrics({"loss": torch.tensor(list(by_client.values()), dtype=torch.float64)}, self.history)
            rows += to_records(fairness, number, [], self.num_clients)
        self.log_records(rows)

    def log_records(self, records: Sequence[Record]) -> None:
        """Record numbers of any name."""
        if records:
            self.run.append_records(records)
            self.history.add_records(records)
            if self.run.is_finished:  # an evaluation that comes after the last round
                self.finish()

    def skip_round(self) -> None:
        """End a round of which nothing can be recorded, for example because no client answered: it keeps its number and has no records.

        Raises:
            UserError: No round has begun.
        """
        state = self._open_state()
        self.updates, self.is_open, self.state = [], False, replace(state, round=state.round + 1)

    def abandon_round(self) -> None:
        """Forget the round that has begun, for example because the loop repeats it; the next one takes its number."""
        self.updates, self.is_open = [], False

    def finish(self) -> Run:
        """Mark the run as finished, with its summary. ``round_ends`` of the last round calls it; a loop that stops early calls it itself.

        Returns:
            The stored run.
        """
        records, timings = self.run.records(), self.run.timings()
        spent = {phase: sum(row.get(phase, 0.0) for row in timings) for phase in ("train", "evaluate", "store", "final")}
        losses = [row.value for row in records if row.metric == "loss" and row.client < 0 and not row.domain]
        self.run.mark_finished(
            {
                "rounds": self._round,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "loss": losses[-1] if losses else math.nan,
                "final_loss": losses[-1] if losses else math.nan,
                "seconds": spent,
                "train_tokens": sum(row.value for row in records if row.metric == "train.tokens" and not math.isnan(row.value)),
                "warnings": [],
            }
        )
        return self.run

    # Inside

    @property
    def _round(self) -> int:
        return self.state.round if self.state else 0

    def _open_state(self) -> FederatedState:
        if self.state is None or not self.is_open:
            raise UserError("no round has begun: call round_begins with the model that clients receive")
        return self.state

    def _check_clients(self, clients: Iterable[int]) -> None:
        """Raise `UserError` if a client's number is not allowed."""
        odd = [client for client in clients if not self._is_client(client)]
        if odd:
            raise UserError(f"loss_by_client has client {quote_value(odd[0])}, but the clients are 0 to {self.num_clients - 1}")

    def _is_client(self, client: Any) -> bool:
        """Return whether a value is the number of a client."""
        return is_number(client) and float(client).is_integer() and 0 <= client < self.num_clients

    def _read(self, params: Params) -> Tree:
        """Parameters as a tree. A mean of whole numbers, as some servers send for counters of batches, is not a parameter either."""
        check_tensors(params)
        return to_tree({name: leaf for name, leaf in params.items() if name not in self._whole_numbers})

    def _read_delta(self, received: Tree, params: Params | None, delta: Params | None) -> Tree:
        """The change ``[1, ...]`` that a client made to what it received."""
        if (params is None) == (delta is None):
            raise UserError("client_update takes params or delta, one of the two")
        sent = self._read(params if params is not None else delta)  # type: ignore[arg-type]
        check_like(sent, received, "the update")
        return sent if params is None else sent - received

    def _start(self, params: Tree) -> FederatedState:
        """The state before round 1, and the probes that begin from it."""
        self.suite = ProbeSuite(make_probes(params, self.lora_scale), self.num_rounds)
        if self.vocab_size:
            self.log_records([Record(0, "loss.uniform", "", -1, math.log(self.vocab_size))])
        clients = ClientStateStore.replicate(Tree(), self.num_clients)
        return FederatedState(0, ServerState(params, Tree(), Tree()), clients, single_cluster(self.num_clients))

    def _evaluate(self, result: RoundResult) -> list[Record]:
        """The records of a round; what was not handed over is left out."""
        assert self.suite is not None
        metrics, _ = self.suite(result, self.history)
        unknown = {name for name, given in known_inputs(self.updates).items() if not given}
        metrics = {key: value for key, value in metrics.items() if metric_input(key) not in unknown}
        for place, name in enumerate(("loss.before", "loss.after")):
            values = torch.tensor([update.losses[place] for update in self.updates], dtype=torch.float64)
            if not values.isnan().all():
                metrics[name] = values
        rows = to_records(metrics, result.after.round, result.cohort.tolist(), self.num_clients)
        self.history.add_records(rows)
        return rows

    def _log_events(self, result: RoundResult, rows: Sequence[Record]) -> None:
        for update in self.updates:
            if update.delta is None:
                message = update.message or "its update is not finite; it is left out of the update geometry"
                self.run.log_event(result.after.round, "client failed", message, update.client)
            elif update.message:
                self.run.log_event(result.after.round, "client", update.message, update.client)
        for client, message in find_exploding_updates(rows):
            self.run.log_event(result.after.round, "update exploded", message, client)


# The folder, and what names it.


def check_arguments(name: str, num_clients: int, num_rounds: int, severity: float) -> None:
    """Raise `UserError` unless the arguments are allowed."""
    if not isinstance(name, str) or not name.strip():
        raise UserError("name: give the experiment a name, such as my-app")
    check_whole({"num_clients": num_clients, "num_rounds": num_rounds})
    if num_clients < 1 or num_rounds < 1 or max(num_clients, num_rounds) > MAX_INT:
        raise UserError(f"num_clients is {num_clients} and num_rounds is {num_rounds}; both must be from 1 to {MAX_INT:,}")
    if not is_number(severity) or not 0 <= severity <= 1:
        raise UserError(f"severity is {quote_value(severity)}; allowed: 0 (IID data) to 1")


def check_tensors(params: Any) -> None:
    """Raise `UserError` unless parameters are tensors by name."""
    if not isinstance(params, Mapping):
        raise UserError(f"the parameters are of the type {type(params).__name__}: give tensors by name, such as model.state_dict()")
    for name, leaf in params.items():
        if not isinstance(leaf, Tensor):
            raise UserError(f"the parameter {quote_value(name)} is of the type {type(leaf).__name__}: give it as a tensor of torch")


def is_number(value: Any) -> bool:
    """Return whether a value is a number of Python or numpy, or a tensor of one number, and no truth value."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dtype not in (torch.bool, torch.complex64, torch.complex128)
    return isinstance(value, Real) and not isinstance(value, bool)


def check_numbers(values: Mapping[str, Any], is_amount: bool = False) -> None:
    """Check numbers, by what they are; NaN stands for an unknown one.

    Args:
        values: The numbers.
        is_amount: Whether they must be finite and at least 0, if they are known.

    Raises:
        UserError: One of them is no number, or is not allowed.
    """
    for what, value in values.items():
        if not is_number(value):
            raise UserError(f"{what} is {quote_value(value)}, and must be a number")
        if is_amount and not (0 <= value < math.inf or math.isnan(value)):
            raise UserError(f"{what} is {quote_value(value)}, and must be a finite number of at least 0")


def check_whole(values: Mapping[str, Any]) -> None:
    """Raise `UserError` unless all values are whole numbers of at least 0."""
    for what, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
            raise UserError(f"{what} is {quote_value(value)}, and must be a whole number of at least 0")


def make_id(name: str, severity: float, seed: int, config: Mapping[str, Any]) -> str:
    """``my-app-skewed-seed0-1a2b3c``: readable, and another one for another experiment."""
    digest = sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{UNSAFE.sub('-', name)[:40]}-{'iid' if severity == 0 else 'skewed'}-seed{seed}-{digest}"


def open_folder(root: Path, run_id: str, fresh: bool) -> Run:
    """The folder of a new run; a stored one is moved aside or refused."""
    run = Run(root, run_id)
    if run.folder.exists() and not fresh:
        raise UserError(f"{run.folder} is stored already: pass fresh=True to move it aside, or use another name or seed")
    if run.folder.exists():
        archive_run(run)
    try:
        run.folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"runs cannot be stored in {root}: {error.strerror or error}") from error
    return run


# From parameters to trees.


def to_tree(params: Params) -> Tree:
    """Floating-point parameters as a tree ``[1, ...]`` on the CPU; LoRA factors by fedrift's names, ``<module>.A`` and ``.B``.

    The factors of a convolution keep their names, because the probes of adapters multiply matrices.
    """
    adapters = {found[2] for name in params if (found := LORA_FACTOR.search(name))}
    leaves = (
        (rename_factor(name, len(adapters) > 1) if leaf.ndim == 2 else name, leaf)
        for name, leaf in params.items()
        if leaf.is_floating_point()
    )
    return Tree({name: leaf.detach().cpu().clone()[None] for name, leaf in leaves})


def rename_factor(name: str, with_adapter: bool) -> str:
    """``<module>.A`` for PEFT's ``<module>.lora_A.weight`` or ``<module>.lora_A.default.weight``; other names stay.

    ``with_adapter`` gives ``<module>.default.A``, so that several adapters of one module have different names.
    """
    return LORA_FACTOR.sub(lambda found: f".{found[2]}.{found[1]}" if with_adapter and found[2] else f".{found[1]}", name)


def check_like(tree: Tree, expected: Tree, what: str) -> None:
    """Raise `UserError` unless a tree has the names and shapes of another."""
    odd = sorted(tree.keys() ^ expected.keys())
    if odd:
        raise UserError(f"{what} has other parameters than the round began with: {odd[0]} is in one only")
    for name, leaf in tree.items():
        if leaf.shape != expected[name].shape:
            raise UserError(f"{what}: {name} is {list(leaf.shape[1:])}, and {list(expected[name].shape[1:])} when the round began")


def make_result(state: FederatedState, params: Tree, updates: Sequence[ClientUpdate]) -> RoundResult:
    """The round as the probes read it, clients ascending."""
    check_like(params, state.server.params, "the model of round_ends")
    zero, count = state.server.params.zeros_like(), len(updates)
    failed = torch.tensor([update.delta is None for update in updates])
    cohort = torch.tensor([update.client for update in updates])

    def stack(trees: Iterable[Tree | None], absent: Tree) -> Tree:
        rows = [absent if tree is None else tree for tree in trees]
        return Tree({name: torch.cat([row[name] for row in rows]) for name in zero})

    sizes = [update.num_bytes or (math.nan, math.nan) for update in updates]
    report = CohortUpdate(
        delta=stack((update.delta for update in updates), zero),
        client_state=Tree(),
        state_delta=Tree(),
        mean_grad=stack((update.mean_grad for update in updates), zero.map(lambda leaf: torch.full_like(leaf, math.nan))),
        weight=torch.tensor([0.0 if update.delta is None else update.weight for update in updates], dtype=torch.float64),
        steps=torch.tensor([math.nan if update.steps is None else update.steps for update in updates], dtype=torch.float64),
        loss=torch.tensor([update.train_losses for update in updates], dtype=torch.float64),
        tokens=torch.tensor([update.tokens for update in updates], dtype=torch.float64),
        failed=failed,
        cluster_ids=single_cluster(count),
        cluster_sizes=torch.tensor([len(state.cluster_ids)]),
        lr=torch.full((count,), math.nan),
        bytes_on_wire=torch.tensor(sizes, dtype=torch.float64) if any(update.num_bytes for update in updates) else None,
    )
    server = replace(state.server, params=params)
    after = replace(state, round=state.round + 1, server=server, server_delta=params - state.server.params)
    return RoundResult(state, after, cohort, report)


# What is measured, and from what.


def make_probes(initial_params: Tree, lora_scale: float) -> tuple[ScheduledProbe | DerivedMetric, ...]:
    """The probes of a native run that need neither text nor model."""
    has_adapters = any(name.endswith(".A") and f"{name[:-1]}B" in initial_params for name in initial_params)
    adapters: list[ScheduledProbe | DerivedMetric] = [
        ScheduledProbe("adapters", aggregation_error),
        ScheduledProbe("products", ProductGeometry(lora_scale, initial_params)),
        DerivedMetric("products", product_efficiency),
    ]
    return (
        ScheduledProbe("training", training_metrics),
        ScheduledProbe("updates", update_geometry),
        ScheduledProbe("path", ServerPath(initial_params)),
        DerivedMetric("path", path_efficiency),
        *(adapters if has_adapters else []),
        ScheduledProbe("cost", CommunicationCost(PlainAlgorithm())),
    )


def known_inputs(updates: Sequence[ClientUpdate]) -> dict[str, bool]:
    """What at least one client handed over."""
    return {
        "steps": any(update.steps is not None for update in updates),
        "tokens": any(not math.isnan(update.tokens) for update in updates),
        "first_loss": any(not math.isnan(update.train_losses[0]) for update in updates),
        "train_loss": any(not math.isnan(update.train_losses[1]) for update in updates),
        "mean_grad": any(update.mean_grad is not None for update in updates),
    }


def metric_input(key: str | tuple[str, str]) -> str:
    """What a metric is made of beside the parameters; "" if nothing."""
    metric = key if isinstance(key, str) else key[0]
    if metric.startswith("gradient."):
        return "mean_grad"
    return {"train.steps": "steps", "train.tokens": "tokens", "train.loss.start": "first_loss", "train.loss": "train_loss"}.get(metric, "")


__all__ = ["Recorder"]
