"""What one training step must come to: each check yields a figure beside the most that rounding makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sides import TOY, apart, batches_of, family, one_by_one, stacked, start_of

from fedrift.fleet.simulated import value_and_gradient
from fedrift.models.canary import ROUNDING, replay
from fedrift.models.load import load_model
from fedrift.models.presets import PRESETS
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Full, LastK, Lora, Tune
from fedrift.models.unread import unread
from fedrift.tree import Tree

TUNES: dict[str, Tune] = {"adapters": Lora(rank=4, targets=("all",)), "last block": LastK(), "all weights": Full()}
SHAPES = ("pocket", "distilgpt2", "qwen-0.5b", "tinyllama-1.1b")


@dataclass(frozen=True)
class Found:
    """``got`` must be at most ``most``."""

    check: str
    got: float
    most: float

    @property
    def fine(self) -> bool:
        return self.got <= self.most  # NaN is not


@dataclass(frozen=True)
class Where:
    device: torch.device
    small: bool

    def network(self, name: str, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Any:
        """Two blocks of a preset's width, the same weights on every device and in every type."""
        preset = PRESETS[name]
        small = TOY[family(preset)] if self.small else {"n_layer" if family(preset) == "gpt2" else "num_hidden_layers": 2}
        return unread(preset, "cpu", torch.float32, **small).to(device or self.device, dtype)

    def batch(self, network: Any, clients: int = 3) -> dict[str, torch.Tensor]:
        found = batches_of(clients, 2, 32, 1, network.config.vocab_size, network.device)[0]
        found["keep"][0, -1, 20:] = False  # padding, as at the end of an epoch
        return found


def moved(model: StackedModel, clients: int) -> Tree:
    """Params that differ from client to client, ``[C, ...]``."""
    draw = torch.Generator().manual_seed(1)
    rows = model.template().rows(torch.zeros(clients, dtype=torch.long))
    return rows.map(lambda leaf: leaf + (0.02 * torch.randn(leaf.shape, generator=draw)).to(leaf))


def gap(network: Any, tune: Tune, batch: dict[str, torch.Tensor], plain: Any = None) -> float:
    """How far the gradients of stacked clients are from those of each client alone, as a share of their length.

    ``plain``: a network with the same weights, in which each works alone through transformers' own modules.
    """
    model, clients = StackedModel(network, tune), len(batch["tokens"])
    lone = model if plain is None else StackedModel(plain, tune, lean=False, prefix=False)
    params = moved(model, clients)
    _, together = value_and_gradient(model, params, batch, torch.arange(clients))
    alone = [value_and_gradient(lone, params.rows(slice(row, row + 1)), {
        key: part[row:row + 1] for key, part in batch.items()}, torch.arange(1))[1] for row in range(clients)]
    return apart(together, Tree({leaf: torch.cat([one[leaf] for one in alone]) for leaf in together}))


def stacked_is_one_by_one(where: Where) -> Iterator[Found]:
    for name in SHAPES:
        for said, tune in TUNES.items():
            if name in SHAPES[2:] and said == "all weights":
                continue  # three copies of a vocabulary of 150,000
            network = where.network(name)
            yield Found(f"stacked is one by one: {name}, {said}", gap(network, tune, where.batch(network)), 1e-5)


def stacked_is_peft(where: Where) -> Iterator[Found]:
    for name in SHAPES:
        batches = batches_of(3, 2, 32, 3, where.network(name).config.vocab_size, where.device)
        start = start_of(where.network(name))
        ours = stacked(StackedModel(where.network(name), Lora()), batches, start)()
        yield Found(f"stacked is transformers + peft after 3 steps: {name}", apart(
            ours, one_by_one(where.network(name), batches, start)()), 1e-4)


def device_is_cpu(where: Where) -> Iterator[Found]:
    for name in SHAPES:
        yield from against_cpu(where, name, torch.float32, f"float32 on the device is float32 on the CPU: {name}", "float32")


def bfloat16_is_near(where: Where) -> Iterator[Found]:
    for name in SHAPES:
        yield from against_cpu(where, name, torch.bfloat16, f"a base in bfloat16 is near float32: {name}", "bfloat16")


def tf32_is_near(where: Where) -> Iterator[Found]:
    if where.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            yield from against_cpu(where, "distilgpt2", torch.float32, "tf32 is near float32: distilgpt2", "float16")
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False


def against_cpu(where: Where, name: str, dtype: torch.dtype, said: str, rounding: str) -> Iterator[Found]:
    """The canary's step, in ``dtype`` on the device and in float32 on the CPU."""
    model = StackedModel(where.network(name, dtype), Lora())
    plain = StackedModel(where.network(name, device=torch.device("cpu")), Lora())
    seen = replay(model, plain, moved(model, 2), where.batch(model.network, 2))
    loss, gradient = ROUNDING[rounding]
    yield Found(f"{said}, loss", seen.loss, loss)
    yield Found(f"{said}, gradient (1 - cosine)", seen.gradient, gradient)


def same_step_twice(where: Where) -> Iterator[Found]:
    for dtype in (torch.float32, torch.bfloat16):
        network = where.network("distilgpt2", dtype)
        model, batch = StackedModel(network, Lora()), where.batch(network)
        params = moved(model, 3)
        one, two = (value_and_gradient(model, params, batch, torch.arange(3))[1] for _ in range(2))
        yield Found(f"the same step twice, {dtype}".replace("torch.", ""), apart(one, two), 0.0)


def quantised_learn_after_an_evaluation(where: Where) -> Iterator[Found]:
    for base, package in (("nf4", "bitsandbytes"), ("int8", "torchao")):
        if find_spec(package) is None or where.device.type == "mps":
            continue
        grads = []
        for first in (False, True):
            network = load_model("pocket", cache=Path(), base=base).network.to(where.device)  # type: ignore[arg-type]
            model = StackedModel(network, Lora(targets=("all",), base=base))  # type: ignore[arg-type]
            params, batch = moved(model, 2), where.batch(network, 2)
            if first:
                with torch.no_grad():
                    model(params, batch)
            grads.append(value_and_gradient(model, params, batch, torch.arange(2))[1])
        yield Found(f"{base}: gradients after an evaluation and without one", apart(grads[1], grads[0]), 1e-5)
        yield Found(f"{base}: adapters without any gradient", float(sum(not leaf.any() for leaf in grads[1].values())), 0.0)


def compiled_is_plain(where: Where) -> Iterator[Found]:
    network = where.network("pocket")
    plain, model = StackedModel(network, Lora()), StackedModel(where.network("pocket"), Lora(), lean=False)
    model.compile()
    params, batch = moved(plain, 3), where.batch(network)
    one, two = (value_and_gradient(each, params, batch, torch.arange(3))[1] for each in (plain, model))
    yield Found("compiled blocks are the plain ones", apart(two, one), 1e-4)
