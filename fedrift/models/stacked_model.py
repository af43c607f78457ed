"""What a network does is compared with what fedrift makes of it, before anything is trained.

A network is run as transformers runs it, with the trained parts of two clients in turn, and then for both clients at once as a
stacked model. Their losses must agree at every position. How hidden states become logits is measured on random hidden
states, large enough that a soft cap is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import TopPLogitsWarper

from ..core.errors import UserError
from ..core.tree import Tree
from .fused import fuse_blocks
from .head import LogitTransform, PerClientHeadLoss, frozen_head_losses, to_float32
from .prefix_cache import PrefixCache, count_frozen_blocks
from .stacked_layers import ActiveParams, PerClientLora, PerClientModule
from .trainable import Trainable, find_blocks

CHECK_CLIENTS, CHECK_ROWS, CHECK_LENGTH = 2, 2, 9
# Relative difference that rounding may make: of logits from the same hidden states, and of losses through all blocks.
TOLERANCE = {torch.float64: (1e-9, 1e-7), torch.float32: (1e-5, 1e-4)}
COARSE_TOLERANCE = 2e-2, 5e-2
SUGGESTION = "train another model, or report this one"


def get_tolerance(weight: Tensor) -> tuple[float, float]:
    """What `TOLERANCE` allows a network whose head has this matrix."""
    exact = weight.device.type == "cpu" or weight.dtype == torch.float64
    return TOLERANCE.get(weight.dtype, COARSE_TOLERANCE) if exact else COARSE_TOLERANCE


def sample_tokens(network: Any) -> Tensor:
    """A few tokens ``[CHECK_CLIENTS, CHECK_ROWS, CHECK_LENGTH]`` that stand for plain text: no mark of
    an image or the like among them."""
    config = network.config.get_text_config()
    marks = {value for name, value in vars(network.config).items() if name.endswith(("token_id", "token_index")) and isinstance(value, int)}
    size = min(network.get_output_embeddings().weight.shape[0], config.vocab_size)
    plain = torch.tensor([number for number in range(min(size, 1000)) if number not in marks])
    draw = torch.Generator().manual_seed(0)
    chosen = plain[torch.randint(len(plain), (CHECK_CLIENTS, CHECK_ROWS, CHECK_LENGTH), generator=draw)]
    return chosen.to(network.get_output_embeddings().weight.device)


def perturb_params(template: Tree) -> Tree:
    """The trained parts ``[1, ...]`` for two clients, each leaf a little away from where it begins."""
    draw = torch.Generator().manual_seed(1)
    leaves = Tree()
    for name, leaf in template.items():
        spread = float(leaf.float().std()) if leaf.numel() > 1 else 0.0
        noise = torch.randn(CHECK_CLIENTS, *leaf.shape[1:], generator=draw)
        leaves[name] = leaf + (0.1 * (spread or 0.2) * noise).to(leaf)
    return leaves


@torch.no_grad()
def read_logits(network: Any) -> LogitTransform:
    """How a network makes logits of the last hidden states. Raises `UserError` where fedrift cannot do the same."""
    kind = type(network).__name__
    head: Any = network.get_output_embeddings()
    if not isinstance(head, nn.Module) or getattr(head, "weight", None) is None or head.weight.ndim != 2:
        raise UserError(
            f"{kind} has no matrix that makes logits of hidden states (get_output_embeddings), which fedrift trains by: {SUGGESTION}"
        )
    tokens = sample_tokens(network)[0]
    states = network.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    weight: Tensor = head.weight  # type: ignore[assignment]
    draw = torch.Generator().manual_seed(2)
    spread = torch.tensor([[0.3, 1.0, 3.0, 10.0, 30.0] * CHECK_LENGTH] * CHECK_ROWS)[:, :CHECK_LENGTH, None]
    given = torch.randn(states.shape, generator=draw).to(states)
    given *= spread.to(states) / float((given @ weight.T).float().std().clamp_min(1e-6))
    seen: list[Tensor] = []
    with replace_head_input(head, given, seen):
        logits = network(input_ids=tokens, use_cache=False).logits
    if len(seen) != 2 or seen[0].shape != states.shape or logits.shape != seen[1].shape:
        raise UserError(f"{kind} makes its logits in a way that fedrift does not know: {SUGGESTION}")
    exact, _ = get_tolerance(weight)
    before = fit_scale(seen[0], states)
    plain = F.linear(given, weight, getattr(head, "bias", None))
    if not (is_close(before * states, seen[0], exact) and is_close(plain, seen[1], exact)):
        raise UserError(
            f"{kind} changes its last hidden states before they become logits in a way that fedrift does not know: {SUGGESTION}"
        )
    found = fit_logit_transform(to_float32(plain), to_float32(logits), numeric_settings(network.config), exact)
    if found is None or (before != 1 and getattr(head, "bias", None) is not None):
        raise UserError(f"{kind} changes its logits in a way that fedrift does not know: {SUGGESTION}")
    return LogitTransform(snap_to_config(before, numeric_settings(network.config), exact) * found.scale, found.cap)


def fit_logit_transform(plain: Tensor, logits: Tensor, config_numbers: dict[str, float], tolerance: float) -> LogitTransform | None:
    """The factor and the soft cap that make ``logits`` of ``plain = h W^T + b``; None if it is neither."""
    caps = [value for name, value in config_numbers.items() if "cap" in name and "logit" in name and "att" not in name and value > 0]
    for cap in (None, *caps):
        inner = logits if cap is None else (logits / cap).clamp(-0.9, 0.9).atanh() * cap
        use = torch.ones_like(logits, dtype=torch.bool) if cap is None else logits.abs() < 0.9 * cap
        scale = snap_to_config(fit_scale(inner[use], plain[use]), config_numbers, tolerance)
        made = plain * scale if cap is None else cap * (plain * scale / cap).tanh()
        if is_close(made, logits, tolerance):
            return LogitTransform(scale, cap)
    return None


def fit_scale(target: Tensor, reference: Tensor) -> float:
    """The number that ``reference`` is multiplied by to be nearest to ``target``; 1 where both are zero."""
    below = reference.double().square().sum()
    return float((target.double() * reference.double()).sum() / below) if below > 0 else 1.0


def snap_to_config(measured: float, config_numbers: dict[str, float], tolerance: float) -> float:
    """A measured factor without rounding: 1, or the number of the configuration, or its inverse, that it is."""
    candidates = [1.0, *(power for value in config_numbers.values() if value for power in (value, 1 / value, abs(value) ** -0.5))]
    best = min(candidates, key=lambda value: abs(measured - value))
    return best if abs(measured - best) <= tolerance * abs(best) else measured


def numeric_settings(config: Any) -> dict[str, float]:
    """The numbers of a configuration by name."""
    return {
        name: float(value)
        for part in (config, config.get_text_config())
        for name, value in vars(part).items()
        if isinstance(value, Real) and not isinstance(value, bool)
    }


def is_close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by no more than a share of the largest number in a row."""
    size = expected.abs().amax(-1, keepdim=True).clamp_min(1e-6)
    return bool(((actual - expected).abs() <= tolerance * size).all())


