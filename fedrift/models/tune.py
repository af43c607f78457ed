"""What is trained: adapters, the last blocks, or everything. Each says which leaves a network's tree gets.

A leaf is named by the module it belongs to. Leaves lead with one axis more than the network's own
weights, the client's: C for a cohort, M for a server's models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import torch
from annotated_types import Gt, Interval, MinLen
from torch import nn

from ..errors import UserError, unknown
from ..streams import torch_stream
from ..tree import Tree
from .quantised import Base
from .worn import Lora as LoraModule
from .worn import Outfit, Own, is_known, shape_of

# What "auto" means for an architecture that PEFT has no default for: the first of these that the network has.
USUAL = (("q_proj", "v_proj"), ("query", "value"), ("query_key_value",), ("qkv_proj",), ("Wqkv",), ("c_attn",),
         ("q_b_proj", "kv_b_proj"), ("in_proj", "x_proj"))


class Tune(Protocol):
    """``modules``: which modules are trained, by path; ``params``: their first tree ``[1, ...]``; ``wear``: the module
    that takes the place of one of them and reads its trained part from an outfit; ``base``: how the frozen weights are kept;
    ``caveats``: what a reader should know of what is not trained."""

    @property
    def base(self) -> Base: ...
    def modules(self, network: nn.Module) -> dict[str, nn.Module]: ...
    def params(self, modules: dict[str, nn.Module], seed: int) -> Tree: ...
    def wear(self, module: nn.Module, path: str, outfit: Outfit) -> nn.Module: ...
    def caveats(self, network: nn.Module) -> list[str]: ...


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: W + (alpha / rank) B A, with A ``[R, I]`` random and the same for all clients, B ``[O, R]`` zero.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.
    ``targets``: endings of module names; ``auto`` is PEFT's default for the architecture, most often the query and
    value projections, ``all`` every linear map but the head.
    There is no dropout: a stacked step equals a lone one. ``base``: the frozen weights as they
    are (dense), or in 4 bits (nf4) or 8 (int8); adapters stay in full precision.
    """

    rank: Annotated[int, Interval(ge=1, le=16_384)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    targets: Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1)] = ("auto",)
    base: Base = "dense"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def modules(self, network: nn.Module) -> dict[str, nn.Module]:
        """The modules that get an adapter, by path."""
        linear = {path: module for path, module in network.named_modules()
                  if shape_of(module) and module is not network.get_output_embeddings()}  # type: ignore[operator]
        chosen = self._chosen(linear, network.config.model_type)  # type: ignore[union-attr,arg-type]
        dims = {path: min(shape_of(module) or (0,)) for path, module in chosen.items()}
        if self.rank > max(dims.values()):
            path = max(dims, key=lambda name: dims[name])
            raise UserError(f"tune.rank: {str(self.rank)[:80]} is more than any adapted map has dimensions; at most "
                            f"{dims[path]}, of {path}, at which an adapter is as good as the whole matrix")
        return chosen

    def _chosen(self, linear: dict[str, nn.Module], kind: str) -> dict[str, nn.Module]:
        """Those of the linear maps that the targets name."""
        if not linear:
            raise UserError(f"a model of type {kind!r} has no linear map to adapt: use tune: {{is: Full}}")
        if not self.targets:
            raise UserError("tune.targets is empty, so that nothing would be trained: name endings of modules, or say [auto] or "
                            "[all]")
        if self.targets == ("all",):
            return linear
        if self.targets == ("auto",):
            return usual_targets(linear, kind)
        ends = sorted({path.rsplit(".", 1)[-1] for path in linear})
        for ending in self.targets:
            if ending not in ends and ending not in linear:
                raise unknown("module to adapt", ending, [*ends, "auto", "all"])
        return {path: module for path, module in linear.items() if has_ending(path, self.targets)}

    def caveats(self, network: nn.Module) -> list[str]:
        """What ``all`` leaves out: weights that are held in no linear map, as those of experts often are."""
        if self.targets != ("all",):
            return []
        kept, size = dict[str, int](), sum(leaf.numel() for leaf in network.parameters())
        for module in network.modules():
            own = sum(leaf.numel() for leaf in module.parameters(recurse=False) if leaf.ndim > 1)
            if own and not is_known(module):
                kept[type(module).__name__] = kept.get(type(module).__name__, 0) + own
        return [f"tune.targets: [all] adapts linear maps, so that {name} gets no adapter: {share:.1%} of the model's weights"
                for name, count in kept.items() if (share := count / size) >= 0.001]

    def params(self, modules: dict[str, nn.Module], seed: int) -> Tree:
        tree = Tree()
        for path, module in modules.items():
            wide, tall = shape_of(module)  # type: ignore[misc]
            like = master(next(module.parameters()))
            first = torch.empty(1, self.rank, wide)
            bound = math.sqrt(1 / wide)  # kaiming_uniform with a = sqrt(5), as PEFT begins
            first.uniform_(-bound, bound, generator=torch_stream(seed, "adapters", path))
            tree[f"{path}.A"] = first.to(like)  # [1, R, I]
            tree[f"{path}.B"] = torch.zeros(1, tall, self.rank).to(like)  # [1, O, R]
        return tree

    def wear(self, module: nn.Module, path: str, outfit: Outfit) -> nn.Module:
        return LoraModule(module, path, outfit, self.scale)


