"""Quantised bases: the frozen weights in 4 or 8 bits, with adapters of full precision on top.

``nf4``: 4-bit NormalFloat of Dettmers et al., "QLoRA", NeurIPS 2023, arXiv:2305.14314, by bitsandbytes. ``int8``: one byte and
one scale per output row, weights only, by torchao. Both leave embeddings, norms and the head as they are: what is
quantised are the linear maps of the blocks.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from annotated_types import Gt, Interval, MinLen
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from ..core.errors import UserError, unknown_name_error
from ..core.random import torch_stream
from ..core.tree import Tree
from .stacked_layers import ActiveParams, PerClientModule, is_known, linear_shape
from .stacked_layers import PerClientLora as LoraModule

Quantization = Literal["none", "nf4", "int8"]
REQUIRED_PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}


def check_quantization_installed(quantization: Quantization) -> None:
    """Raise `UserError` if the package that quantises this way is not here."""
    package = REQUIRED_PACKAGES.get(quantization)
    if package and find_spec(package) is None:
        raise UserError(
            f"quantization: {quantization} needs the package {package}: pip install 'fedrift[quantised]'; or say quantization: none"
        )


def loading_options(quantization: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers is told when it reads the weights; 4-bit weights are packed as they are read."""
    if quantization != "nf4":
        return {}
    config: Any = BitsAndBytesConfig
    return {"quantization_config": config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)}


