"""The federated work that every framework is given, the client that Flower and pfl are given for it, and how sides take turns."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing.connection import Client
from time import perf_counter
from typing import Any

import torch
from sides import LR, adapted, batches_of, network_of, start_of
from torch import Tensor, nn

from fedrift.tree import Tree

NUMBERS = 250_000  # 1 MB, where nothing but a step on numbers is to be done


@dataclass(frozen=True)
class Work:
    """Federated averaging by ``clients`` who all take part: ``steps`` local steps of ``sequences`` x ``tokens``.

    Without a ``model`` a client's step subtracts a number of its own from a vector of 1 MB: what is left is the framework.
    """

    name: str
    clients: int
    sequences: int
    tokens: int = 64
    steps: int = 4
    model: str = "pocket"
    small: bool = False
    warm: int = 2
    rounds: int = 8

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def of(said: str) -> Work:
        return Work(**json.loads(said))

    @property
    def network(self) -> Any:
        """A new one: whoever gets it changes it."""
        return network_of(self.model, small=self.small)

    @cached_property
    def start(self) -> Tree:
        """The first params, ``[1, ...]``."""
        if not self.model:
            return Tree(x=torch.zeros(1, NUMBERS))
        return start_of(self.network)

    @cached_property
    def batches(self) -> list[dict[str, Tensor]]:
        """One a local step, each leading with C."""
        if not self.model:
            return [{"tokens": torch.arange(1.0, self.clients + 1).view(-1, 1, 1)}] * self.steps
        return batches_of(self.clients, self.sequences, self.tokens, self.steps, self.network.config.vocab_size)

    def rows_of(self, client: int) -> Tensor:
        """All that a client trains on in a round, in order: ``[steps * B, T]``."""
        return torch.cat([batch["tokens"][client] for batch in self.batches])


class Learner(nn.Module):
    """What a user of another framework would write: the network wrapped by peft, loaded once, and its loss."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        self.x = None if work.model else nn.Parameter(work.start["x"][0].clone())
        self.network, leaves = adapted(work.network, work.start) if work.model else (None, {"x": self.x})
        self.leaves: dict[str, Any] = leaves
        self.load({name: leaf[0] for name, leaf in work.start.items()})

    def load(self, numbers: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(numbers[name])

    def loss(self, tokens: Tensor) -> Tensor:
        if self.network is None:
            return (self.leaves["x"] * tokens.flatten()[0]).sum()
        return self.network(input_ids=tokens, labels=tokens).loss  # type: ignore[no-any-return]

    def train_on(self, rows: Tensor) -> None:
        """A client's local steps."""
        optimizer = torch.optim.SGD(self.leaves.values(), lr=LR)
        for tokens in rows.split(len(rows) // self.work.steps):
            optimizer.zero_grad()
            self.loss(tokens).backward()
            optimizer.step()

    def ends(self) -> dict[str, Tensor]:
        return {name: leaf.detach() for name, leaf in self.leaves.items()}


class Turn:
    """A side's end of the line to the benchmark: it works a round when it is told to, and says how long that took."""

    def __init__(self, address: str, side: str) -> None:
        self.line, self.begun = Client(address), 0.0
        self.line.send(side)

    def take(self) -> None:
        """A round is over, if one was begun; wait for the word to begin the next."""
        if self.begun:
            self.line.send(perf_counter() - self.begun)
        self.line.recv()
        self.begun = perf_counter()

    def over(self, ends: dict[str, Tensor]) -> None:
        """The last round is over; ``ends``: the server's params then."""
        self.line.send(perf_counter() - self.begun)
        self.line.send({name: leaf.numpy() for name, leaf in ends.items()})