@contextmanager
def replace_head_input(head: nn.Module, hidden: Tensor, captured: list[Tensor]) -> Iterator[None]:
    """While the network works, its head reads ``hidden``; ``captured`` gets what it was to read and what it made of
    ``hidden``."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        captured.append(args[0])
        return (hidden.to(args[0].dtype).view(args[0].shape) if args[0].numel() == hidden.numel() else args[0],)

    hooks = [head.register_forward_pre_hook(before), head.register_forward_hook(lambda module, args, out: captured.append(out))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def reference_losses(network: Any, modules: dict[str, nn.Module], leaves: Tree, scale: float, tokens: Tensor) -> tuple[Tensor, set[str]]:
    """The loss of every position ``[B, T-1]`` as transformers has it, of one client: ``leaves`` without a leading axis.

    Adapters are added to what their maps give; all other leaves take the place of the network's own. Also returned: the paths of
    maps whose adapter changed nothing, because the network does not use them or computes with their weights itself.
    """
    idle = {path for path in modules if f"{path}.A" in leaves and "expert" not in path}  # no token may need an expert

    def added(path: str) -> Any:
        def forward(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            idle.discard(path)
            down, up = leaves[f"{path}.A"], leaves[f"{path}.B"]
            return out + scale * (args[0] @ down.T.to(out.dtype)) @ up.T.to(out.dtype)

        return forward

    hooks = [module.register_forward_hook(added(path)) for path, module in modules.items() if f"{path}.A" in leaves]
    own = {name: leaf for name, leaf in leaves.items() if name.rsplit(".", 1)[0] not in modules or not hooks}
    own = {name: leaf.to(network.get_parameter(name)) for name, leaf in own.items()}
    try:
        out = functional_call(network, own, (), {"input_ids": tokens, "use_cache": False})
    finally:
        for hook in hooks:
            hook.remove()
    logits = to_float32(out.logits[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1), idle


def check_losses(actual: Tensor, expected: Tensor, head_weight: Tensor, description: str) -> None:
    """Raise `UserError` where losses ``[C, B, T-1]`` are not those of plain transformers; ``head_weight``: the head's."""
    _, through = get_tolerance(head_weight)
    apart = (actual - expected.to(actual)).abs()
    if through == COARSE_TOLERANCE[1]:  # in few bits single positions may be far off
        apart, expected = apart.mean(), expected.mean()
    if not bool((apart <= through * expected.abs().clamp_min(1).to(actual)).all()):
        raise UserError(
            f"{description} computes other losses in a stack of clients than alone (by up to {float(apart.max()):.1e} nats): {SUGGESTION}"
        )


