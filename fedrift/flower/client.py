"""The Flower ClientApp of fedrift, which trains one client with the code of the simulated client pool.

The model, the batches, the local steps and the algorithm are those of a run on one machine. The run configuration specifies the
experiment; the node configuration specifies the client (``client=0 data=/folder``). Messages contain only tensors, numbers and
the round. A client's documents and its state stay on its machine.

A client cannot know whether the server received its result. It therefore stores two states with their rounds: the state before
the last local training and the state after it. The next message names the last round of this client that the server counted. The
client continues from the state of that round and discards the other. The SCAFFOLD invariant c = mean_k c_k therefore holds even
if messages are lost.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
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
from ..engine.build import build_run, create_simulator, make_batches
from ..engine.cache import ResourceCache, resolve_fingerprints
from ..engine.loop import init_state
from ..models.presets import fingerprint_model
from ..simulation import ClientSimulator
from ..storage.tensors import load_tensors, save_tensors
from .config import ARITHMETIC_OPTIONS, arithmetic_options, read_dtype, read_experiment_config, read_threads
from .wire import MessageRejected, pack_message, read_int, read_metadata, read_plain_arrays, read_trees, to_plain_arrays


class StateLost(Exception):
    """The client does not have the stored state of the round that the server named."""


def load_client_state(path: Path, initial: Tree, counted_round: int, restored: Tree | None = None) -> Tree:
    """Load a client's state from disk.

    Args:
        path: The file of the client's state.
        initial: The initial state of a client [1, ...], empty if the algorithm has no client state.
        counted_round: The last round of this client that the server counted; 0 if there is none.
        restored: A state [1, ...] that the server sent to replace a lost one.

    Returns:
        The client state [1, ...] after round ``counted_round``.

    Raises:
        StateLost: If the file is missing, unreadable, or does not contain the state of that round.
    """
    if not initial or (counted_round == 0 and restored is None):
        return initial
    if restored is not None:
        return restored
    try:
        with lock_state(path):
            leaves, metadata = load_tensors(path)
    except UserError as error:
        raise StateLost(f"the client state of round {counted_round} is missing") from error
    for part in ("after", "before"):
        state = Tree({name: leaves[f"{part}/{name}"].clone() for name in initial if f"{part}/{name}" in leaves})
        if (
            metadata.get(part) == counted_round
            and all(state[name].shape == leaf.shape for name, leaf in initial.items() if name in state)
            and state.keys() == initial.keys()
        ):
            return state
    raise StateLost(
        f"the client state of round {counted_round} is missing; stored are rounds {metadata.get('before')} and {metadata.get('after')}"
    )


def save_client_state(path: Path, counted_round: int, before: Tree, round: int, after: Tree) -> None:
    """Store the client state before and after local training.

    Args:
        path: The file of the client's state.
        counted_round: The round of the state ``before``.
        before: The client state [1, ...] before local training; nothing is written if it is empty.
        round: The round of the state ``after``, which becomes valid if the server counts the result.
        after: The client state [1, ...] after local training.
    """
    if not before:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = {f"{part}/{name}": leaf for part, tree in (("before", before), ("after", after)) for name, leaf in tree.items()}
    with lock_state(path):
        save_tensors(path, leaves, {"before": counted_round, "after": round})


def lock_state(path: Path) -> FileLock:
    """Lock a client's state file, so that two simultaneous requests do not write it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))


# The ClientApp.


@dataclass(frozen=True, eq=False)
class FlowerClient:
    """One client and everything that it needs for local training."""

    client_id: int
    experiment_id: str
    algorithm: FedAvg
    simulator: ClientSimulator  # a simulator of size 1 for this client
    initial_server: ServerState  # [1, ...] the server state before the first round
    state_dir: Path  # the folder of the stored client state
    has_own_documents: bool = False  # whether it trains on its own documents instead of its part of the experiment's dataset


ClientFactory = Callable[[Context], FlowerClient]
"""Maps a Flower context to the client of this node; it returns the same client for the same configuration."""


