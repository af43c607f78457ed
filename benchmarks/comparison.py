"""Two ways to train the same clients on the same batches, and how a benchmark compares them.

Stacked, and one after another with transformers + peft: both take plain gradient steps on the same adapters, from networks with the
same weights, and must end at the same adapters. The loop is a fair one: the network stays in memory, adapters are swapped by
copying, nothing is padded or wrapped again. Both sides take turns, must agree, and are held to what the machine can do.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from machine import describe_machine, write_results
from peft import LoraConfig, get_peft_model
from torch import Tensor

from fedrift.algorithms import FedAvg
from fedrift.core.errors import default_cache_dir
from fedrift.core.optimizers import Optimizer, Sgd
from fedrift.core.random import torch_stream
from fedrift.core.tree import Tree
from fedrift.engine.loop import init_state
from fedrift.models.load import load_model, make_random_network
from fedrift.models.presets import PRESETS, Preset, is_available
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora, Trainable
from fedrift.simulation import ClientSimulator
from fedrift.simulation.simulator import Batches

LR = 0.05
CPU = torch.device("cpu")
TOY_ARCHITECTURES = {"gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 97}} | {
    kind: {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 97,
    }
    for kind in ("llama", "qwen2")
}
TrainFn = Callable[[], Tree]


def load_network(name: str, device: torch.device = CPU, dtype: torch.dtype = torch.float32, small: bool = False) -> Any:
    """A preset's network: its own weights where its files are here, random ones elsewhere, or a toy of its family."""
    preset = PRESETS[name]
    if small:
        return make_random_network(preset, device, dtype, **TOY_ARCHITECTURES[model_type_of(preset)])
    if is_available(preset, default_cache_dir()):
        said = str(dtype).removeprefix("torch.")
        return load_model(name, cache_dir=default_cache_dir(), dtype=said).network.to(device)  # type: ignore[arg-type]
    return make_random_network(preset, device, dtype)


def model_type_of(preset: Preset) -> str:
    return str(preset.architecture["model_type"])


def make_batches(
    num_clients: int, num_sequences: int, num_tokens: int, num_steps: int, vocab_size: int, device: torch.device = CPU
) -> list[dict[str, Tensor]]:
    """The same random tokens for both sides, ``[C, B, T]`` a step."""
    draw = torch_stream(0, "benchmark", num_clients, num_sequences, num_tokens)
    every = [torch.randint(2, vocab_size, (num_clients, num_sequences, num_tokens), generator=draw).to(device) for _ in range(num_steps)]
    return [{"tokens": step, "keep": torch.ones_like(step, dtype=torch.bool)} for step in every]


def make_start_params(network: Any, trainable: Trainable = Lora()) -> Tree:
    """First adapters, on query and value if not said; B is moved off zero, so that both factors learn from the first step on."""
    params = StackedModel(network, trainable).init_params()
    draw = torch_stream(0, "benchmark", "start")
    return Tree({name: leaf + (0.01 * torch.randn(leaf.shape, generator=draw)).to(leaf) for name, leaf in params.items()})


def repeat_batches(batches: list[dict[str, Tensor]]) -> Batches:
    """The same batches in every round, of whoever takes part."""

    def read(round: int, cohort: Tensor) -> list[dict[str, Tensor]]:
        some = cohort.to(next(iter(batches[0].values())).device)
        return [{leaf: values[some] for leaf, values in batch.items()} for batch in batches]

    return read


def stacked_training(
    model: StackedModel, batches: list[dict[str, Tensor]], start: Tree, clients_per_pass: int | None = None, optimizer: Optimizer = Sgd(LR)
) -> TrainFn:
    clients = len(batches[0]["tokens"])
    fleet = ClientSimulator(clients, model, repeat_batches(batches), optimizer, clients_per_pass=clients_per_pass)
    state = init_state(FedAvg(), start, clients)
    return lambda: fleet.train(state, FedAvg(), torch.arange(clients)).delta


def wrap_with_peft(network: Any, start: Tree) -> tuple[Any, dict[str, Tensor]]:
    """A network wrapped by peft, and its adapters by the names that ours have."""
    endings, rank = sorted({path.rsplit(".", 2)[-2] for path in start}), next(iter(start.values())).shape[1]
    model: Any = get_peft_model(network, LoraConfig(r=rank, lora_alpha=16, target_modules=endings)).eval()  # type: ignore[arg-type]
    return model, {
        name.replace("base_model.model.", "").replace(".lora_", ".").replace(".default.weight", ""): leaf
        for name, leaf in model.named_parameters()
        if "lora_" in name
    }


def sequential_training(network: Any, batches: list[dict[str, Tensor]], start: Tree) -> TrainFn:
    model, leaves = wrap_with_peft(network, start)

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


def relative_difference(ours: Tree, theirs: Tree) -> float:
    """How far two trees differ, as a share of the second one's length over all rows."""
    gap = sum(float((ours[name].double() - leaf.double()).pow(2).sum()) for name, leaf in theirs.items())
    return (gap / sum(float(leaf.double().pow(2).sum()) for leaf in theirs.values())) ** 0.5


# Two sides of a benchmark take turns, must agree, and are held to what the machine can do.


def time_in_turns(sides: Mapping[str, Callable[[], Any]], num_repeats: int) -> dict[str, list[float]]:
    """Seconds of every side, each measured in every turn, so that what disturbs the machine disturbs all."""
    spent: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(num_repeats):
        for side, run in sides.items():
            begun = perf_counter()
            run()
            spent[side].append(perf_counter() - begun)
    return spent


def speed_ratios(spent: dict[str, list[float]], slow: str, fast: str) -> dict[str, Any]:
    """How many times faster one side is, turn by turn: the median and the ends; beside it the ratio of the best turns."""
    ratios = sorted(a / b for a, b in zip(spent[slow], spent[fast], strict=True))
    return {
        "ratio": round(median(ratios), 2),
        "ratio_lowest": round(ratios[0], 2),
        "ratio_highest": round(ratios[-1], 2),
        "ratio_of_best": round(min(spent[slow]) / min(spent[fast]), 2),
    }


def measure_gemm_peak(side: int = 1024, num_trials: int = 20) -> float:
    """FLOP a second of one large float32 matrix product, the best of some trials."""
    one, best = torch.ones(side, side), float("inf")
    for _ in range(num_trials):
        begun = perf_counter()
        one @ one
        best = min(best, perf_counter() - begun)
    return 2 * side**3 / best


def check_agreement(params: Tree, expected: Tree, tolerance: float = 1e-3) -> float:
    """How far two ends lie apart, as a share of the length of what was expected; more than ``most`` ends the benchmark."""
    gap = relative_difference(params, expected)
    if not gap <= tolerance:
        raise SystemExit(f"the sides end {gap:.1e} apart (at most {tolerance:.0e} is rounding): nothing to compare")
    return float(f"{gap:.1e}")


def write_rows(out: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Keep the rows with the machine, the versions and the day."""
    print(write_results(out, f"{name}-{platform.machine()}", {**more, **describe_machine(torch.device("cpu")), "rows": rows}))
