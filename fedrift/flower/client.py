"""The client half: a Flower ClientApp that is the simulated fleet with a cohort of one.

The model, the batches, the local steps and the algorithm are those of a run on one machine. What a client is comes from the
run's configuration (the experiment) and from its own node's (``client=0 data=/folder``), never from a message: a message brings
numbers and says which round it is. Its documents and what it keeps between rounds stay on its machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from ..algorithms import FedAvg
from ..errors import quote
from ..fleet import SimulatedFleet
from ..memory import Memory
from ..tree import Tree
from ..values import Report, Server, State
from .memory import Lost, recall, remember
from .wire import WIRE, Refused, plain, read, read_plain, said, whole, write


@dataclass(frozen=True, eq=False)
class Client:
    """One client on its machine."""

    number: int
    experiment: str  # its id
    algorithm: FedAvg
    fleet: SimulatedFleet  # of size 1: this client
    first: Server  # [1, ...] as the server is before the first round
    keeps: Path  # the folder of what it keeps
    own: bool = False  # whether it trains on documents of its own, not on its part of the experiment's


Made = Callable[[Context], Client]
"""The client that a node is; the same one for the same configuration."""


def client_app(made: Made) -> ClientApp:
    """The app, of whoever makes the client."""
    app = ClientApp()

    @app.query()  # type: ignore[untyped-decorator]
    def who(message: Message, context: Context) -> Message:
        """Which client lives here."""
        client = made(context)
        content = write({}, {"client": client.number, "id": client.experiment, "own": client.own})
        return Message(content, reply_to=message)

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        client = made(context)
        fits = "said" in message.content
        try:
            content = train_one(client, message.content) if fits else train_plain(client, message.content)
        except Lost as error:
            content = write({}, {"client": client.number, "lost": str(error)})
        except Refused as error:
            if not fits:  # a plain strategy knows errors, and no words of ours
                return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"the client refused: {error}"), reply_to=message)
            content = write({}, {"client": client.number, "refused": f"the client refused: {error}"})
        return Message(content, reply_to=message)

    return app


def train_one(client: Client, content: RecordDict) -> RecordDict:
    """A round, from the message of ``FlowerFleet`` to the answer."""
    told = said(content)
    for name, here in (("id", client.experiment), ("client", client.number)):
        if told.get(name) != here:
            raise Refused(f"this is {name} {here!r}, the message is for {quote(told.get(name))}")
    first = client.first
    kept = client.algorithm.memory(first.params.to(torch.device("cpu")))
    wanted = {"params": first.params, "shared": first.shared, "base": first.base,
              "memory": kept if told.get("restores") else Tree()}
    found = read(content, wanted)
    life, round, counted = told.get("life"), whole(told, "round", 0), whole(told, "counted", 0)
    if not (isinstance(life, str) and life.isascii() and life.isalnum() and len(life) <= 64 and counted <= round):
        raise Refused("it does not say which round of which run it is")
    path = client.keeps / life / f"client-{client.number}.safetensors"
    memory = recall(path, kept, counted, found["memory"] or None)
    report = one(client, round, found, memory)
    remember(path, counted, memory, round + 1, report.memory)
    tells = client.algorithm.tells
    trees = {"delta": report.delta, "news": report.news if "memory" in tells else Tree(),
             "gradient": report.gradient if "gradient" in tells or told.get("gradients") else Tree()}
    return write(trees, {
        "client": client.number, "round": round, "weight": report.weight.item(), "steps": report.steps.item(),
        "loss": report.loss[0].tolist(), "tokens": report.tokens.item(), "failed": bool(report.failed.item()),
        "lr": report.lr.item()})


def one(client: Client, round: int, found: dict[str, Tree], memory: Tree) -> Report:
    """The local training of this client, as a fleet of one with one model, ``[1, ...]``."""
    device = next(iter(client.first.params.values())).device
    server = Server(found["params"].to(device), found["shared"].to(device), Tree(), found["base"].to(device))
    alone = torch.zeros(1, dtype=torch.long)
    return client.fleet.train(State(round, server, Memory.of(memory, 1), alone), client.algorithm, alone)


def train_plain(client: Client, content: RecordDict) -> RecordDict:
    """A round for a plain Flower strategy: it sends ``arrays`` and ``config``, and takes ``arrays`` and ``metrics``."""
    first = client.first
    if first.shared or client.algorithm.memory(first.params):
        raise Refused(f"a plain strategy sends a model and nothing beside it; {type(client.algorithm).__name__} needs more: "
                      "run it with fedrift's server, or ask for FedAvg or FedProx")
    absent = [name for name, records in (("arrays", content.array_records), ("config", content.config_records))
              if name not in records]
    if absent:
        raise Refused(f"it brings no {' and no '.join(absent)}, which Flower's strategies send")
    start = read_plain(content.array_records["arrays"], first.params)
    if not bool(start.finite().all()):
        raise Refused("its arrays hold numbers that are not finite")
    round = whole(content.config_records["config"], "server-round", 1) - 1  # theirs begin at 1
    found = {"params": start, "shared": Tree(), "base": first.base}
    report = one(client, round, found, Tree())
    metrics = MetricRecord({"num-examples": report.weight.item(), "train_loss": report.loss[0, 1].item()})
    return RecordDict({"arrays": plain(start + report.delta.to(torch.device("cpu"))), "metrics": metrics})


@dataclass(frozen=True, eq=False)
class Mine:
    """The batches of one client of a fleet, as those of a fleet of one."""

    batches: Any
    number: int

    def __call__(self, round: int, cohort: torch.Tensor) -> Any:
        return self.batches(round, torch.full_like(cohort, self.number))


def alone(fleet: SimulatedFleet, number: int) -> SimulatedFleet:
    """The fleet of one that client ``number`` is."""
    return replace(fleet, size=1, batches=Mine(fleet.batches, number), micro=None)


__all__ = ["WIRE", "Client", "Made", "alone", "client_app", "train_one"]
