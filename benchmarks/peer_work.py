"""The federated work that every framework is given, the client that Flower and pfl are given for it, and how sides take turns."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing.connection import Client
from time import perf_counter
from typing import Any

import torch
from comparison import LR, load_network, make_batches, make_start_params, wrap_with_peft
from torch import Tensor, nn

from fedrift.core.tree import Tree

VECTOR_SIZE = 250_000  # 1 MB, where nothing but a step on numbers is to be done


@dataclass(frozen=True)
class Workload:
    """Federated averaging by ``clients`` who all take part: ``steps`` local steps of ``sequences`` x ``tokens``.

    Without a ``model`` a client's step subtracts a number of its own from a vector of 1 MB: what is left is the framework.
    """

    name: str
    num_clients: int
    sequences: int
    tokens: int = 64
    local_steps: int = 4
    model: str = "pocket"
    small: bool = False
    warmup_rounds: int = 2
    num_rounds: int = 8

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Workload:
        return Workload(**json.loads(text))

    @property
    def network(self) -> Any:
        """A new one: whoever gets it changes it."""
        return load_network(self.model, small=self.small)

    @cached_property
    def initial_params(self) -> Tree:
        """The first params, ``[1, ...]``."""
        if not self.model:
            return Tree(x=torch.zeros(1, VECTOR_SIZE))
        return make_start_params(self.network)

    @cached_property
    def batches(self) -> list[dict[str, Tensor]]:
        """One a local step, each leading with C."""
        if not self.model:
            return [{"tokens": torch.arange(1.0, self.num_clients + 1).view(-1, 1, 1)}] * self.local_steps
        return make_batches(self.num_clients, self.sequences, self.tokens, self.local_steps, self.network.config.vocab_size)

    def rows_of(self, client: int) -> Tensor:
        """All that a client trains on in a round, in order: ``[steps * B, T]``."""
        return torch.cat([batch["tokens"][client] for batch in self.batches])


class Learner(nn.Module):
    """What a user of another framework would write: the network wrapped by peft, loaded once, and its loss."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.work = work
        self.x = None if work.model else nn.Parameter(work.initial_params["x"][0].clone())
        self.network, leaves = wrap_with_peft(work.network, work.initial_params) if work.model else (None, {"x": self.x})
        self.leaves: dict[str, Any] = leaves
        self.load_params({name: leaf[0] for name, leaf in work.initial_params.items()})

    def load_params(self, params: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(params[name])

    def loss(self, tokens: Tensor) -> Tensor:
        if self.network is None:
            return (self.leaves["x"] * tokens.flatten()[0]).sum()
        return self.network(input_ids=tokens, labels=tokens).loss  # type: ignore[no-any-return]

    def train_on(self, rows: Tensor) -> None:
        """A client's local steps."""
        optimizer = torch.optim.SGD(self.leaves.values(), lr=LR)
        for tokens in rows.split(len(rows) // self.work.local_steps):
            optimizer.zero_grad()
            self.loss(tokens).backward()
            optimizer.step()

    def get_params(self) -> dict[str, Tensor]:
        return {name: leaf.detach() for name, leaf in self.leaves.items()}


class TurnClient:
    """A side's end of the line to the benchmark: it works a round when it is told to, and says how long that took."""

    def __init__(self, address: str, side: str) -> None:
        self.connection, self.started_at = Client(address), 0.0
        self.connection.send(side)

    def next_round(self) -> None:
        """A round is over, if one was begun; wait for the word to begin the next."""
        if self.started_at:
            self.connection.send(perf_counter() - self.started_at)
        self.connection.recv()
        self.started_at = perf_counter()

    def finish(self, params: dict[str, Tensor]) -> None:
        """The last round is over; ``ends``: the server's params then."""
        self.connection.send(perf_counter() - self.started_at)
        self.connection.send({name: leaf.numpy() for name, leaf in params.items()})