def quantize(network: PreTrainedModel, quantization: Quantization) -> PreTrainedModel:
    """The network with its blocks' linear maps in ``quantization``; itself, changed in place."""
    if quantization == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        head = network.get_output_embeddings()
        maps = [module for module in network.modules() if type(module) is nn.Linear and module is not head]
        if not maps:
            raise UserError(
                f"quantization: int8 finds no linear map in {type(network).__name__} (GPT-2 keeps its own kind): "
                "say quantization: nf4 or none"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_(network, Int8WeightOnlyConfig(), filter_fn=lambda module, path: any(module is one for one in maps))
    return disable_avx512_kernel(network)  # a folder may hold 4-bit weights whatever quantization is asked for


def disable_avx512_kernel(network: PreTrainedModel) -> PreTrainedModel:
    """Keep bitsandbytes from a processor kernel without gradients.

    On processors with AVX512_BF16 a forward pass without gradients (any evaluation) repacks the weight for a kernel that has no
    backward pass, and going back to training does not undo it: half of the adapters then get no gradient, silently
    (bitsandbytes 0.50.2). Evaluate-then-train is every federated round.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return network


# What is trained: adapters, the last blocks, or everything. Each says which leaves a network's tree gets.
#
# A leaf is named by the module it belongs to. Leaves lead with one axis more than the network's own
# weights, the client's: C for a cohort, M for a server's models.

# What "auto" means for an architecture that PEFT has no default for: the first of these that the network has.
DEFAULT_TARGETS = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("c_attn",),
    ("q_b_proj", "kv_b_proj"),
    ("in_proj", "x_proj"),
)


class Trainable(Protocol):
    """``select_modules``: which modules are trained, by path; ``init_params``: their first tree ``[1, ...]``; ``wrap``: the
    module that takes the place of one of them and reads its trained part from the active params; ``quantization``: how the
    frozen weights are kept; ``warnings``: what a reader should know of what is not trained."""

    @property
    def quantization(self) -> Quantization: ...
    def select_modules(self, network: nn.Module) -> dict[str, nn.Module]: ...
    def init_params(self, modules: dict[str, nn.Module], seed: int) -> Tree: ...
    def wrap(self, module: nn.Module, path: str, active_params: ActiveParams) -> nn.Module: ...
    def warnings(self, network: nn.Module) -> list[str]: ...


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: W + (lora_alpha / r) B A, with A ``[R, I]`` random and the same for all clients, B ``[O, R]`` zero.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.
    ``target_modules``: endings of module names; ``auto`` is PEFT's default for the architecture, most often the query and
    value projections, ``all`` every linear map but the head.
    There is no dropout: a stacked step equals a lone one. ``quantization``: the frozen weights as
    they are (none), or in 4 bits (nf4) or 8 (int8); adapters stay in full precision.
    """

    r: Annotated[int, Interval(ge=1, le=16_384)] = 8
    lora_alpha: Annotated[float, Gt(0)] = 16.0
    target_modules: Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1)] = ("auto",)
    quantization: Quantization = "none"

    @property
    def scale(self) -> float:
        return self.lora_alpha / self.r

    def select_modules(self, network: nn.Module) -> dict[str, nn.Module]:
        """The modules that get an adapter, by path."""
        linear = {
            path: module
            for path, module in network.named_modules()
            if linear_shape(module) and module is not network.get_output_embeddings()
        }  # type: ignore[operator]
        chosen = self._select_targets(linear, network.config.model_type)  # type: ignore[union-attr,arg-type]
        dims = {path: min(linear_shape(module) or (0,)) for path, module in chosen.items()}
        if self.r > max(dims.values()):
            path = max(dims, key=lambda name: dims[name])
            raise UserError(
                f"trainable.r: {str(self.r)[:80]} is more than any adapted map has dimensions; at most "
                f"{dims[path]}, of {path}, at which an adapter is as good as the whole matrix"
            )
        return chosen

    def _select_targets(self, linear: dict[str, nn.Module], model_type: str) -> dict[str, nn.Module]:
        """Those of the linear maps that the targets name."""
        if not linear:
            raise UserError(f"a model of type {model_type!r} has no linear map to adapt: use trainable: {{type: All}}")
        if not self.target_modules:
            raise UserError(
                "trainable.target_modules is empty, so that nothing would be trained: name endings of modules, or say [auto] or [all]"
            )
        if self.target_modules == ("all",):
            return linear
        if self.target_modules == ("auto",):
            return default_targets(linear, model_type)
        ends = sorted({path.rsplit(".", 1)[-1] for path in linear})
        for ending in self.target_modules:
            if ending not in ends and ending not in linear:
                raise unknown_name_error("module to adapt", ending, [*ends, "auto", "all"])
        return {path: module for path, module in linear.items() if has_ending(path, self.target_modules)}

    def warnings(self, network: nn.Module) -> list[str]:
        """What ``all`` leaves out: weights that are held in no linear map, as those of experts often are."""
        if self.target_modules != ("all",):
            return []
        kept, size = dict[str, int](), sum(leaf.numel() for leaf in network.parameters())
        for module in network.modules():
            own = sum(leaf.numel() for leaf in module.parameters(recurse=False) if leaf.ndim > 1)
            if own and not is_known(module):
                kept[type(module).__name__] = kept.get(type(module).__name__, 0) + own
        return [
            f"trainable.target_modules: [all] adapts linear maps, so that {name} gets no adapter: {share:.1%} of the model's weights"
            for name, count in kept.items()
            if (share := count / size) >= 0.001
        ]

    def init_params(self, modules: dict[str, nn.Module], seed: int) -> Tree:
        tree = Tree()
        for path, module in modules.items():
            wide, tall = linear_shape(module)  # type: ignore[misc]
            like = master_like(next(module.parameters()))
            first = torch.empty(1, self.r, wide)
            bound = math.sqrt(1 / wide)  # kaiming_uniform with a = sqrt(5), as PEFT begins
            first.uniform_(-bound, bound, generator=torch_stream(seed, "adapters", path))
            tree[f"{path}.A"] = first.to(like)  # [1, R, I]
            tree[f"{path}.B"] = torch.zeros(1, tall, self.r).to(like)  # [1, O, R]
        return tree

    def wrap(self, module: nn.Module, path: str, active_params: ActiveParams) -> nn.Module:
        return LoraModule(module, path, active_params, self.scale)


@dataclass(frozen=True)
class LastBlocks:
    """The last ``num_blocks`` transformer blocks, all their weights; what lies below stays frozen and keeps no gradients."""

    quantization: ClassVar[Quantization] = "none"
    num_blocks: Annotated[int, Interval(ge=1, le=10_000)] = 1

    def select_modules(self, network: nn.Module) -> dict[str, nn.Module]:
        path, stack = find_blocks(network)
        if self.num_blocks > len(stack):
            raise UserError(f"trainable.num_blocks: {self.num_blocks} asked for, but the network has {len(stack)} blocks")
        prefixes = tuple(f"{path}.{number}." for number in range(len(stack) - self.num_blocks, len(stack)))
        found = {name: module for name, module in weight_modules(network).items() if f"{name}.".startswith(prefixes)}
        if not found:
            raise UserError(
                f"{type(network).__name__} does not hold the weights of {path}.{len(stack) - 1} apart from others: "
                "use trainable: {type: All} or {type: Lora}"
            )
        return found

    def warnings(self, network: nn.Module) -> list[str]:
        return []

    def init_params(self, modules: dict[str, nn.Module], seed: int) -> Tree:
        return copy_weights(modules)

    def wrap(self, module: nn.Module, path: str, active_params: ActiveParams) -> nn.Module:
        return PerClientModule.wrap(module, path, active_params)


