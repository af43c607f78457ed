"""Two ways to train the same clients on the same batches: stacked, and one after another with transformers + peft.

Both take plain gradient steps on the same adapters, from networks with the same weights, and must end at the same adapters. The
loop is a fair one: the network stays in memory, adapters are swapped by copying, nothing is padded or wrapped again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from fedrift.algorithms import FedAvg
from fedrift.fleet import SimulatedFleet
from fedrift.fleet.simulated import Batches
from fedrift.folders import cache_folder
from fedrift.models.load import load_model
from fedrift.models.presets import PRESETS, Preset, at_hand
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Lora, Tune
from fedrift.models.unread import unread
from fedrift.optimizers import Optimizer, Sgd
from fedrift.rounds import begin
from fedrift.streams import torch_stream
from fedrift.tree import Tree

LR = 0.05
CPU = torch.device("cpu")
TOY = {"gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 97}} | {
    kind: {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
           "vocab_size": 97} for kind in ("llama", "qwen2")}
Train = Callable[[], Tree]


def network_of(name: str, device: torch.device = CPU, dtype: torch.dtype = torch.float32, small: bool = False) -> Any:
    """A preset's network: its own weights where its files are here, random ones elsewhere, or a toy of its family."""
    preset = PRESETS[name]
    if small:
        return unread(preset, device, dtype, **TOY[family(preset)])
    if at_hand(preset, cache_folder()):
        said = str(dtype).removeprefix("torch.")
        return load_model(name, cache=cache_folder(), dtype=said).network.to(device)  # type: ignore[arg-type]
    return unread(preset, device, dtype)


def family(preset: Preset) -> str:
    return str(preset.architecture["model_type"])


def batches_of(clients: int, rows: int, tokens: int, steps: int, vocabulary: int,
               device: torch.device = CPU) -> list[dict[str, Tensor]]:
    """The same random tokens for both sides, ``[C, B, T]`` a step."""
    draw = torch_stream(0, "benchmark", clients, rows, tokens)
    every = [torch.randint(2, vocabulary, (clients, rows, tokens), generator=draw).to(device) for _ in range(steps)]
    return [{"tokens": step, "keep": torch.ones_like(step, dtype=torch.bool)} for step in every]


def start_of(network: Any, tune: Tune = Lora()) -> Tree:
    """First adapters, on query and value if not said; B is moved off zero, so that both factors learn from the first step on."""
    params = StackedModel(network, tune).template()
    draw = torch_stream(0, "benchmark", "start")
    return Tree({name: leaf + (0.01 * torch.randn(leaf.shape, generator=draw)).to(leaf) for name, leaf in params.items()})


def reader(batches: list[dict[str, Tensor]]) -> Batches:
    """The same batches in every round, of whoever takes part."""
    def read(round: int, cohort: Tensor) -> list[dict[str, Tensor]]:
        some = cohort.to(next(iter(batches[0].values())).device)
        return [{leaf: values[some] for leaf, values in batch.items()} for batch in batches]
    return read


def stacked(model: StackedModel, batches: list[dict[str, Tensor]], start: Tree, micro: int | None = None,
            optimizer: Optimizer = Sgd(LR)) -> Train:
    clients = len(batches[0]["tokens"])
    fleet = SimulatedFleet(clients, model, reader(batches), optimizer, micro=micro)
    state = begin(FedAvg(), start, clients)
    return lambda: fleet.train(state, FedAvg(), torch.arange(clients)).delta


def adapted(network: Any, start: Tree) -> tuple[Any, dict[str, Tensor]]:
    """A network wrapped by peft, and its adapters by the names that ours have."""
    endings, rank = sorted({path.rsplit(".", 2)[-2] for path in start}), next(iter(start.values())).shape[1]
    model: Any = get_peft_model(network, LoraConfig(r=rank, lora_alpha=16, target_modules=endings)).eval()  # type: ignore[arg-type]
    return model, {name.replace("base_model.model.", "").replace(".lora_", ".").replace(".default.weight", ""): leaf
                   for name, leaf in model.named_parameters() if "lora_" in name}


def one_by_one(network: Any, batches: list[dict[str, Tensor]], start: Tree) -> Train:
    model, leaves = adapted(network, start)

    def train() -> Tree:
        moved: dict[str, list[Tensor]] = {name: [] for name in start}
        for client in range(len(batches[0]["tokens"])):
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.copy_(start[name][0])
            optimizer = torch.optim.SGD(leaves.values(), lr=LR)
            for batch in batches:
                tokens = batch["tokens"][client]
                optimizer.zero_grad()
                model(input_ids=tokens, labels=tokens).loss.backward()
                optimizer.step()
            for name, leaf in leaves.items():
                moved[name].append(leaf.detach() - start[name][0])
        return Tree({name: torch.stack(parts) for name, parts in moved.items()})

    return train


def apart(ours: Tree, theirs: Tree) -> float:
    """How far two trees differ, as a share of the second one's length over all rows."""
    gap = sum(float((ours[name].double() - leaf.double()).pow(2).sum()) for name, leaf in theirs.items())
    return (gap / sum(float(leaf.double().pow(2).sum()) for leaf in theirs.values())) ** 0.5
