"""Trained models in the formats that others read: adapters as PEFT's, whole networks as transformers'."""

from __future__ import annotations

import pickle
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft import __version__ as peft_version
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.tree import Tree
from ..core.types import ServerState
from .load import first_line
from .stacked_model import StackedModel
from .trainable import Lora, Trainable


def save_model(folder: Path, model: StackedModel, trainable: Trainable, base_model_name: str, server: ServerState) -> None:
    """Each of the server's models: in ``folder``, or in ``folder/<number>`` if there are several.

    Adapters are saved as PEFT does (``PeftModel.from_pretrained(base, folder)`` wears them), all else, and adapters under
    which something was merged, as a whole model (``AutoModelForCausalLM.from_pretrained(folder)``).
    """
    for number in range(server.num_models):
        place = folder / str(number) if server.num_models > 1 else folder
        params = server.params.map(lambda leaf: leaf[number]).to(torch.device("cpu"))  # noqa: B023
        place.mkdir(parents=True, exist_ok=True)
        under = server.base_for(torch.tensor([number])).map(lambda leaf: leaf[0].cpu())
        if isinstance(trainable, Lora) and under:
            save_network(place, merge_adapters(params, under, trainable, model), model)
        elif isinstance(trainable, Lora):
            save_adapters(place, params, trainable, base_model_name, model)
        else:
            save_network(place, params, model)


def save_personal_adapters(folder: Path, model: StackedModel, trainable: Lora, base_model_name: str, params: Tree) -> None:
    """The adapters ``[N, ...]`` that clients use themselves, each in ``folder/<client>``."""
    for client in range(len(next(iter(params.values())))):
        place = folder / str(client)
        place.mkdir(parents=True, exist_ok=True)
        save_adapters(place, params.map(lambda leaf: leaf[client]).to(torch.device("cpu")), trainable, base_model_name, model)  # noqa: B023


def save_adapters(folder: Path, params: Tree, trainable: Lora, base_model_name: str, model: StackedModel) -> None:
    """Adapters in PEFT's file format; ``params`` without a leading axis."""
    make_peft_config(trainable, model, base_model_name).save_pretrained(str(folder))
    save_file(to_peft_state_dict(params), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def to_peft_state_dict(params: Tree) -> dict[str, Tensor]:
    """Adapters by the names that PEFT's files have for them."""
    kinds, leaves = {"A": "lora_A", "B": "lora_B"}, {}
    for leaf, value in params.items():
        path, kind = leaf.rsplit(".", 1)
        leaves[f"base_model.model.{path}.{kinds[kind]}.weight"] = value.contiguous()
    return leaves


def make_peft_config(trainable: Lora, model: StackedModel, base_model_name: str) -> LoraConfig:
    """PEFT's own description of the adapters."""
    transposed = any(is_transposed(module) for module in model.modules.values())
    return LoraConfig(
        r=trainable.r,
        lora_alpha=trainable.lora_alpha,  # type: ignore[arg-type]
        target_modules=sorted(model.modules),
        fan_in_fan_out=transposed,  # type: ignore[arg-type]
        base_model_name_or_path=base_model_name,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def check_peft_compatible(model: StackedModel, trainable: Lora) -> None:
    """Raise `UserError` unless PEFT puts every adapter of a saved file where it is trained here."""
    config: Any = model.network.config
    transposed = any(is_transposed(module) for module in model.modules.values())
    shapes = tuple((name, tuple(leaf.shape)) for name, leaf in to_peft_state_dict(model.init_params().map(lambda leaf: leaf[0])).items())
    if wrong := find_misplaced_adapters(pickle.dumps((type(model.network), config)), trainable.r, transposed, shapes):
        raise UserError(f"{type(model.network).__name__}: {wrong}")


@lru_cache
def find_misplaced_adapters(pickled: bytes, rank: int, transposed: bool, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    """What PEFT would do wrong with a file of such tensors for a model of this pickled class and configuration; empty if nothing.

    PEFT lays the file over a network without weights: it refuses some modules, and has other places for those of some experts.
    """
    kind, plain = pickle.loads(pickled)
    vars(plain).pop("quantization_config", None)
    paths = sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name, _ in shapes})
    lora = LoraConfig(r=rank, target_modules=paths, fan_in_fan_out=transposed, task_type="CAUSAL_LM")  # type: ignore[arg-type]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base: Any = kind(plain)
        try:
            theirs = get_peft_model(base, lora)
            result = set_peft_model_state_dict(theirs, {name: torch.empty(shape) for name, shape in shapes})
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            return f"PEFT {peft_version} refuses these adapters, so that nobody could load them: {first_line(error)[:200]}"
    there = {name.replace(".default.", ".") for name in theirs.state_dict() if "lora_" in name}
    lost = sorted(({name for name, _ in shapes} - there) | set(result.unexpected_keys))  # type: ignore[attr-defined]
    ends = ", ".join(sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in lost}))
    told = f"PEFT {peft_version} has no place for {len(lost)} of the {len(shapes)} adapters' tensors, {lost[:1]} among them: "
    return told + f"name trainable.target_modules without {ends}" if lost else ""


def merge_adapters(params: Tree, merged_base: Tree, trainable: Lora, model: StackedModel) -> Tree:
    """The adapted modules' whole weights, W + s (base + B A): where the server has merged something under the adapters,
    adapters alone are not the model."""
    weights = Tree()
    for path, module in model.modules.items():
        weight = module.get_parameter("weight").detach().cpu()
        change = trainable.scale * (merged_base[f"{path}.base"] + params[f"{path}.B"] @ params[f"{path}.A"])
        weights[f"{path}.weight"] = weight + (change.T if is_transposed(module) else change)
    return weights


def is_transposed(module: nn.Module) -> bool:
    """GPT-2's Conv1D holds its weight as ``[I, O]``."""
    return "Conv1D" in type(module).__name__


def save_network(folder: Path, params: Tree, model: StackedModel) -> None:
    """The whole network with its trained weights, as transformers saves it; what is tied to a trained weight is that weight."""
    network: Any = model.network
    trained = {
        id(leaf): params[f"{path}.{name}"].to(leaf)
        for path, module in model.modules.items()
        for name, leaf in module.named_parameters()
        if f"{path}.{name}" in params
    }
    state = {}
    for key, leaf in network.state_dict(keep_vars=True).items():
        state[key.replace(".base.", ".")] = trained[id(leaf)] if id(leaf) in trained else leaf.detach()
    network.save_pretrained(folder, state_dict=state)