@dataclass(frozen=True)
class All:
    """Every weight of the network; tied ones once."""

    quantization: ClassVar[Quantization] = "none"

    def select_modules(self, network: nn.Module) -> dict[str, nn.Module]:
        return weight_modules(network)

    def warnings(self, network: nn.Module) -> list[str]:
        return []

    def init_params(self, modules: dict[str, nn.Module], seed: int) -> Tree:
        return copy_weights(modules)

    def wrap(self, module: nn.Module, path: str, active_params: ActiveParams) -> nn.Module:
        return PerClientModule.wrap(module, path, active_params)


def default_targets(linear: dict[str, nn.Module], model_type: str) -> dict[str, nn.Module]:
    """The maps that PEFT adapts by default in a model of this type; without such, the usual projections, or all maps."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # seconds that no configuration waits for

    default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, ())
    if isinstance(default, str):
        found = {path: module for path, module in linear.items() if re.fullmatch(default, path)}
    else:
        found = {path: module for path, module in linear.items() if has_ending(path, default)}
    for endings in DEFAULT_TARGETS:
        found = found or {path: module for path, module in linear.items() if has_ending(path, endings)}
    return found or linear


def has_ending(path: str, endings: Collection[str]) -> bool:
    """Whether a module's path or its last name is one of ``endings``."""
    return path in endings or path.rsplit(".", 1)[-1] in endings


def weight_modules(network: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold weights themselves, by path; the head only for its bias when it is tied to the embedding.

    A module of an unknown kind that holds weights owns all that is inside it.
    """
    if getattr(network.config, "quantization_config", None) is not None:
        raise UserError(
            f"the weights of this {type(network).__name__} are quantised (quantization_config in config.json) and "
            "cannot be trained themselves: use trainable: {type: Lora}, or a folder with the weights in full"
        )
    head = network.get_output_embeddings()  # type: ignore[operator]
    tied = head.weight is network.get_input_embeddings().weight  # type: ignore[operator]
    found = dict[str, nn.Module]()
    for path, module in network.named_modules():
        inside = path.startswith(tuple(f"{owner}." for owner, whole in found.items() if not is_known(whole)))
        if inside or not any(True for _ in module.parameters(recurse=False)):
            continue
        if not (tied and module is head and head.bias is None):
            found[path] = module
    return found


def copy_weights(modules: dict[str, nn.Module]) -> Tree:
    """The modules' own weights as a tree ``[1, ...]``; a tied one once, in the first module that has it."""
    tree, seen = Tree(), set[int]()
    for path, module in modules.items():
        for name, leaf in module.named_parameters():
            if id(leaf) not in seen:
                seen.add(id(leaf))
                tree[f"{path}.{name}"] = leaf.detach().to(master_like(leaf), copy=True)[None]
    return tree


def master_like(leaf: torch.Tensor) -> torch.Tensor:
    """What trained weights are kept like: on the leaf's device, in single precision at least, whatever it is stored in.

    Steps of training are smaller than bfloat16's spacing: they would be lost.
    """
    wide = leaf.dtype if leaf.dtype in (torch.float32, torch.float64) else torch.float32
    return torch.empty(0, dtype=wide, device=leaf.device)


def find_blocks(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the transformer blocks: of the lists of modules that lie in no other, the one as long as the
    configuration says, or the longest."""
    lists = dict[str, nn.ModuleList]()
    for path, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and not path.startswith(tuple(f"{outer}." for outer in lists)):
            lists[path] = module
    if not lists:
        raise UserError(f"{type(network).__name__} has no list of blocks: use trainable: {{type: All}} or {{type: Lora}}")
    config: Any = getattr(network, "config", None)
    count = getattr(config.get_text_config(), "num_hidden_layers", None) if config is not None else None
    return max(lists.items(), key=lambda item: (len(item[1]) == count, len(item[1])))


__all__ = ["All", "LastBlocks", "Lora", "Trainable"]
