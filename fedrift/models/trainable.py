"""Select the trained part of a network (adapters, last blocks or all weights) and quantize the frozen part.

Quantization ``nf4`` is 4-bit NormalFloat by bitsandbytes (Dettmers et al., "QLoRA", NeurIPS 2023, arXiv:2305.14314).
Quantization ``int8`` stores weights as one byte each with one scale per output row, by torchao. Both quantize the linear maps of
the blocks only; embeddings, norms, the head and the adapters keep their precision.

Configurations are checked without torch, so this module imports it on first use.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from annotated_types import Gt, Interval, MinLen

from ..core.errors import UserError, unknown_name_error
from ..core.lazy_imports import quiet_imports, torch
from ..core.random import torch_stream
from ..core.tree import Tree

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from .stacked_layers import ActiveParams

Quantization = Literal["none", "nf4", "int8"]
REQUIRED_PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}


def check_quantization_installed(quantization: Quantization) -> None:
    """Check that the package for a quantization is installed.

    Raises:
        UserError: It is not installed.
    """
    package = REQUIRED_PACKAGES.get(quantization)
    if package and find_spec(package) is None:
        raise UserError(
            f"quantization: {quantization} needs the package {package}: pip install 'fedrift[quantized]', or set quantization: none"
        )


def loading_options(quantization: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """Return the options by which transformers quantizes weights to 4 bits while it loads them; empty otherwise."""
    if quantization != "nf4":
        return {}
    from transformers import BitsAndBytesConfig

    config: Any = BitsAndBytesConfig
    return {"quantization_config": config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)}


def quantize(network: PreTrainedModel, quantization: Quantization) -> PreTrainedModel:
    """Quantize the linear maps in the blocks of a network in place and return the network.

    Raises:
        UserError: ``int8`` is requested for a network without `nn.Linear` maps.
    """
    if quantization == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        head = network.get_output_embeddings()
        maps = [module for module in network.modules() if type(module) is torch.nn.Linear and module is not head]
        if not maps:
            raise UserError(
                f"quantization: int8 does not apply to {type(network).__name__}, which has no torch.nn.Linear maps "
                "(GPT-2 uses its own type): set quantization: nf4 or none"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_(network, Int8WeightOnlyConfig(), filter_fn=lambda module, path: any(module is one for one in maps))
    return disable_avx512_kernel(network)  # a model folder may contain 4-bit weights independently of this setting


def disable_avx512_kernel(network: PreTrainedModel) -> PreTrainedModel:
    """Prevent bitsandbytes from using a CPU kernel that has no backward pass.

    On processors with AVX512_BF16, any forward pass without gradients repacks the weight for a kernel without a backward pass, and
    returning to training does not undo this. Half of the adapters then silently get no gradient (bitsandbytes 0.50.2). Every
    federated round evaluates and then trains, so that it would be affected.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return network


# The architectures of the presets. A test compares fedrift's default targets with PEFT's for them, and checks that PEFT loads adapters of
# all of their linear maps, so that a run of them need not import PEFT, which takes seconds, before it starts.
PEFT_TESTED_ARCHITECTURES = ("gpt2", "llama", "qwen2")