def make_client_app(client_factory: ClientFactory) -> ClientApp:
    """Build a Flower ClientApp that handles messages with the client that ``client_factory`` returns."""
    app = ClientApp()

    @app.query()  # type: ignore[untyped-decorator]
    def who(message: Message, context: Context) -> Message:
        """Answer which client runs on this node."""
        client = client_factory(context)
        content = pack_message(
            {}, {"client": client.client_id, "experiment_id": client.experiment_id, "has_own_documents": client.has_own_documents}
        )
        return Message(content, reply_to=message)

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        """Train one round, for a server of fedrift or for a plain Flower strategy."""
        client = client_factory(context)
        is_fedrift_message = "metadata" in message.content
        try:
            content = train_round(client, message.content) if is_fedrift_message else train_plain_round(client, message.content)
        except StateLost as error:
            content = pack_message({}, {"client": client.client_id, "state_lost": str(error)})
        except MessageRejected as error:
            if not is_fedrift_message:  # a plain Flower strategy understands errors but not fedrift's metadata
                return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"the client refused: {error}"), reply_to=message)
            content = pack_message({}, {"client": client.client_id, "rejected": f"the client refused: {error}"})
        return Message(content, reply_to=message)

    return app


def train_round(client: FlowerClient, content: RecordDict) -> RecordDict:
    """Train one round as requested by a message of ``FlowerClientPool``.

    Returns:
        The content of the reply: the update, and the changes of client state and mean gradient that the server needs.

    Raises:
        MessageRejected: If the message is invalid or meant for another experiment or client.
        StateLost: If the client state of the counted round is missing.
    """
    metadata = read_metadata(content)
    for name, own_value in (("experiment_id", client.experiment_id), ("client", client.client_id)):
        if metadata.get(name) != own_value:
            raise MessageRejected(f"this is {name} {own_value!r}, but the message is for {quote_value(metadata.get(name))}")
    initial = client.initial_server
    initial_state = client.algorithm.init_client_state(initial.params.to(torch.device("cpu")))
    expected = {
        "params": initial.params,
        "broadcast": initial.broadcast,
        "merged_base": initial.merged_base,
        "client_state": initial_state if metadata.get("restores_state") else Tree(),
    }
    trees = read_trees(content, expected)
    directory_id, round, counted_round = (
        metadata.get("run_directory_id"),
        read_int(metadata, "round", 0),
        read_int(metadata, "counted_round", 0),
    )
    if not (
        isinstance(directory_id, str)
        and directory_id.isascii()
        and directory_id.isalnum()
        and len(directory_id) <= 64
        and counted_round <= round
    ):
        raise MessageRejected("it does not name a valid round of a run")
    path = client.state_dir / directory_id / f"client-{client.client_id}.safetensors"
    state = load_client_state(path, initial_state, counted_round, trees["client_state"] or None)
    update = train_locally(client, round, trees, state)
    save_client_state(path, counted_round, state, round + 1, update.client_state)
    uploads = client.algorithm.uploads
    reply_trees = {
        "delta": update.delta,
        "state_delta": update.state_delta if "client_state" in uploads else Tree(),
        "mean_grad": update.mean_grad if "mean_grad" in uploads or metadata.get("send_gradients") else Tree(),
    }
    return pack_message(
        reply_trees,
        {
            "client": client.client_id,
            "round": round,
            "weight": update.weight.item(),
            "steps": update.steps.item(),
            "loss": update.loss[0].tolist(),
            "tokens": update.tokens.item(),
            "failed": bool(update.failed.item()),
            "lr": update.lr.item(),
        },
    )


def train_locally(client: FlowerClient, round: int, trees: dict[str, Tree], client_state: Tree) -> CohortUpdate:
    """Train this client locally.

    Args:
        client: The client.
        round: The number of the round, counted from 0.
        trees: The server's ``params``, ``broadcast`` and ``merged_base``, each [1, ...].
        client_state: The client's state [1, ...].

    Returns:
        The update of a cohort of one client.
    """
    device = client.initial_server.params.device
    server = ServerState(trees["params"].to(device), trees["broadcast"].to(device), Tree(), trees["merged_base"].to(device))
    cohort = torch.zeros(1, dtype=torch.long)
    state = FederatedState(round, server, ClientStateStore.from_rows(client_state, 1), cohort)
    return client.simulator.train(state, client.algorithm, cohort)


