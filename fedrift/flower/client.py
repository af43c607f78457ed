"""What a client keeps on its own machine between rounds, written so that client and server cannot disagree about it.

A client does not know whether its answer arrived. So it keeps two memories, the one that it had and the one that it would have
had, each with the round it belongs to, and the next message says which round of this client the server counted last.
That one holds; the other is forgotten. c = mean_k c_k of SCAFFOLD then holds whatever was lost on the way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from ..algorithms import FedAvg
from ..config.runtime import Runtime
from ..config.schema import ExperimentConfig
from ..core.errors import UserError, default_cache_dir, quote_value
from ..core.random import numpy_stream
from ..core.tree import Tree
from ..core.types import ClientStateStore, CohortUpdate, FederatedState, ServerState
from ..data import Blocks, DatasetConfig, load_corpus, pack_blocks
from ..engine.build import build_run, resolve_fingerprints
from ..engine.cache import ResourceCache
from ..engine.loop import init_state
from ..models.presets import fingerprint_model
from ..models.stacked_model import mean_hidden_states
from ..simulation import ClientSimulator
from ..simulation.batches import TextBatches
from ..storage.tensors import load_tensors, save_tensors
from .config import ARITHMETIC_OPTIONS, arithmetic_options, read_dtype, read_experiment_config, read_threads
from .wire import PROTOCOL_VERSION, MessageRejected, pack_message, read_int, read_metadata, read_stock_arrays, read_trees, to_stock_arrays


class StateLost(Exception):
    """The memory that the server means is not here."""


def load_client_state(path: Path, initial: Tree, counted_round: int, restored: Tree | None = None) -> Tree:
    """The memory as of round ``counted_round`` (0: none yet), ``[1, ...]``. ``initial`` is how memories begin; ``restored``: what
    to go on with in place of one that was lost."""
    if not initial or (counted_round == 0 and restored is None):
        return initial
    if restored is not None:
        return restored
    try:
        with lock_state(path):
            leaves, told = load_tensors(path)
    except UserError as error:
        raise StateLost(f"the memory of round {counted_round} is not here") from error
    for part in ("after", "before"):
        found = Tree({name: leaves[f"{part}/{name}"].clone() for name in initial if f"{part}/{name}" in leaves})
        if (
            told.get(part) == counted_round
            and all(found[name].shape == leaf.shape for name, leaf in initial.items() if name in found)
            and found.keys() == initial.keys()
        ):
            return found
    raise StateLost(f"the memory of round {counted_round} is not here, only those of rounds {told.get('before')} and {told.get('after')}")


def save_client_state(path: Path, counted_round: int, before: Tree, round: int, after: Tree) -> None:
    """Keep both: the memory as of round ``counted_round``, and that as of ``round`` should the server count it."""
    if not before:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = {f"{part}/{name}": leaf for part, tree in (("before", before), ("after", after)) for name, leaf in tree.items()}
    with lock_state(path):
        save_tensors(path, leaves, {"before": counted_round, "after": round})


def lock_state(path: Path) -> FileLock:
    """A client that is asked twice at once writes one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))


# The client half: a Flower ClientApp that is the simulated fleet with a cohort of one.
#
# The model, the batches, the local steps and the algorithm are those of a run on one machine. What a client is comes from the
# run's configuration (the experiment) and from its own node's (``client=0 data=/folder``), never from a message: a message brings
# numbers and says which round it is. Its documents and what it keeps between rounds stay on its machine.


@dataclass(frozen=True, eq=False)
class FlowerClient:
    """One client on its machine."""

    client_id: int
    experiment_id: str  # its id
    algorithm: FedAvg
    simulator: ClientSimulator  # of size 1: this client
    initial_server: ServerState  # [1, ...] as the server is before the first round
    state_dir: Path  # the folder of what it keeps
    has_own_documents: bool = False  # whether it trains on documents of its own, not on its part of the experiment's


ClientFactory = Callable[[Context], FlowerClient]
"""The client that a node is; the same one for the same configuration."""


def make_client_app(client_factory: ClientFactory) -> ClientApp:
    """The app, of whoever makes the client."""
    app = ClientApp()

    @app.query()  # type: ignore[untyped-decorator]
    def who(message: Message, context: Context) -> Message:
        """Which client lives here."""
        client = client_factory(context)
        content = pack_message(
            {}, {"client": client.client_id, "experiment_id": client.experiment_id, "has_own_documents": client.has_own_documents}
        )
        return Message(content, reply_to=message)

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        client = client_factory(context)
        fits = "metadata" in message.content
        try:
            content = train_round(client, message.content) if fits else train_stock_round(client, message.content)
        except StateLost as error:
            content = pack_message({}, {"client": client.client_id, "state_lost": str(error)})
        except MessageRejected as error:
            if not fits:  # a plain strategy knows errors, and no words of ours
                return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"the client refused: {error}"), reply_to=message)
            content = pack_message({}, {"client": client.client_id, "rejected": f"the client refused: {error}"})
        return Message(content, reply_to=message)

    return app


