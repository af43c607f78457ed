"""Flower's grid without its network: messages go to real ClientApps in this process, through Flower's own wire format."""

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
from fedrift.fleet import SimulatedFleet
from fedrift.flower.client import Client, alone, client_app
from fedrift.flower.fleet import FlowerFleet
from fedrift.mitigation.work import Work
from fedrift.optimizers import Optimizer, Sgd
from fedrift.rounds import begin, rounds
from fedrift.values import Server, State
from tests.laws.federation import Data, loss, params, represent

Meddle = Callable[[Message, Message], Iterable[Message]]
"""(what was sent, what the client answers) -> what arrives"""
EXPERIMENT, NODE = "0123456789ab", 1000  # node 1000 + k is client k


def carried(message: Message) -> Message:
    """The message as it arrives at the other end of a wire."""
    contents = {name: thing.deflate() for name, thing in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, contents)
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
    return arrived


class Loopback(Grid):
    """``apps``: node -> (ClientApp, Context). ``meddle`` stands on the way back; nodes in ``silent`` train and never answer,
    those that are ``dead`` do not even say who they are."""

    def __init__(self, apps, meddle: Meddle | None = None) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # who makes messages must be somebody
        self.apps, self.meddle = dict(apps), meddle or (lambda sent, answer: [answer])
        self.silent: set[int] = set()
        self.dead: set[int] = set()
        self.replies: list[Message] = []
        self.sent: list[Message] = []
        self.came: list[Message] = []

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
            arrived = carried(message)
            try:
                answer = app(arrived, context)
            except Exception as error:  # as flwr-clientapp answers
                answer = Message(Error(code=1, reason=str(error)), reply_to=arrived)
            arrived = [carried(reply) for reply in (
                self.meddle(message, answer) if message.metadata.message_type == "train" else [answer])]
            self.replies += arrived
            self.came += arrived
        return ids

    def pull_messages(self, message_ids):
        wanted = set(message_ids)
        found = [reply for reply in self.replies if reply.metadata.reply_to_message_id in wanted]
        self.replies = [reply for reply in self.replies if reply not in found]
        return found

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))


def client(number: int, deal: Data, algorithm: FedAvg, keeps: Path, optimizer: Optimizer, **options) -> Client:
    size = len(deal.steps)
    fleet = SimulatedFleet(size, loss, deal, optimizer, represent=represent, **options)
    state = begin(algorithm, params(deal.x.dtype), size)
    one, first = slice(0, 1), state.server
    return Client(number, EXPERIMENT, algorithm, alone(fleet, number),
                  Server(first.params.rows(one), first.shared.rows(one), first.moments.zeros(), first.base.rows(one)), keeps)


def nodes(deal: Data, algorithm: FedAvg, keeps: Path, optimizer: Optimizer = Sgd(0.05), **options):
    """A node for every client."""
    found = {}
    for number in range(len(deal.steps)):
        made = client(number, deal, algorithm, keeps, optimizer, **options)
        found[NODE + number] = (client_app(lambda context, made=made: made), Context(1, NODE + number, {}, RecordDict(), {}))
    return found


def over_flower(algorithm: FedAvg, deal: Data, keeps: Path, *, until: int = 3, cohort: int | None = None,
                state: State | None = None, grid: Loopback | None = None, optimizer: Optimizer = Sgd(0.05),
                clients=None, work: Work | None = None, **options):
    size = len(deal.steps)
    grid = grid or Loopback(nodes(deal, algorithm, keeps, optimizer, **(clients or {})))
    made = FlowerFleet(size, grid, EXPERIMENT, patience=0.05, pause=0.01, **options)
    first = params(deal.x.dtype)
    state = state or (work.begin(first) if work else begin(algorithm, first, size))
    fleet = work.fleet(made) if work else made
    signal = {"regroup": work.regroup, "draw": work.draw} if work else {}
    return list(rounds(state, fleet, algorithm, until=until, cohort=cohort or size, seed=3, **signal))


def grouped(state: State, group: list[int]) -> State:
    """The first state, of clients that share several models."""
    many = torch.zeros(max(group) + 1, dtype=torch.long)
    server = state.server
    return replace(state, group=torch.tensor(group), server=Server(*(getattr(server, name).rows(many) for name in (
        "params", "shared", "moments", "base"))))
