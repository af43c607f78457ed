"""A grid without a network: messages reach real ClientApps in this process through Flower's serialization."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from fedrift.algorithms import FedAvg
from fedrift.core.optimizers import Optimizer, Sgd
from fedrift.core.types import FederatedState, ServerState
from fedrift.engine.clustering import ClusteringRuntime
from fedrift.engine.loop import init_state, run_rounds
from fedrift.flower.client import FlowerClient, make_client_app, single_client_simulator
from fedrift.flower.client_pool import FlowerClientPool
from fedrift.simulation import ClientSimulator
from tests.laws.federation import Data, loss, params, represent

Interceptor = Callable[[Message, Message], Iterable[Message]]
"""(what was sent, what the client answers) -> what arrives"""
EXPERIMENT, NODE = "0123456789ab", 1000  # node 1000 + k is client k


def transmit(message: Message) -> Message:
    """Return the message as it arrives after serialization."""
    contents = {name: thing.deflate() for name, thing in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, contents)
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
    return arrived


class Loopback(Grid):
    """A grid in this process. ``apps`` maps a node to (ClientApp, Context). ``meddle`` may replace answers. Nodes in ``silent`` train and
    never answer; nodes in ``dead`` do not even answer discovery.
    """

    def __init__(self, apps, meddle: Interceptor | None = None) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # Flower's Message requires a task identity
        self.apps, self.meddle = dict(apps), meddle or (lambda sent, answer: [answer])
        self.silent: set[int] = set()
        self.dead: set[int] = set()
        self.replies: list[Message] = []
        self.sent: list[Message] = []
        self.received: list[Message] = []

    def set_run(self, run) -> None: ...
    @property
    def run(self): ...
    def create_message(self, *what, **more): ...

    def get_node_ids(self):
        return list(self.apps)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            ids.append(message.metadata.message_id)
            self.sent.append(message)
            node = message.metadata.dst_node_id
            if node in self.dead or (node in self.silent and message.metadata.message_type == "train"):
                continue
            app, context = self.apps[node]
            arrived = transmit(message)
            try:
                answer = app(arrived, context)
            except Exception as error:  # as flwr-clientapp does
                answer = Message(Error(code=1, reason=str(error)), reply_to=arrived)
            arrived = [
                transmit(reply) for reply in (self.meddle(message, answer) if message.metadata.message_type == "train" else [answer])
            ]
            self.replies += arrived
            self.received += arrived
        return ids

    def pull_messages(self, message_ids):
        requested = set(message_ids)
        found = [reply for reply in self.replies if reply.metadata.reply_to_message_id in requested]
        self.replies = [reply for reply in self.replies if reply not in found]
        return found

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))


def client(number: int, dataset: Data, algorithm: FedAvg, keeps: Path, optimizer: Optimizer, **options) -> FlowerClient:
    size = len(dataset.steps)
    simulator = ClientSimulator(size, loss, dataset, optimizer, represent_fn=represent, **options)
    state = init_state(algorithm, params(dataset.x.dtype), size)
    one, first = slice(0, 1), state.server
    return FlowerClient(
        number,
        EXPERIMENT,
        algorithm,
        single_client_simulator(simulator, number),
        ServerState(first.params.take(one), first.broadcast.take(one), first.opt_state.zeros_like(), first.merged_base.take(one)),
        keeps,
    )


def make_nodes(dataset: Data, algorithm: FedAvg, keeps: Path, optimizer: Optimizer = Sgd(0.05), **options):
    """Return a node for every client."""
    found = {}
    for number in range(len(dataset.steps)):
        made = client(number, dataset, algorithm, keeps, optimizer, **options)
        found[NODE + number] = (make_client_app(lambda context, made=made: made), Context(1, NODE + number, {}, RecordDict(), {}))
    return found


def run_over_flower(
    algorithm: FedAvg,
    dataset: Data,
    keeps: Path,
    *,
    until: int = 3,
    cohort: int | None = None,
    state: FederatedState | None = None,
    grid: Loopback | None = None,
    optimizer: Optimizer = Sgd(0.05),
    clients=None,
    work: ClusteringRuntime | None = None,
    **options,
):
    size = len(dataset.steps)
    grid = grid or Loopback(make_nodes(dataset, algorithm, keeps, optimizer, **(clients or {})))
    made = FlowerClientPool(size, grid, EXPERIMENT, round_timeout_s=0.05, poll_interval_s=0.01, **options)
    first = params(dataset.x.dtype)
    state = state or (work.init_state(first) if work else init_state(algorithm, first, size))
    pool = work.wrap_client_pool(made) if work else made
    signal = {"recluster": work.recluster, "sample_clients": work.sample_cohort} if work else {}
    return list(run_rounds(state, pool, algorithm, num_rounds=until, cohort_size=cohort or size, seed=3, **signal))


def with_clusters(state: FederatedState, group: list[int]) -> FederatedState:
    """Return the initial state with several models that clients share."""
    many = torch.zeros(max(group) + 1, dtype=torch.long)
    server = state.server
    return replace(
        state,
        cluster_ids=torch.tensor(group),
        server=ServerState(*(getattr(server, name).take(many) for name in ("params", "broadcast", "opt_state", "merged_base"))),
    )
