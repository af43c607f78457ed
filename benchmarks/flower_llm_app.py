"""A Flower app for LLM fine-tuning in little, after Flower's example ``flowertune-llm``: LoRA by PEFT, FedAvg, one ClientApp per node.

The app itself uses Flower, PEFT and PyTorch only. The tests and ``benchmarks/flower_overhead.py`` run it with
``fedrift.flower.Diagnosed`` around its strategy and without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore.task_identity import TaskIdentity
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

Spoil = Callable[[int, int, dict[str, Tensor]], dict[str, Tensor]]
"""``(round, client, arrays)`` -> the arrays that the client really sends: a failure that a test plants."""
FIRST_NODE = 1000  # node 1000 + k is client k


@dataclass(frozen=True, eq=False)
class AppConfig:
    """What the app trains: ``shards`` are the sequences ``[n, tokens]`` of each client, ``held_out`` those of each domain."""

    shards: tuple[Tensor, ...]
    held_out: Mapping[str, Tensor]
    lr: float = 5e-3
    local_steps: int = 4
    batch_size: int = 4
    spoil: Spoil | None = None


def make_model(base: Any, rank: int = 4) -> Any:
    """The base model with new adapters; the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"))


def adapter_state(model: Any) -> dict[str, Tensor]:
    # By default, PEFT asks the Hugging Face Hub in each call whether the embeddings were resized, which would be part of each round.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: leaf.detach().clone() for name, leaf in state.items()}


def mean_loss(model: Any, tokens: Tensor) -> Tensor:
    """Nats per predicted token."""
    logits = model(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def make_client_app(config: AppConfig, model: Any) -> ClientApp:
    """The client half: load the adapters, train them on the node's shard, send them back."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, number = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
        set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
        shard, draw = config.shards[client], torch.Generator().manual_seed(1000 * number + client)
        optimizer = torch.optim.AdamW([leaf for leaf in model.parameters() if leaf.requires_grad], lr=config.lr)
        losses = []
        for _ in range(config.local_steps):
            loss = mean_loss(model, shard[torch.randint(len(shard), (config.batch_size,), generator=draw)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        arrays = adapter_state(model)
        if config.spoil:
            arrays = config.spoil(number, client, arrays)
        numbers = {"train_loss": sum(losses) / len(losses), "num-examples": len(shard), "partition-id": client}
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(numbers)}), reply_to=message)

    return app


def make_evaluate_fn(config: AppConfig, model: Any) -> Callable[[int, ArrayRecord], MetricRecord]:
    """The server's evaluation on held-out text of every domain; each domain counts the same."""

    @torch.no_grad()
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        set_peft_model_state_dict(model, arrays.to_torch_state_dict())
        losses = {domain: mean_loss(model, tokens).item() for domain, tokens in config.held_out.items()}
        return MetricRecord({"loss": sum(losses.values()) / len(losses), **{f"loss@{name}": loss for name, loss in losses.items()}})

    return evaluate


def run_app(strategy: Strategy, config: AppConfig, model: Any, initial: dict[str, Tensor], num_rounds: int) -> Result:
    """The server half, on a grid of nodes in this process."""
    grid = InProcessGrid(make_client_app(config, model), len(config.shards))
    return strategy.start(grid, ArrayRecord(initial), num_rounds=num_rounds, evaluate_fn=make_evaluate_fn(config, model))


class InProcessGrid(Grid):  # type: ignore[misc]
    """Flower's grid without a network: each message goes straight to the ClientApp of its node."""

    def __init__(self, app: ClientApp, num_nodes: int) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # messages are made in the name of a ServerApp
        self.app = app
        self.contexts = {
            FIRST_NODE + k: Context(1, FIRST_NODE + k, {"partition-id": k, "num-partitions": num_nodes}, RecordDict(), {})
            for k in range(num_nodes)
        }

    def set_run(self, run: Any) -> None: ...
    @property
    def run(self) -> Any: ...
    def create_message(self, *what: Any, **more: Any) -> Any: ...
    def push_messages(self, messages: Any) -> Any: ...
    def pull_messages(self, message_ids: Any) -> Any: ...

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        return [self.answer(message) for message in messages]

    def answer(self, message: Message) -> Message:
        try:
            return self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:  # as flwr-clientapp answers
            return Message(Error(code=1, reason=str(error)), reply_to=message)