def train_round(client: FlowerClient, content: RecordDict) -> RecordDict:
    """A round, from the message of ``FlowerClientPool`` to the answer."""
    told = read_metadata(content)
    for name, here in (("experiment_id", client.experiment_id), ("client", client.client_id)):
        if told.get(name) != here:
            raise MessageRejected(f"this is {name} {here!r}, the message is for {quote_value(told.get(name))}")
    first = client.initial_server
    kept = client.algorithm.init_client_state(first.params.to(torch.device("cpu")))
    wanted = {
        "params": first.params,
        "broadcast": first.broadcast,
        "merged_base": first.merged_base,
        "client_state": kept if told.get("restores_state") else Tree(),
    }
    found = read_trees(content, wanted)
    life, round, counted = told.get("run_incarnation"), read_int(told, "round", 0), read_int(told, "counted_round", 0)
    if not (isinstance(life, str) and life.isascii() and life.isalnum() and len(life) <= 64 and counted <= round):
        raise MessageRejected("it does not say which round of which run it is")
    path = client.state_dir / life / f"client-{client.client_id}.safetensors"
    memory = load_client_state(path, kept, counted, found["client_state"] or None)
    report = train_locally(client, round, found, memory)
    save_client_state(path, counted, memory, round + 1, report.client_state)
    tells = client.algorithm.uploads
    trees = {
        "delta": report.delta,
        "state_delta": report.state_delta if "client_state" in tells else Tree(),
        "mean_grad": report.mean_grad if "mean_grad" in tells or told.get("send_gradients") else Tree(),
    }
    return pack_message(
        trees,
        {
            "client": client.client_id,
            "round": round,
            "weight": report.weight.item(),
            "steps": report.steps.item(),
            "loss": report.loss[0].tolist(),
            "tokens": report.tokens.item(),
            "failed": bool(report.failed.item()),
            "lr": report.lr.item(),
        },
    )


def train_locally(client: FlowerClient, round: int, trees: dict[str, Tree], client_state: Tree) -> CohortUpdate:
    """The local training of this client, as a fleet of one with one model, ``[1, ...]``."""
    device = next(iter(client.initial_server.params.values())).device
    server = ServerState(trees["params"].to(device), trees["broadcast"].to(device), Tree(), trees["merged_base"].to(device))
    alone = torch.zeros(1, dtype=torch.long)
    state = FederatedState(round, server, ClientStateStore.from_rows(client_state, 1), alone)
    return client.simulator.train(state, client.algorithm, alone)


def train_stock_round(client: FlowerClient, content: RecordDict) -> RecordDict:
    """A round for a plain Flower strategy: it sends ``arrays`` and ``config``, and takes ``arrays`` and ``metrics``."""
    first = client.initial_server
    if first.broadcast or client.algorithm.init_client_state(first.params):
        raise MessageRejected(
            f"a plain strategy sends a model and nothing beside it; {type(client.algorithm).__name__} needs more: "
            "run it with fedrift's server, or ask for FedAvg or FedProx"
        )
    absent = [name for name, records in (("arrays", content.array_records), ("config", content.config_records)) if name not in records]
    if absent:
        raise MessageRejected(f"it brings no {' and no '.join(absent)}, which Flower's strategies send")
    start = read_stock_arrays(content.array_records["arrays"], first.params)
    if not bool(start.is_finite().all()):
        raise MessageRejected("its arrays hold numbers that are not finite")
    round = read_int(content.config_records["config"], "server-round", 1) - 1  # theirs begin at 1
    found = {"params": start, "broadcast": Tree(), "merged_base": first.merged_base}
    report = train_locally(client, round, found, Tree())
    metrics = MetricRecord({"num-examples": report.weight.item(), "train_loss": report.loss[0, 1].item()})
    return RecordDict({"arrays": to_stock_arrays(start + report.delta.to(torch.device("cpu"))), "metrics": metrics})


@dataclass(frozen=True, eq=False)
class SingleClientBatches:
    """The batches of one client of a fleet, as those of a fleet of one."""

    batches: Any
    client_id: int

    def __call__(self, round: int, cohort: torch.Tensor) -> Any:
        return self.batches(round, torch.full_like(cohort, self.client_id))


def single_client_simulator(simulator: ClientSimulator, client_id: int) -> ClientSimulator:
    """The fleet of one that client ``client_id`` is."""
    return replace(simulator, size=1, batches=SingleClientBatches(simulator.batches, client_id), clients_per_pass=None)