def train_plain_round(client: FlowerClient, content: RecordDict) -> RecordDict:
    """Train one round for a plain Flower strategy, which sends ``arrays`` and ``config`` and expects ``arrays`` and ``metrics``.

    Raises:
        MessageRejected: If the message is invalid, if the algorithm needs more than a model, or if the strategy asks for a proximal term
            that the algorithm does not have.
    """
    initial, algorithm = client.initial_server, client.algorithm
    if initial.broadcast or initial.merged_base or algorithm.uploads or algorithm.init_client_state(initial.params):
        with_aggregator = f" with the aggregator {type(algorithm.aggregator).__name__}" if initial.merged_base else ""
        raise MessageRejected(
            f"a plain Flower strategy exchanges only a model, and {type(algorithm).__name__}{with_aggregator} needs more: "
            "run it with fedrift's server, or use FedAvg or FedProx"
        )
    absent = [name for name, records in (("arrays", content.array_records), ("config", content.config_records)) if name not in records]
    if absent:
        raise MessageRejected(f"it contains no {' and no '.join(absent)}, which Flower's strategies send")
    start = read_plain_arrays(content.array_records["arrays"], initial.params)
    if not bool(start.is_finite().all()):
        raise MessageRejected("its arrays contain numbers that are not finite")
    config = content.config_records["config"]
    asked, own = config.get("proximal-mu", math.nan), getattr(algorithm, "mu", 0.0)
    if "proximal-mu" in config and asked != own:
        raise MessageRejected(
            f"the strategy asks for proximal-mu={quote_value(asked)}, and {type(algorithm).__name__} of this client has mu={own:g}: "
            "set algorithm={type: FedProx, mu: ...} in the experiment to the strategy's proximal_mu"
        )
    round = read_int(config, "server-round", 1) - 1  # Flower counts rounds from 1
    trees = {"params": start, "broadcast": Tree(), "merged_base": initial.merged_base}
    update = train_locally(client, round, trees, Tree())
    metrics = MetricRecord({"num-examples": update.weight.item(), "train_loss": update.loss[0, 1].item()})
    return RecordDict({"arrays": to_plain_arrays(start + update.delta.to(torch.device("cpu"))), "metrics": metrics})


@dataclass(frozen=True, eq=False)
class SingleClientBatches:
    """The batches of one client of a pool, in the form of a pool that has only this client."""

    batches: Any
    client_id: int

    def __call__(self, round: int, cohort: torch.Tensor) -> Any:
        return self.batches(round, torch.full_like(cohort, self.client_id))


def single_client_simulator(simulator: ClientSimulator, client_id: int) -> ClientSimulator:
    """Return a simulator of size 1 that contains only client ``client_id``."""
    return replace(simulator, size=1, batches=SingleClientBatches(simulator.batches, client_id), clients_per_pass=None)


# Building the client of a node from the run configuration and the node configuration.


def make_client(context: Context) -> FlowerClient:
    """Build the client of this node from a Flower context; the client is loaded once per process.

    The node configuration names the client and, if it has its own documents, their folder:
    ``flower-supernode --node-config 'client=0 data="/home/me/texts"'``. Without ``data`` the client trains on its part of the
    experiment's dataset.

    Raises:
        UserError: If the node configuration does not name a client.
    """
    run, node = context.run_config, context.node_config
    number = node.get("client", node.get("partition-id"))
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(
            "the node configuration does not name a client: pass e.g. --node-config 'client=0'"
            + ("" if number is None else f"; it has client={quote_value(number)}")
        )

    def read_option(name: str) -> str:
        return str(node.get(name, run.get(name, "")))

    options = NodeOptions(
        **{option.name: read_option(option.name) for option in fields(NodeOptions) if option.name != "arithmetic"},
        arithmetic=tuple((name, read_option(name)) for name in ARITHMETIC_OPTIONS),
    )
    return load_client(str(run.get("experiment", "")), number, options)


@dataclass(frozen=True)
class NodeOptions:
    """The options of a node as text, from its node configuration or the run configuration. "" selects the default."""

    data: str = ""  # the folder of the client's own documents; by default the client has its part of the experiment's dataset
    state_dir: str = ""  # the folder for the client's state; by default fedrift's cache folder
    device: str = ""  # the device, as for ``--device``
    dtype: str = ""  # the data type of the frozen base weights, as for ``--dtype``
    threads: str = ""  # the number of CPU threads
    data_dir: str = ""  # the folder of local datasets, as for ``--data-dir``
    cwd: str = ""  # the working directory to change to
    arithmetic: tuple[tuple[str, str], ...] = ()  # pairs of a numeric option and its value