# "auto" uses the first of these that exists in the network if PEFT has no default for its architecture.
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
    """The interface of the trained part of a network.

    The trained weights form a tree whose leaves are named ``<path of the module>.<name>``. Compared with the weights of the network,
    each leaf has an additional leading axis: C for the clients of a cohort, M for the models of a server.

    Example:
        >>> @dataclass(frozen=True)
        ... class Norms:
        ...     quantization: ClassVar[Quantization] = "none"
        ...
        ...     def select_modules(self, network):
        ...         return {path: module for path, module in network.named_modules() if is_norm(module)}
        ...
        ...     def init_params(self, modules, seed):
        ...         return copy_weights(modules)
        ...
        ...     def wrap(self, module, path, active_params):
        ...         return PerClientModule.wrap(module, path, active_params)
        ...
        ...     def warnings(self, network):
        ...         return []
    """

    @property
    def quantization(self) -> Quantization:
        """Return the quantization of the frozen weights."""
        ...

    def select_modules(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return the trained modules by path."""
        ...

    def init_params(self, modules: dict[str, nn.Module], seed: int) -> Tree:
        """Return the initial trained weights of the selected modules, [1, ...]."""
        ...

    def wrap(self, module: nn.Module, path: str, active_params: ActiveParams) -> nn.Module:
        """Return the replacement of a selected module, which reads its weights from ``active_params``."""
        ...

    def warnings(self, network: nn.Module) -> list[str]:
        """Return warnings about weights that are not trained."""
        ...


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: W + (lora_alpha / r) B A, with random A ``[R, I]`` (equal for all clients) and zero B ``[O, R]``.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685. There is no dropout, so that a
    training step of stacked clients equals that of single clients.

    Attributes:
        r: The rank R.
        lora_alpha: The numerator of the scale.
        target_modules: Endings of module names. ``auto`` is the default of PEFT for the architecture, in most cases the query and
            value projections. ``all`` is every linear map except the head.
        quantization: The precision of the frozen weights: unchanged (``none``), 4 bits (``nf4``) or 8 bits (``int8``). Adapters
            keep full precision.

    Example:
        >>> Lora(r=4, lora_alpha=16).scale
        4.0
    """

    r: Annotated[int, Interval(ge=1, le=16_384)] = 8
    lora_alpha: Annotated[float, Gt(0)] = 16.0
    target_modules: Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1)] = ("auto",)
    quantization: Quantization = "none"

    @property
    def scale(self) -> float:
        """Return lora_alpha / r."""
        return self.lora_alpha / self.r

    def select_modules(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return the modules that get an adapter, by path.

        Raises:
            UserError: No module matches ``target_modules``, or the rank exceeds the dimensions of all selected maps.
        """
        from .stacked_layers import linear_shape

        head = network.get_output_embeddings()  # type: ignore[operator]
        linear = {path: module for path, module in network.named_modules() if linear_shape(module) and module is not head}
        chosen = self._select_targets(linear, network.config.model_type)  # type: ignore[union-attr,arg-type]
        dims = {path: min(linear_shape(module) or (0,)) for path, module in chosen.items()}
        if self.r > max(dims.values()):
            path = max(dims, key=lambda name: dims[name])
            raise UserError(
                f"trainable.r: {str(self.r)[:80]} exceeds the dimensions of all adapted maps. The maximum is "
                f"{dims[path]} (of {path}), at which an adapter can represent any change of the matrix"
            )
        return chosen

    def _select_targets(self, linear: dict[str, nn.Module], model_type: str) -> dict[str, nn.Module]:
        """Return the linear maps that ``target_modules`` selects."""
        if not linear:
            raise UserError(f"a model of type {model_type!r} has no linear map for adapters: use trainable: {{type: All}}")
        if not self.target_modules:
            raise UserError(
                "trainable.target_modules is empty, so that nothing would be trained: give endings of module names, [auto] or [all]"
            )
        if self.target_modules == ("all",):
            return linear
        if self.target_modules == ("auto",):
            return default_targets(linear, model_type)
        ends = sorted({path.rsplit(".", 1)[-1] for path in linear})
        for ending in self.target_modules:
            if ending not in ends and ending not in linear:
                raise unknown_name_error("target module", ending, [*ends, "auto", "all"])
        return {path: module for path, module in linear.items() if has_ending(path, self.target_modules)}

    def warnings(self, network: nn.Module) -> list[str]:
        """Return warnings about weights outside linear maps, such as those of experts, which are neither adapted nor quantized."""
        from .stacked_layers import is_known

        size = sum(leaf.numel() for leaf in network.parameters())
        messages, stacked, unknown = [], Counter[str](), Counter[str]()
        for module in network.modules():
            leaves = list(module.parameters(recurse=False))
            stacked[type(module).__name__] += sum(leaf.numel() for leaf in leaves if leaf.ndim > 2)
            if not is_known(module):
                unknown[type(module).__name__] += sum(leaf.numel() for leaf in leaves if leaf.ndim > 1)
        if self.quantization != "none":
            messages += [
                f"trainable.quantization: {self.quantization} applies to linear maps only, so the weights of {name} keep full precision"
                for name, count in stacked.items()
                if count / size >= 0.001
            ]
        if self.target_modules == ("all",):
            messages += [
                f"trainable.target_modules: [all] adapts linear maps only, so {name} ({100 * share:.1f} % of the model's weights) "
                "gets no adapter"
                for name, count in unknown.items()
                if (share := count / size) >= 0.001
            ]
        return messages

    def init_params(self, modules: dict[str, nn.Module], seed: int) -> Tree:
        """Return the initial adapters, A [1, R, I] and B [1, O, R]."""
        from .stacked_layers import linear_shape

        tree = Tree()
        for path, module in modules.items():
            inputs, outputs = linear_shape(module)  # type: ignore[misc]
            like = master_like(next(module.parameters()))
            matrix = torch.empty(1, self.r, inputs)
            bound = math.sqrt(1 / inputs)  # kaiming_uniform with a = sqrt(5), the initialization of PEFT
            matrix.uniform_(-bound, bound, generator=torch_stream(seed, "adapters", path))
            tree[f"{path}.A"] = matrix.to(like)  # [1, R, I]
            tree[f"{path}.B"] = torch.zeros(1, outputs, self.r).to(like)  # [1, O, R]
        return tree

    def wrap(self, module: nn.Module, path: str, active_params: ActiveParams) -> nn.Module:
        """Return the map with one adapter per client."""
        from .stacked_layers import PerClientLora

        return PerClientLora(module, path, active_params, self.scale)


class ModuleWeights:
    """The part that trainables share whose parameters are the weights of modules."""

    quantization: ClassVar[Quantization] = "none"

    def warnings(self, network: nn.Module) -> list[str]:
        """Return no warnings."""
        return []

    def init_params(self, modules: dict[str, nn.Module], seed: int) -> Tree:
        """Return the weights of the modules, [1, ...]."""
        return copy_weights(modules)

    def wrap(self, module: nn.Module, path: str, active_params: ActiveParams) -> nn.Module:
        """Return the module with one set of weights per client."""
        from .stacked_layers import PerClientModule

        return PerClientModule.wrap(module, path, active_params)


@dataclass(frozen=True)
class LastBlocks(ModuleWeights):
    """All weights of the last ``num_blocks`` transformer blocks; lower blocks are frozen and store nothing for the backward pass.

    Args:
        num_blocks: The number of last blocks.

    Example:
        >>> fedrift.load_config(config, ["trainable={type: LastBlocks, num_blocks: 2}"]).trainable
        LastBlocks(num_blocks=2)
    """

    num_blocks: Annotated[int, Interval(ge=1, le=10_000)] = 1

    def select_modules(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return the modules with weights in the last blocks, by path.

        Raises:
            UserError: The network has fewer blocks, or their weights do not belong to separate modules.
        """
        path, blocks = find_blocks(network)
        if self.num_blocks > len(blocks):
            raise UserError(f"trainable.num_blocks is {self.num_blocks}, but the network has only {len(blocks)} blocks")
        prefixes = tuple(f"{path}.{number}." for number in range(len(blocks) - self.num_blocks, len(blocks)))
        modules = {name: module for name, module in weight_modules(network).items() if f"{name}.".startswith(prefixes)}
        if not modules:
            raise UserError(
                f"{type(network).__name__} does not store the weights of {path}.{len(blocks) - 1} in separate modules: "
                "use trainable: {type: All} or {type: Lora}"
            )
        return modules


@dataclass(frozen=True)
class All(ModuleWeights):
    """All weights of the network; tied weights are trained once.

    Example:
        >>> fedrift.load_config(config, ["trainable=All"]).trainable
        All()
    """

    def select_modules(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return all modules with weights, by path."""
        return weight_modules(network)


def default_targets(linear: dict[str, nn.Module], model_type: str) -> dict[str, nn.Module]:
    """Return the maps that PEFT adapts by default in a model of this type.

    If PEFT has no default, the first existing entry of `DEFAULT_TARGETS` is used, and otherwise all maps.
    """
    default: str | Collection[str] = ()
    if model_type not in PEFT_TESTED_ARCHITECTURES:
        with quiet_imports():
            from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, ())
    if isinstance(default, str):
        selected = {path: module for path, module in linear.items() if re.fullmatch(default, path)}
    else:
        selected = {path: module for path, module in linear.items() if has_ending(path, default)}
    for endings in DEFAULT_TARGETS:
        selected = selected or {path: module for path, module in linear.items() if has_ending(path, endings)}
    return selected or linear


def has_ending(path: str, endings: Collection[str]) -> bool:
    """Return whether the path of a module or its last name is one of ``endings``."""
    return path in endings or path.rsplit(".", 1)[-1] in endings


def weight_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that own weights, by path.

    A head that is tied to the embedding is included only if it has a bias. A module of an unknown type that owns weights is
    treated as the owner of everything inside it.

    Raises:
        UserError: The weights are quantized and cannot be trained.
    """
    from .stacked_layers import is_known

    if getattr(network.config, "quantization_config", None) is not None:
        raise UserError(
            f"the weights of this {type(network).__name__} are quantized (quantization_config in config.json) and "
            "cannot be trained: use trainable: {type: Lora}, or a model folder with unquantized weights"
        )
    head = network.get_output_embeddings()  # type: ignore[operator]
    tied = head.weight is network.get_input_embeddings().weight  # type: ignore[operator]
    selected: dict[str, nn.Module] = {}
    for path, module in network.named_modules():
        is_inside = path.startswith(tuple(f"{owner}." for owner, whole in selected.items() if not is_known(whole)))
        if is_inside or not any(True for _ in module.parameters(recurse=False)):
            continue
        if not (tied and module is head and head.bias is None):
            selected[path] = module
    return selected


def copy_weights(modules: dict[str, nn.Module]) -> Tree:
    """Copy the weights of modules to a tree, [1, ...]; a tied weight is stored once, for the first module that has it."""
    tree, copied = Tree(), set[int]()
    for path, module in modules.items():
        for name, leaf in module.named_parameters():
            if id(leaf) not in copied:
                copied.add(id(leaf))
                tree[f"{path}.{name}"] = leaf.detach().to(master_like(leaf), copy=True)[None]
    return tree


def master_like(leaf: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor with the device and dtype in which a trained weight is stored, at least float32.

    Training steps are smaller than the spacing of bfloat16 numbers, so that they would be lost in bfloat16.
    """
    dtype = leaf.dtype if leaf.dtype in (torch.float32, torch.float64) else torch.float32
    return torch.empty(0, dtype=dtype, device=leaf.device)


def find_blocks(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the path and the list of the transformer blocks.

    Of the module lists that are not inside another list, one inside the text decoder is preferred, then one with the configured number
    of layers, then the longest, then the last: models of several modalities define the encoders of images and audio before the text model.

    Raises:
        UserError: The network has no list of modules.
    """
    lists: dict[str, nn.ModuleList] = {}
    for path, module in network.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not path.startswith(tuple(f"{outer}." for outer in lists)):
            lists[path] = module
    if not lists:
        raise UserError(f"{type(network).__name__} has no list of blocks: use trainable: {{type: All}} or {{type: Lora}}")
    config: Any = getattr(network, "config", None)
    count = getattr(config.get_text_config(), "num_hidden_layers", None) if config is not None else None
    decoder = network.get_decoder() if hasattr(network, "get_decoder") else None  # type: ignore[operator]
    inside_decoder = set(decoder.modules()) if isinstance(decoder, torch.nn.Module) else set()
    ranked = [
        ((module in inside_decoder, len(module) == count, len(module), index), path) for index, (path, module) in enumerate(lists.items())
    ]
    path = max(ranked)[1]
    return path, lists[path]


def find_backbone(network: nn.Module) -> nn.Module:
    """Return the part of a network that computes the last hidden states.

    This is ``base_model``. For some classes (Llama 4, Mllama) ``base_model_prefix`` names no module, so that transformers returns the whole
    network; their text model is the attribute ``model``.
    """
    base_model: Any = network.base_model
    backbone: nn.Module = getattr(network, "model", base_model) if base_model is network else base_model
    return backbone


__all__ = ["All", "LastBlocks", "Lora", "Trainable"]