@dataclass(frozen=True)
class LastK:
    """The last ``blocks`` transformer blocks, all their weights; what lies below stays frozen and keeps no gradients."""

    base: ClassVar[Base] = "dense"
    blocks: Annotated[int, Interval(ge=1, le=10_000)] = 1

    def modules(self, network: nn.Module) -> dict[str, nn.Module]:
        path, stack = blocks_of(network)
        if self.blocks > len(stack):
            raise UserError(f"tune.blocks: {self.blocks} asked for, but the network has {len(stack)} blocks")
        prefixes = tuple(f"{path}.{number}." for number in range(len(stack) - self.blocks, len(stack)))
        found = {name: module for name, module in owners(network).items() if f"{name}.".startswith(prefixes)}
        if not found:
            raise UserError(f"{type(network).__name__} does not hold the weights of {path}.{len(stack) - 1} apart from others: "
                            "use tune: {is: Full} or {is: Lora}")
        return found

    def caveats(self, network: nn.Module) -> list[str]:
        return []

    def params(self, modules: dict[str, nn.Module], seed: int) -> Tree:
        return weights(modules)

    def wear(self, module: nn.Module, path: str, outfit: Outfit) -> nn.Module:
        return Own.of(module, path, outfit)


@dataclass(frozen=True)
class Full:
    """Every weight of the network; tied ones once."""

    base: ClassVar[Base] = "dense"

    def modules(self, network: nn.Module) -> dict[str, nn.Module]:
        return owners(network)

    def caveats(self, network: nn.Module) -> list[str]:
        return []

    def params(self, modules: dict[str, nn.Module], seed: int) -> Tree:
        return weights(modules)

    def wear(self, module: nn.Module, path: str, outfit: Outfit) -> nn.Module:
        return Own.of(module, path, outfit)


def usual_targets(linear: dict[str, nn.Module], kind: str) -> dict[str, nn.Module]:
    """The maps that PEFT adapts by default in a model of this type; without such, the usual projections, or all maps."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # seconds that no configuration waits for

    default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind, ())
    if isinstance(default, str):
        found = {path: module for path, module in linear.items() if re.fullmatch(default, path)}
    else:
        found = {path: module for path, module in linear.items() if has_ending(path, default)}
    for endings in USUAL:
        found = found or {path: module for path, module in linear.items() if has_ending(path, endings)}
    return found or linear


def has_ending(path: str, endings: Collection[str]) -> bool:
    """Whether a module's path or its last name is one of ``endings``."""
    return path in endings or path.rsplit(".", 1)[-1] in endings


def owners(network: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold weights themselves, by path; the head only for its bias when it is tied to the embedding.

    A module of an unknown kind that holds weights owns all that is inside it.
    """
    if getattr(network.config, "quantization_config", None) is not None:
        raise UserError(f"the weights of this {type(network).__name__} are quantised (quantization_config in config.json) and "
                        "cannot be trained themselves: use tune: {is: Lora}, or a folder with the weights in full")
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


def weights(modules: dict[str, nn.Module]) -> Tree:
    """The modules' own weights as a tree ``[1, ...]``; a tied one once, in the first module that has it."""
    tree, seen = Tree(), set[int]()
    for path, module in modules.items():
        for name, leaf in module.named_parameters():
            if id(leaf) not in seen:
                seen.add(id(leaf))
                tree[f"{path}.{name}"] = leaf.detach().to(master(leaf), copy=True)[None]
    return tree


def master(leaf: torch.Tensor) -> torch.Tensor:
    """What trained weights are kept like: on the leaf's device, in single precision at least, whatever it is stored in.

    Steps of training are smaller than bfloat16's spacing: they would be lost.
    """
    wide = leaf.dtype if leaf.dtype in (torch.float32, torch.float64) else torch.float32
    return torch.empty(0, dtype=wide, device=leaf.device)


def blocks_of(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the transformer blocks: of the lists of modules that lie in no other, the one as long as the
    configuration says, or the longest."""
    lists = dict[str, nn.ModuleList]()
    for path, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and not path.startswith(tuple(f"{outer}." for outer in lists)):
            lists[path] = module
    if not lists:
        raise UserError(f"{type(network).__name__} has no list of blocks: use tune: {{is: Full}} or {{is: Lora}}")
    config: Any = getattr(network, "config", None)
    count = getattr(config.get_text_config(), "num_hidden_layers", None) if config is not None else None
    return max(lists.items(), key=lambda item: (len(item[1]) == count, len(item[1])))


__all__ = ["Full", "LastK", "Lora", "Tune"]
