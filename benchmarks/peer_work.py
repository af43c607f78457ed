"""The workload that all frameworks run, the client for Flower and pfl, and the protocol by which processes take turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing.connection import Client
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from comparison import LR, load_network, make_batches, make_start_params, wrap_with_peft
from torch import Tensor, nn

from fedrift.core.tree import Tree

VECTOR_SIZE = 250_000  # float32 numbers: 1 MB, for the workload without a model


@dataclass(frozen=True)
class Workload:
    """A workload of federated averaging in which all clients participate in every round.

    Attributes:
        name: The name of the workload.
        num_clients: The number of clients.
        sequences: The number of sequences per batch.
        tokens: The number of tokens per sequence.
        local_steps: The number of local steps per round.
        model: The model preset. "" means that a client only subtracts a number from a vector of 1 MB, to measure the overhead
            of the framework.
        small: Whether to use a small random network.
        warmup_rounds: The number of rounds that are not timed.
        num_rounds: The number of rounds that are timed.
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
        """Parse a workload from the JSON that ``str(workload)`` returns."""
        return Workload(**json.loads(text))

    @property
    def network(self) -> Any:
        """A new network on each access, because wrapping with PEFT modifies it."""
        return load_network(self.model, small=self.small)

    @cached_property
    def initial_params(self) -> Tree:
        """The initial parameters [1, ...]."""
        if not self.model:
            return Tree(x=torch.zeros(1, VECTOR_SIZE))
        return make_start_params(self.network)

    @cached_property
    def batches(self) -> list[dict[str, Tensor]]:
        """One batch [C, ...] per local step."""
        if not self.model:
            return [{"tokens": torch.arange(1.0, self.num_clients + 1).view(-1, 1, 1)}] * self.local_steps
        return make_batches(self.num_clients, self.sequences, self.tokens, self.local_steps, self.network.config.vocab_size)

    @cached_property
    def held_out(self) -> list[dict[str, Tensor]]:
        """Batches [1, 16, T] on which the server's parameters are evaluated after each round; none without a model."""
        return make_batches(1, 16, self.tokens, 4, self.network.config.vocab_size) if self.model else []

    def rows_of(self, client: int) -> Tensor:
        """Return the sequences that a client trains on in a round, in order: [steps * B, T]."""
        return torch.cat([batch["tokens"][client] for batch in self.batches])


class Learner(nn.Module):
    """A client as a user of another framework would write it: a network wrapped with PEFT, which is loaded once, and its loss."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.work = work
        self.x = None if work.model else nn.Parameter(work.initial_params["x"][0].clone())
        self.network, leaves = wrap_with_peft(work.network, work.initial_params) if work.model else (None, {"x": self.x})
        self.leaves: dict[str, Any] = leaves
        self.load_params({name: leaf[0] for name, leaf in work.initial_params.items()})

    def load_params(self, params: dict[str, Tensor]) -> None:
        """Copy the server's parameters into the adapters."""
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(params[name])

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the mean training loss of a batch [B, T]."""
        if self.network is None:
            return (self.leaves["x"] * tokens.flatten()[0]).sum()
        return self.network(input_ids=tokens, labels=tokens).loss  # type: ignore[no-any-return]

    def train_on(self, rows: Tensor) -> None:
        """Run the local steps of a client on its sequences [steps * B, T]."""
        optimizer = torch.optim.SGD(self.leaves.values(), lr=LR)
        for tokens in rows.split(len(rows) // self.work.local_steps):
            optimizer.zero_grad()
            self.loss(tokens).backward()
            optimizer.step()

    @torch.no_grad()
    def evaluate(self, params: dict[str, Tensor]) -> float:
        """Return the mean loss of the server's parameters on the held-out text; the learner keeps these parameters."""
        self.load_params(params)
        losses = [float(self.loss(batch["tokens"][0])) for batch in self.work.held_out]
        return sum(losses) / len(losses)

    def get_params(self) -> dict[str, Tensor]:
        """Return the current adapters."""
        return {name: leaf.detach() for name, leaf in self.leaves.items()}


Evaluate = Callable[[], float]
"""Returns the loss of the server's parameters on the held-out text."""


class TurnClient:
    """A side's connection to the benchmark, over which it receives its turns and reports the seconds of each round.

    Nothing is evaluated, because the rounds alone are timed.
    """

    def __init__(self, address: str, side: str) -> None:
        self.connection, self.started_at = Client(address), 0.0
        self.connection.send(side)

    def next_round(self, evaluate: Evaluate) -> None:
        """Report the seconds of the previous round, if there was one, and wait for the next turn."""
        if self.started_at:
            self.connection.send(perf_counter() - self.started_at)
        self.connection.recv()
        self.started_at = perf_counter()

    def finish(self, params: dict[str, Tensor], evaluate: Evaluate) -> None:
        """Report the seconds of the last round and the final parameters of the server."""
        self.connection.send(perf_counter() - self.started_at)
        self.connection.send({name: leaf.numpy() for name, leaf in params.items()})


class WholeRun:
    """Evaluates the server's parameters before every round and at the end, and stores the losses and the final parameters.

    Args:
        path: The file for the results.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.losses = path, list[float]()

    def next_round(self, evaluate: Evaluate) -> None:
        """Evaluate before the next round."""
        self.losses.append(evaluate())

    def finish(self, params: dict[str, Tensor], evaluate: Evaluate) -> None:
        """Evaluate at the end and write the results."""
        self.losses.append(evaluate())
        torch.save({"losses": self.losses, "params": {name: leaf.clone() for name, leaf in params.items()}}, self.path)


Turn = TurnClient | WholeRun