# A language model that C clients wear at once, and the two things asked of it: loss and gradient, and evaluation.


class StackedModel:
    """A frozen causal language model whose trained parts are given with every call, stacked along C.

    It is a ``LossFn``: ``model(params [C, ...], batch)`` is each client's mean loss ``[C]`` in nats
    per token. ``batch["tokens"] [C, B, T]`` holds token ids, ``batch["keep"] [C, B, T]`` is false on
    padding; the label of a position is the token after it, so the first of a block is only context.
    ``fused``: known blocks compute the same with fewer passes over memory; without it all but the worn modules and the head is
    transformers' own. ``use_prefix_cache``: blocks below everything that is trained work once for each sequence, and what they
    made of it is kept (None: on a CPU, if there are such blocks).
    """

    def __init__(self, network: nn.Module, trainable: Trainable, fused: bool = True, use_prefix_cache: bool | None = None) -> None:
        check_unshared(network)
        network.eval().requires_grad_(False)
        self.network, self.trainable = network, trainable
        self.active_params = ActiveParams()
        self.modules = trainable.select_modules(network)
        self.caveats = trainable.warnings(network)
        self.head = network.get_output_embeddings()  # type: ignore[operator]
        with explain_errors(network, trainable):
            self.to_logits = read_logits(network)
            tokens, params, expected = sample_tokens(network), perturb_params(self.init_params()), list[Tensor]()
            for client in range(len(tokens)):
                own = params.map(lambda leaf: leaf[client])  # noqa: B023
                losses, idle = reference_losses(network, self.modules, own, getattr(trainable, "scale", 1.0), tokens[client])
                self._drop_unused_adapters(idle)
                params = Tree({name: leaf for name, leaf in params.items() if name.rsplit(".", 1)[0] not in idle})
                expected.append(losses)
        leaves = self.init_params().keys()
        names = {
            id(leaf): f"{path}.{name}"
            for path, module in self.modules.items()
            for name, leaf in module.named_parameters()
            if f"{path}.{name}" in leaves
        }
        self.head_leaf = names.get(id(self.head.weight))  # a tied head's is the embedding's
        self.bias_leaf = names.get(id(getattr(self.head, "bias", None)))
        replace_modules(network, {module: trainable.wrap(module, path, self.active_params) for path, module in self.modules.items()})
        if fused:
            fuse_blocks(network, self.active_params)
        below = count_frozen_blocks(network, self.modules)
        wanted = self.device.type == "cpu" if use_prefix_cache is None else use_prefix_cache
        self.prefix_cache = PrefixCache(network, below) if wanted and below else None
        with explain_errors(network, trainable):
            self._verify(params, tokens, torch.stack(expected))

    def compile(self) -> None:
        """Compile every block, once for each shape: worth its minute on long runs."""
        for block in find_blocks(self.network)[1]:
            block.compile()

    def init_params(self, seed: int = 0) -> Tree:
        """The trained parts as they begin, ``[1, ...]``; only adapters depend on the seed."""
        return self.trainable.init_params(self.modules, seed)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device  # type: ignore[no-any-return]

    def __call__(self, params: Tree, batch: dict[str, Tensor]) -> Tensor:
        total, count = self.sequence_losses(params, batch["tokens"], batch["keep"])
        return total.sum(1) / count.sum(1).clamp_min(1)

    def sequence_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss (nats) and predicted tokens of every sequence, both ``[C, B]``."""
        losses, counted = self.position_losses(params, tokens, mask)
        return losses.sum(2), counted.sum(2)

    def position_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (nats) of every token after the first, 0 on padding, and which are predicted, both ``[C, B, T-1]``."""
        hidden = self.hidden_states(params, tokens)[:, :, :-1]  # [C, B, T-1, H]
        target, counted = tokens[:, :, 1:], mask[:, :, 1:]
        weight, bias = self.head_weights(params, hidden.dtype)
        if self.head_leaf is not None:
            losses = PerClientHeadLoss.apply(hidden.flatten(1, 2), weight, target.flatten(1), bias, self.to_logits)
            losses = losses.view(target.shape) * counted
        elif bool(counted.all()):
            losses = frozen_head_losses(hidden.flatten(0, 2), weight, target.flatten(), bias, self.to_logits).view(target.shape)
        else:
            found = frozen_head_losses(hidden[counted], weight, target[counted], bias, self.to_logits)
            losses = found.new_zeros(target.shape).masked_scatter(counted, found)
        return losses, counted

    def hidden_states(self, params: Tree, tokens: Tensor, bypass_cache: bool = False) -> Tensor:
        """The last hidden states of every position, ``[C, B, T] -> [C, B, T, H]``. ``bypass_cache``: every block
        works."""
        rows = tokens.flatten(0, 1)
        known = nullcontext() if bypass_cache or self.prefix_cache is None else self.prefix_cache.substitute(rows)
        self.active_params.leaves, self.active_params.num_rows = params, len(rows)
        try:
            with known:
                states = self.network.base_model(input_ids=rows, use_cache=False).last_hidden_state  # type: ignore[operator]
        finally:
            self.active_params.leaves = Tree()
        return states.view(*tokens.shape, -1)  # type: ignore[no-any-return]

    def head_weights(self, params: Tree, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The head's matrix and bias: each client's own, ``[C, V, H]`` and ``[C, V]``, or the frozen ones without the C."""
        bias = getattr(self.head, "bias", None)
        if self.head_leaf is None:
            return self.head.weight, bias
        weight = params[self.head_leaf].to(dtype)
        if self.bias_leaf is not None:
            bias = params[self.bias_leaf].to(dtype)
        elif bias is not None:
            bias = bias.expand(len(weight), -1)
        return weight, bias

    def _drop_unused_adapters(self, unused: set[str]) -> None:
        """Maps that are not used, or not by their forward pass, get no adapter. A target that names one is refused."""
        if not unused:
            return
        ends = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in unused}))
        why = f"{type(self.network).__name__} computes without the forward pass of {ends} (as in {min(unused)})"
        if getattr(self.trainable, "target_modules", ()) not in (("auto",), ("all",)) or len(unused) == len(self.modules):
            raise UserError(f"{why}, so that an adapter would change nothing: name trainable.target_modules without {ends}")
        self.caveats.append(f"{why}, which gets no adapter")
        self.modules = {path: module for path, module in self.modules.items() if path not in unused}

    @torch.no_grad()
    def _verify(self, params: Tree, tokens: Tensor, expected: Tensor) -> None:
        """The losses of a stack must be those of each client alone; where they are not with the blocks below kept, all work."""
        what = f"{type(self.network).__name__} with trainable: {{type: {type(self.trainable).__name__}}}"

        def check() -> None:
            keep = torch.ones_like(tokens, dtype=torch.bool)
            check_losses(self.position_losses(params, tokens, keep)[0], expected, self.head.weight, what)

        try:
            check()
        except Exception:
            if self.prefix_cache is None:
                raise
            self.prefix_cache.restore_blocks()
            self.prefix_cache = None
            check()


@contextmanager
def explain_errors(network: nn.Module, trainable: Trainable) -> Iterator[None]:
    """Whatever a network cannot do is told in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")[:160]
        raise UserError(
            f"{type(network).__name__} does not work with trainable: {{type: {type(trainable).__name__}}} "
            f"({type(error).__name__}: {first}): {SUGGESTION}"
        ) from error


def replace_modules(network: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Put each module's replacement wherever the network has the module, under as many names as it has."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in replacements:
                setattr(parent, name, replacements[child])


def check_unshared(network: nn.Module) -> None:
    """Raise `UserError` if another stacked model has already taken this network: its adapters would lie under the new ones."""
    if taken := next((path for path, module in network.named_modules() if isinstance(module, (PerClientLora, PerClientModule))), None):
        raise UserError(
            f"this {type(network).__name__} already belongs to another StackedModel, which trains {taken}: load the "
            "network again, or use that StackedModel"
        )


# Continuations of many prompts at once, with a cache of keys and values, of one model that a network wears.

TokenSampler = Callable[[Tensor], Tensor]
"""Logits ``[B, V]`` -> the next token of each, ``[B, 1]``."""


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class NucleusSampler:
    """Drawn from the fewest tokens that hold ``top_p`` of the probability: Holtzman, Buys, Du, Forbes & Choi, "The Curious Case
    of Neural Text Degeneration", ICLR 2020, arXiv:1904.09751. ``generator`` is on the CPU, whatever the model is on."""

    generator: torch.Generator
    top_p: float = 0.9

    def __call__(self, logits: Tensor) -> Tensor:
        kept = TopPLogitsWarper(self.top_p)(None, logits.float().cpu())  # type: ignore[arg-type]
        return torch.multinomial(kept.softmax(1), 1, generator=self.generator).to(logits.device)


@torch.no_grad()
def generate_tokens(model: StackedModel, params: Tree, prompts: Tensor, num_tokens: int, sampler: TokenSampler = greedy) -> Tensor:
    """``num_tokens`` further tokens of each prompt, one after the other: ``[B, P] -> [B, num_tokens]``.

    ``params [1, ...]``. All prompts are equally long: nothing is padded. An end mark ends nothing.
    """
    found, seen, cache = [], prompts, None
    model.active_params.leaves, model.active_params.num_rows = params, len(prompts)
    try:
        for _ in range(num_tokens):
            out = model.network.base_model(input_ids=seen, use_cache=True, past_key_values=cache)  # type: ignore[operator]
            cache = out.past_key_values
            states = out.last_hidden_state[:, -1]
            seen = sampler(model.to_logits(states, *first_head_weights(model, params, states.dtype)))
            found.append(seen)
    finally:
        model.active_params.leaves = Tree()
    return torch.cat(found, 1) if found else prompts[:, :0]


def first_head_weights(model: StackedModel, params: Tree, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The matrix and the bias of the head of the only model."""
    weight, bias = model.head_weights(params, dtype)
    own = model.head_leaf is not None
    return (weight[0] if own else weight).to(dtype), bias[0] if own and bias is not None else bias


# How a language model represents a sequence: the mean of its last hidden states over what is not padding.


def mean_hidden_states(hidden_fn: Callable[[Tree, Tensor], Tensor], params: Tree, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """``z [C, B, H]``, and which sequences hold anything, ``[C, B]``. ``hidden_fn``: ``(params, tokens) -> [C, B, T, H]``."""
    states, keep = hidden_fn(params, batch["tokens"]), batch["keep"]
    share = keep / keep.sum(2, keepdim=True).clamp_min(1)  # [C, B, T]
    return (states * share.unsqueeze(3).to(states)).sum(2), keep.any(2)


__all__ = ["mean_hidden_states"]