@lru_cache(maxsize=1)
def load_client(experiment_json: str, client_id: int, options: NodeOptions = NodeOptions()) -> FlowerClient:
    """Load one client of an experiment.

    Args:
        experiment_json: The experiment as JSON.
        client_id: The number of the client, from 0.
        options: The options of the node.

    Raises:
        UserError: If the experiment or an option is invalid, or if there is no such client.
    """
    if options.cwd:
        os.chdir(options.cwd)
    experiment = read_experiment_config({"experiment": experiment_json})
    cache = ResourceCache(
        Runtime(
            device=options.device or "auto",
            threads=read_threads({"threads": options.threads}),
            clients_per_pass=1,
            dtype=read_dtype({"dtype": options.dtype}),
            data_dir=Path(options.data_dir).expanduser() if options.data_dir else None,
            **arithmetic_options(dict(options.arithmetic)),
        )
    )
    size = experiment.partition.num_clients
    if not 0 <= client_id < size:
        raise UserError(f"this node is configured as client {client_id}, but the experiment has clients 0 to {size - 1}")
    if options.data:
        pool_simulator, state = prepare_own_documents(experiment, cache, client_id, Path(options.data).expanduser())
    else:
        run_context = build_run(resolve_fingerprints(experiment, cache), cache)
        pool_simulator, state = run_context.simulator, run_context.initial_state
    server, first_row = state.server, slice(0, 1)
    server = ServerState(
        server.params.take(first_row), server.broadcast.take(first_row), server.opt_state.zeros_like(), server.merged_base.take(first_row)
    )
    folder = Path(options.state_dir).expanduser() if options.state_dir else default_cache_dir() / "clients"
    simulator = single_client_simulator(pool_simulator, client_id)
    return FlowerClient(client_id, experiment.id, experiment.algorithm, simulator, server, folder, bool(options.data))


def prepare_own_documents(
    config: ExperimentConfig, resources: ResourceCache, client_id: int, data: Path
) -> tuple[ClientSimulator, FederatedState]:
    """Build a client pool in which client ``client_id`` trains on the documents in ``data`` and the other clients have none.

    Returns:
        The simulator of the pool and the initial state.

    Raises:
        UserError: If the model differs from the server's, the documents cannot be read, or the algorithm pools the documents.
    """
    runtime, training = resources.runtime, config.training
    runtime.configure_torch()
    dataset = replace(
        DatasetConfig(str(data)),
        text_column=config.dataset.text_column,
        label_column="",
        validation_fraction=0.0,
        test_fraction=0.0,
        format=config.dataset.format,
        train_on=config.dataset.train_on,
        chat_template=config.dataset.chat_template,
    )
    corpus = load_corpus(dataset).train
    if fingerprint_model(config.model, corpus.examples is not None) != config.model_fingerprint:
        raise UserError(f"the model {config.model!r} on this node differs from the server's: copy it from the server again")
    tokens = resources.get_tokens(corpus, config.model, config.trainable, config.random_weights_seed)
    size = config.partition.num_clients
    client_rows, _, steps = config.algorithm.configure_clients([np.arange(0)] * size, training.cohort_size(size), training.local_steps)
    if len(client_rows) != size:
        raise UserError(
            f"{type(config.algorithm).__name__} pools the documents of all clients, but a client's own documents cannot leave its machine"
        )
    order = numpy_stream(config.seed, "pack", client_id).permutation(len(corpus))
    blocks, no_blocks = pack_blocks(tokens, order, training.max_seq_length), pack_blocks(tokens, order[:0], training.max_seq_length)
    all_blocks: tuple[Blocks, ...] = tuple(blocks if client == client_id else no_blocks for client in range(size))
    batches = make_batches(config, all_blocks, steps, True, runtime)
    model = resources.get_stacked_model(config.model, config.trainable, config.random_weights_seed)
    simulator = create_simulator(config, model, batches, size, pass_size=1)
    template = model.init_params(config.seed).to(runtime.resolve_device())
    return simulator, init_state(config.algorithm, template, size)


app = make_client_app(make_client)
