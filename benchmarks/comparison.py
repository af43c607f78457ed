"""Train the same clients on the same batches in two ways, and compare their speed.

The two sides are stacked training and a sequential loop with transformers and PEFT. Both use plain SGD on the same adapters of
networks with the same weights, and must end at the same adapters. The loop is efficient: the network stays in memory, adapters are
swapped by copying, and nothing is padded or wrapped again. Both sides take turns and are compared with the peak of the machine.
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
    """Load the network of a preset.

    Args:
        name: The name of the preset.
        device: The device of the network.
        dtype: The data type of the weights.
        small: Whether to return a small random network of the same architecture family.

    Returns:
        The network; its weights are random if the files of the preset are not on this machine.
    """
    preset = PRESETS[name]
    if small:
        return make_random_network(preset, device, dtype, **TOY_ARCHITECTURES[model_type_of(preset)])
    if is_available(preset, default_cache_dir()):
        dtype_name = str(dtype).removeprefix("torch.")
        return load_model(name, cache_dir=default_cache_dir(), dtype=dtype_name).network.to(device)  # type: ignore[arg-type]
    return make_random_network(preset, device, dtype)


def model_type_of(preset: Preset) -> str:
    """Return the architecture family of a preset, such as ``llama``."""
    return str(preset.architecture["model_type"])


def make_batches(
    num_clients: int, num_sequences: int, num_tokens: int, num_steps: int, vocab_size: int, device: torch.device = CPU
) -> list[dict[str, Tensor]]:
    """Return one batch of random tokens [C, B, T] per step; equal arguments give equal batches."""
    draw = torch_stream(0, "benchmark", num_clients, num_sequences, num_tokens)
    steps = [torch.randint(2, vocab_size, (num_clients, num_sequences, num_tokens), generator=draw).to(device) for _ in range(num_steps)]
    return [{"tokens": step, "loss_mask": torch.ones_like(step, dtype=torch.bool)} for step in steps]


def make_start_params(network: Any, trainable: Trainable = Lora()) -> Tree:
    """Return initial adapters, by default on query and value. B is not zero, so that both factors have gradients in the first step."""
    params = StackedModel(network, trainable).init_params()
    draw = torch_stream(0, "benchmark", "start")
    return Tree({name: leaf + (0.01 * torch.randn(leaf.shape, generator=draw)).to(leaf) for name, leaf in params.items()})


def repeat_batches(batches: list[dict[str, Tensor]]) -> Batches:
    """Return a batch function that gives the clients of a cohort the same batches in every round."""

    def read(round: int, cohort: Tensor) -> list[dict[str, Tensor]]:
        rows = cohort.to(next(iter(batches[0].values())).device)
        return [{leaf: values[rows] for leaf, values in batch.items()} for batch in batches]

    return read


def stacked_training(
    model: StackedModel, batches: list[dict[str, Tensor]], start: Tree, clients_per_pass: int | None = None, optimizer: Optimizer = Sgd(LR)
) -> TrainFn:
    """Return a function that trains all clients with fedrift's simulator and returns their updates [C, ...]."""
    clients = len(batches[0]["tokens"])
    simulator = ClientSimulator(clients, model, repeat_batches(batches), optimizer, clients_per_pass=clients_per_pass)
    state = init_state(FedAvg(), start, clients)
    return lambda: simulator.train(state, FedAvg(), torch.arange(clients)).delta


def wrap_with_peft(network: Any, start: Tree) -> tuple[Any, dict[str, Tensor]]:
    """Wrap a network with PEFT; return it and its adapters, keyed by fedrift's names."""
    endings, rank = sorted({path.rsplit(".", 2)[-2] for path in start}), next(iter(start.values())).shape[1]
    model: Any = get_peft_model(network, LoraConfig(r=rank, lora_alpha=16, target_modules=endings)).eval()  # type: ignore[arg-type]
    return model, {
        name.replace("base_model.model.", "").replace(".lora_", ".").replace(".default.weight", ""): leaf
        for name, leaf in model.named_parameters()
        if "lora_" in name
    }


def sequential_training(network: Any, batches: list[dict[str, Tensor]], start: Tree) -> TrainFn:
    """Return a function that trains the clients one after another with PEFT and returns their updates [C, ...]."""
    model, leaves = wrap_with_peft(network, start)

    def train() -> Tree:
        updates: dict[str, list[Tensor]] = {name: [] for name in start}
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
                updates[name].append(leaf.detach() - start[name][0])
        return Tree({name: torch.stack(parts) for name, parts in updates.items()})

    return train


def relative_difference(tree: Tree, reference: Tree) -> float:
    """Return the norm of the difference of two trees relative to the norm of the second, over all rows."""
    squared_difference = sum(float((tree[name].double() - leaf.double()).pow(2).sum()) for name, leaf in reference.items())
    return (squared_difference / sum(float(leaf.double().pow(2).sum()) for leaf in reference.values())) ** 0.5


# Timing and checks.


def time_in_turns(
    sides: Mapping[str, Callable[[], Any]], num_repeats: int, clock: Callable[[], float] = perf_counter
) -> dict[str, list[float]]:
    """Time all sides in alternation, so that other load on the machine affects all of them; return the seconds of each."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(num_repeats):
        for side, run in sides.items():
            start = clock()
            run()
            seconds[side].append(clock() - start)
    return seconds


def speed_ratios(spent: dict[str, list[float]], slow: str, fast: str) -> dict[str, Any]:
    """Return how many times faster one side is.

    Args:
        spent: The seconds of each side, as ``time_in_turns`` returns them.
        slow: The name of the side in the numerator.
        fast: The name of the side in the denominator.

    Returns:
        The median, minimum and maximum of the ratios per repetition, and the ratio of the minimum times.
    """
    ratios = sorted(a / b for a, b in zip(spent[slow], spent[fast], strict=True))
    return {
        "ratio": round(median(ratios), 2),
        "ratio_lowest": round(ratios[0], 2),
        "ratio_highest": round(ratios[-1], 2),
        "ratio_of_best": round(min(spent[slow]) / min(spent[fast]), 2),
    }


def measure_gemm_peak(side: int = 1024, num_trials: int = 20) -> float:
    """Return the FLOP/s of a large float32 matrix product, the best of several trials."""
    matrix, seconds = torch.ones(side, side), float("inf")
    for _ in range(num_trials):
        start = perf_counter()
        matrix @ matrix
        seconds = min(seconds, perf_counter() - start)
    return 2 * side**3 / seconds


def check_agreement(params: Tree, expected: Tree, tolerance: float = 1e-3) -> float:
    """Check that two sides end at the same parameters, and return their relative difference.

    Args:
        params: The parameters of one side.
        expected: The parameters of the reference.
        tolerance: The largest relative difference that rounding can explain.

    Raises:
        SystemExit: If the difference is larger.
    """
    difference = relative_difference(params, expected)
    if not difference <= tolerance:
        raise SystemExit(
            f"nothing to compare, because the sides end at different parameters: the relative difference is {difference:.1e}, "
            f"and rounding explains at most {tolerance:.0e}"
        )
    return float(f"{difference:.1e}")


def write_rows(out: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write rows with a description of the machine, the versions and the date."""
    print(write_results(out, f"{name}-{platform.machine()}", {**more, **describe_machine(torch.device("cpu")), "rows": rows}))
