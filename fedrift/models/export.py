"""Export trained models: adapters in the format of PEFT, whole networks in the format of transformers."""

from __future__ import annotations

import pickle
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.lazy_imports import quiet_imports
from ..core.tree import Tree
from ..core.types import ServerState
from .load import first_line, quiet_transformers
from .stacked_model import StackedModel
from .trainable import PEFT_TESTED_ARCHITECTURES, Lora, Trainable

if TYPE_CHECKING:
    from peft import LoraConfig


def save_model(folder: Path, model: StackedModel, trainable: Trainable, base_model_name: str, server: ServerState) -> None:
    """Save each model of the server in ``folder``, or in ``folder/<number>`` if there are several.

    Adapters are saved in the format of PEFT (``PeftModel.from_pretrained(base, folder)``). Other trained weights, and adapters below
    which a matrix was merged, are saved as a whole model (``AutoModelForCausalLM.from_pretrained(folder)``).

    Args:
        folder: The output folder.
        model: The stacked model, which provides the network.
        trainable: The trained part.
        base_model_name: The name of the base model in the saved PEFT config.
        server: The server state with M models.
    """
    for number in range(server.num_models):
        target = folder / str(number) if server.num_models > 1 else folder
        params = server.params.map(lambda leaf: leaf[number]).to(torch.device("cpu"))  # noqa: B023
        target.mkdir(parents=True, exist_ok=True)
        merged_base = server.base_for(torch.tensor([number])).map(lambda leaf: leaf[0].cpu())
        if isinstance(trainable, Lora) and merged_base:
            save_network(target, merge_adapters(params, merged_base, trainable, model), model)
        elif isinstance(trainable, Lora):
            save_adapters(target, params, trainable, base_model_name, model)
        else:
            save_network(target, params, model)


def save_personal_adapters(folder: Path, model: StackedModel, trainable: Lora, base_model_name: str, params: Tree) -> None:
    """Save the personalized adapters [N, ...] of N clients, each in ``folder/<client>``."""
    for client in range(len(next(iter(params.values())))):
        target = folder / str(client)
        target.mkdir(parents=True, exist_ok=True)
        save_adapters(target, params.map(lambda leaf: leaf[client]).to(torch.device("cpu")), trainable, base_model_name, model)  # noqa: B023


def save_adapters(folder: Path, params: Tree, trainable: Lora, base_model_name: str, model: StackedModel) -> None:
    """Save adapters (``params`` without a leading axis) in the file format of PEFT."""
    make_peft_config(trainable, model, base_model_name).save_pretrained(str(folder))
    save_file(to_peft_state_dict(params), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def to_peft_state_dict(params: Tree) -> dict[str, Tensor]:
    """Rename adapters to their names in PEFT files."""
    factor_names, leaves = {"A": "lora_A", "B": "lora_B"}, {}
    for leaf, value in params.items():
        path, factor = leaf.rsplit(".", 1)
        leaves[f"base_model.model.{path}.{factor_names[factor]}.weight"] = value.contiguous()
    return leaves


def make_peft_config(trainable: Lora, model: StackedModel, base_model_name: str) -> LoraConfig:
    """Return the PEFT config of the adapters."""
    with quiet_imports():
        from peft import LoraConfig

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
    """Check that PEFT would load every saved adapter into the module for which it was trained.

    The architectures of the presets are not checked, because PEFT loads adapters of all of their linear maps.

    Raises:
        UserError: PEFT refuses the adapters or would not load all of them.
    """
    config: Any = model.network.config
    if config.model_type in PEFT_TESTED_ARCHITECTURES:
        return
    if problem := find_adapter_problem(model, trainable):
        raise UserError(f"{type(model.network).__name__}: {problem}")


def find_adapter_problem(model: StackedModel, trainable: Lora) -> str:
    """Return the problem that PEFT has with saved adapters of a model, or "" if there is none."""
    config: Any = model.network.config
    transposed = any(is_transposed(module) for module in model.modules.values())
    shapes = tuple((name, tuple(leaf.shape)) for name, leaf in to_peft_state_dict(model.init_params().map(lambda leaf: leaf[0])).items())
    return find_misplaced_adapters(pickle.dumps((type(model.network), config)), trainable.r, transposed, shapes)


@lru_cache
def find_misplaced_adapters(pickled: bytes, rank: int, transposed: bool, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    """Return the problem that PEFT has with saved adapters, or "" if there is none.

    PEFT loads the file into a network without weights. It refuses some modules, and it expects other names for the adapters of some
    experts.

    Args:
        pickled: The pickled pair of network class and configuration.
        rank: The rank of the adapters.
        transposed: Whether the maps store transposed weights.
        shapes: The name and shape of each tensor in the file.
    """
    with quiet_imports():
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from peft import __version__ as peft_version

    network_class, config = pickle.loads(pickled)
    vars(config).pop("quantization_config", None)
    paths = sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name, _ in shapes})
    lora = LoraConfig(r=rank, target_modules=paths, fan_in_fan_out=transposed, task_type="CAUSAL_LM")  # type: ignore[arg-type]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: Any = network_class(config)
        try:
            peft_model = get_peft_model(network, lora)
            result = set_peft_model_state_dict(peft_model, {name: torch.empty(shape) for name, shape in shapes})
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            return f"PEFT {peft_version} refuses these adapters, so that they could not be loaded: {first_line(error)[:200]}"
    expected = {name.replace(".default.", ".") for name in peft_model.state_dict() if "lora_" in name}
    misplaced = sorted(({name for name, _ in shapes} - expected) | set(result.unexpected_keys))  # type: ignore[attr-defined]
    ends = ", ".join(sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in misplaced}))
    message = (
        f"PEFT {peft_version} would not load {len(misplaced)} of the {len(shapes)} tensors of the adapters, for example {misplaced[:1]}: "
    )
    return message + f"remove {ends} from trainable.target_modules" if misplaced else ""


def merge_adapters(params: Tree, merged_base: Tree, trainable: Lora, model: StackedModel) -> Tree:
    """Return the whole weights of the adapted modules, W + s (base + B A).

    They are needed if the server has merged a matrix below the adapters, because the adapters alone do not define the model then.

    Args:
        params: The adapters without a leading axis.
        merged_base: The merged matrix of each module.
        trainable: The adapter configuration.
        model: The stacked model.
    """
    weights = Tree()
    for path, module in model.modules.items():
        weight = module.get_parameter("weight").detach().cpu()
        change = trainable.scale * (merged_base[f"{path}.base"] + params[f"{path}.B"] @ params[f"{path}.A"])
        weights[f"{path}.weight"] = weight + (change.T if is_transposed(module) else change)
    return weights


def is_transposed(module: nn.Module) -> bool:
    """Return whether a module is GPT-2's Conv1D, whose weight is [I, O]."""
    return "Conv1D" in type(module).__name__


def save_network(folder: Path, params: Tree, model: StackedModel) -> None:
    """Save the whole network with its trained weights as transformers does; weights tied to a trained one stay tied."""
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
    with quiet_transformers():
        network.save_pretrained(folder, state_dict=state)