# The client that a node is, made from the run's configuration and the node's own.
#
# The run says the experiment; the node says which client it is and, where it has documents of its own, where they lie:
# ``flower-supernode --node-config 'client=0 data="/home/me/texts"'``. Without ``data`` it takes its part of the
# experiment's corpus, dealt as on one machine.


def make_client(context: Context) -> FlowerClient:
    """The client of this node; loaded once for a process."""
    run, node = context.run_config, context.node_config
    number = node.get("client", node.get("partition-id"))
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(
            "the node does not say which client it is: --node-config 'client=0'"
            + ("" if number is None else f"; it says {quote_value(number)}")
        )
    names = ("data", "state_dir", "device", "dtype", "threads", "data_dir", "cwd", *ARITHMETIC_OPTIONS)
    said = {name: str(node.get(name, run.get(name, ""))) for name in names}
    return load_client(str(run.get("experiment", "")), number, **said)


@lru_cache(maxsize=1)
def load_client(
    experiment_json: str,
    client_id: int,
    data: str = "",
    state_dir: str = "",
    device: str = "",
    dtype: str = "",
    threads: str = "",
    data_dir: str = "",
    cwd: str = "",
    **engine: str,
) -> FlowerClient:
    """Client ``client_id`` of a written experiment. ``data_dir``: the folder of local datasets by name, as ``--data-dir``
    says it. ``engine``: of the arithmetic, what is not the default."""
    if cwd:
        os.chdir(cwd)
    experiment = read_experiment_config({"experiment": experiment_json})
    stock = ResourceCache(
        Runtime(
            device=device or "auto",
            threads=read_threads({"threads": threads}),
            clients_per_pass=1,
            dtype=read_dtype({"dtype": dtype}),
            data_dir=Path(data_dir).expanduser() if data_dir else None,
            **arithmetic_options(engine),
        )
    )
    size = experiment.partition.num_clients
    if not 0 <= client_id < size:
        raise UserError(f"this node says that it is client {client_id}; the experiment has clients 0 to {size - 1}")
    if data:
        fleet, state = prepare_own_documents(experiment, stock, client_id, Path(data).expanduser())
    else:
        setting = build_run(resolve_fingerprints(experiment, stock), stock)
        fleet, state = setting.simulator, setting.initial_state
    first, one = state.server, slice(0, 1)
    first = ServerState(first.params.take(one), first.broadcast.take(one), first.opt_state.zeros_like(), first.merged_base.take(one))
    folder = Path(state_dir).expanduser() if state_dir else default_cache_dir() / "clients"
    return FlowerClient(
        client_id, experiment.id, experiment.algorithm, single_client_simulator(fleet, client_id), first, folder, bool(data)
    )


def prepare_own_documents(
    config: ExperimentConfig, resources: ResourceCache, client_id: int, data: Path
) -> tuple[ClientSimulator, FederatedState]:
    """The fleet in which client ``client_id`` trains on the documents in ``data``, and the first state; nobody else has any."""
    runtime, plan = resources.runtime, config.training
    runtime.configure_torch()
    if fingerprint_model(config.model) != config.model_fingerprint:
        raise UserError(f"the model {config.model!r} on this node is not the server's: copy it anew")
    own = replace(
        DatasetConfig(str(data)), text_column=config.dataset.text_column, label_column="", validation_fraction=0.0, test_fraction=0.0
    )
    corpus = load_corpus(own).train
    tokens = resources.get_tokens(corpus, config.model, config.trainable)
    size = config.partition.num_clients
    parts, _, steps = config.algorithm.configure_clients([np.arange(0)] * size, plan.cohort_size(size), plan.local_steps)
    if len(parts) != size:
        raise UserError(f"{type(config.algorithm).__name__} brings the documents of clients together; these stay where they are")
    order = numpy_stream(config.seed, "pack", client_id).permutation(len(corpus))
    blocks, none = pack_blocks(tokens, order, plan.max_seq_length), pack_blocks(tokens, order[:0], plan.max_seq_length)
    every: tuple[Blocks, ...] = tuple(blocks if client == client_id else none for client in range(size))
    batches = TextBatches(every, plan.batch_size, config.seed, steps, plan.local_epochs, runtime.resolve_device())
    model = resources.get_stacked_model(config.model, config.trainable)
    fleet = ClientSimulator(
        size,
        model,
        batches,
        plan.client_optimizer,
        plan.max_grad_norm,
        plan.client_weighting,
        plan.lr_factor,
        1,
        partial(mean_hidden_states, model.hidden_states),
    )
    template = model.init_params(config.seed).to(runtime.resolve_device())
    return fleet, init_state(config.algorithm, template, size)


app = make_client_app(make_client)


__all__ = [
    "PROTOCOL_VERSION",
    "ClientFactory",
    "FlowerClient",
    "app",
    "load_client",
    "make_client",
    "make_client_app",
    "single_client_simulator",
    "train_round",
]
