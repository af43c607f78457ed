"""Trained models in the formats that others read: adapters as PEFT's, whole networks as transformers'."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from ..tree import Tree
from ..values import Server
from .stacked import StackedModel
from .tune import Lora, Tune


def save_model(folder: Path, model: StackedModel, tune: Tune, name: str, server: Server) -> None:
    """Each of the server's models: in ``folder``, or in ``folder/<number>`` if there are several.

    Adapters are saved as PEFT does (``PeftModel.from_pretrained(base, folder)`` wears them), all else, and adapters under
    which something was merged, as a whole model (``AutoModelForCausalLM.from_pretrained(folder)``).
    """
    for number in range(server.models):
        place = folder / str(number) if server.models > 1 else folder
        params = server.params.map(lambda leaf: leaf[number]).to(torch.device("cpu"))  # noqa: B023
        place.mkdir(parents=True, exist_ok=True)
        under = server.under(torch.tensor([number])).map(lambda leaf: leaf[0].cpu())
        if isinstance(tune, Lora) and under:
            save_network(place, merged(params, under, tune, model), model)
        elif isinstance(tune, Lora):
            save_adapters(place, params, tune, name, model)
        else:
            save_network(place, params, model)


def save_personal(folder: Path, model: StackedModel, tune: Lora, name: str, params: Tree) -> None:
    """The adapters ``[N, ...]`` that clients use themselves, each in ``folder/<client>``."""
    for client in range(len(next(iter(params.values())))):
        place = folder / str(client)
        place.mkdir(parents=True, exist_ok=True)
        save_adapters(place, params.map(lambda leaf: leaf[client]).to(torch.device("cpu")), tune, name, model)  # noqa: B023


def save_adapters(folder: Path, params: Tree, tune: Lora, name: str, model: StackedModel) -> None:
    """Adapters in PEFT's file format; ``params`` without a leading axis."""
    kinds = {"A": "lora_A", "B": "lora_B"}
    leaves = {}
    for leaf, value in params.items():
        path, kind = leaf.rsplit(".", 1)
        leaves[f"base_model.model.{path}.{kinds[kind]}.weight"] = value.contiguous()
    transposed = any(is_transposed(module) for module in model.modules.values())
    LoraConfig(r=tune.rank, lora_alpha=tune.alpha, target_modules=sorted(model.modules), fan_in_fan_out=transposed,  # type: ignore[arg-type]
               base_model_name_or_path=name, task_type="CAUSAL_LM", inference_mode=True).save_pretrained(str(folder))
    save_file(leaves, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def merged(params: Tree, under: Tree, tune: Lora, model: StackedModel) -> Tree:
    """The adapted modules' whole weights, W + s (base + B A): where the server has merged something under the adapters,
    adapters alone are not the model."""
    weights = Tree()
    for path, module in model.modules.items():
        weight = module.get_parameter("weight").detach().cpu()
        change = tune.scale * (under[f"{path}.base"] + params[f"{path}.B"] @ params[f"{path}.A"])
        weights[f"{path}.weight"] = weight + (change.T if is_transposed(module) else change)
    return weights


def is_transposed(module: nn.Module) -> bool:
    """GPT-2's Conv1D holds its weight as ``[I, O]``."""
    return "Conv1D" in type(module).__name__


def save_network(folder: Path, params: Tree, model: StackedModel) -> None:
    """The whole network with its trained weights, as transformers saves it."""
    state: dict[str, Tensor] = {key.replace(".base.", "."): value for key, value in model.network.state_dict().items()}
    state.update({name: value.to(state[name]) for name, value in params.items()})
    if model.network.config.tie_word_embeddings:  # type: ignore[union-attr]
        head = {id(value): name for name, value in model.network.named_parameters(remove_duplicate=False)}
        state = {name: value for name, value in state.items() if not name.startswith("lm_head") or id(value) in head}
    model.network.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
