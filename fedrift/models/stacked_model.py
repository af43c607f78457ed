"""Train and evaluate the copies of C clients of a language model in one pass, and verify the result against transformers.

Before anything is trained, the network runs as transformers runs it, with the trained weights of two clients in turn, and then
for both clients at once as a stacked model. The losses must agree at every position. The transform from hidden states to
logits is measured on random hidden states that are large enough to reveal a soft cap.
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

from ..core.errors import UserError
from ..core.lazy_imports import quiet_imports
from ..core.tree import Tree
from .fused import fuse_blocks
from .head import LogitTransform, PerClientHeadLoss, frozen_head_losses, to_float32
from .prefix_cache import PrefixCache, count_frozen_blocks
from .stacked_layers import ActiveParams, PerClientLora, PerClientModule
from .trainable import Trainable, find_backbone, find_blocks

with quiet_imports():
    from transformers import TopPLogitsWarper

CHECK_CLIENTS, CHECK_ROWS, CHECK_LENGTH = 2, 2, 9
# The largest relative difference that rounding explains, of logits from equal hidden states and of losses through all blocks.
TOLERANCE = {torch.float64: (1e-9, 1e-7), torch.float32: (1e-5, 1e-4)}
COARSE_TOLERANCE = 2e-2, 5e-2
SUGGESTION = "use another model, or report this problem"


def get_tolerance(weight: Tensor) -> tuple[float, float]:
    """Return the tolerances for logits and losses of a network whose head has this matrix."""
    exact = weight.device.type == "cpu" or weight.dtype == torch.float64
    return TOLERANCE.get(weight.dtype, COARSE_TOLERANCE) if exact else COARSE_TOLERANCE


def sample_tokens(network: Any) -> Tensor:
    """Sample token ids that represent plain text, [CHECK_CLIENTS, CHECK_ROWS, CHECK_LENGTH].

    Special tokens, such as those for images, are excluded.
    """
    config = network.config.get_text_config()
    special_ids = {
        value for name, value in vars(network.config).items() if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    size = min(network.get_output_embeddings().weight.shape[0], config.vocab_size)
    plain_ids = torch.tensor([token_id for token_id in range(min(size, 1000)) if token_id not in special_ids])
    generator = torch.Generator().manual_seed(0)
    tokens = plain_ids[torch.randint(len(plain_ids), (CHECK_CLIENTS, CHECK_ROWS, CHECK_LENGTH), generator=generator)]
    return tokens.to(network.get_output_embeddings().weight.device)


def perturb_params(template: Tree) -> Tree:
    """Return trained weights for two clients, [CHECK_CLIENTS, ...], that differ slightly from ``template`` [1, ...]."""
    generator = torch.Generator().manual_seed(1)
    leaves = Tree()
    for name, leaf in template.items():
        spread = float(leaf.float().std()) if leaf.numel() > 1 else 0.0
        noise = torch.randn(CHECK_CLIENTS, *leaf.shape[1:], generator=generator)
        leaves[name] = leaf + (0.1 * (spread or 0.2) * noise).to(leaf)
    return leaves


@torch.no_grad()
def read_logits(network: Any) -> LogitTransform:
    """Measure how a network transforms its last hidden states into logits.

    Raises:
        UserError: fedrift cannot compute the same transform.
    """
    network_type = type(network).__name__
    head: Any = network.get_output_embeddings()
    if not isinstance(head, nn.Module) or getattr(head, "weight", None) is None or head.weight.ndim != 2:
        raise UserError(
            f"{network_type} has no matrix that maps hidden states to logits (get_output_embeddings), which fedrift needs: {SUGGESTION}"
        )
    tokens = sample_tokens(network)[0].clone()
    tokens[1, :-1] = tokens[0, :-1]  # two texts that differ in their last token only
    states = find_backbone(network)(input_ids=tokens, use_cache=False).last_hidden_state
    if not bool(states.isfinite().all()):
        raise UserError(
            f"{network_type} computes hidden states that are not finite: its weight files are damaged, or their numbers do not fit "
            "the data type of the run"
        )
    weight: Tensor = head.weight  # type: ignore[assignment]
    if not is_close(states[1, :-1], states[0, :-1], get_tolerance(weight)[0]):
        raise UserError(
            f"{network_type} lets a token see the tokens after it, so that it can read what it has to predict; fedrift needs a causal "
            f"language model. Set is_decoder in the model's configuration if it has this key; otherwise {SUGGESTION}"
        )
    generator = torch.Generator().manual_seed(2)
    spread = torch.tensor([[0.3, 1.0, 3.0, 10.0, 30.0] * CHECK_LENGTH] * CHECK_ROWS)[:, :CHECK_LENGTH, None]
    random_states = torch.randn(states.shape, generator=generator).to(states)
    random_states *= spread.to(states) / float((random_states @ weight.T).float().std().clamp_min(1e-6))
    captured: list[Tensor] = []
    with replace_head_input(head, random_states, captured):
        logits = network(input_ids=tokens, use_cache=False).logits
    if len(captured) != 2 or captured[0].shape != states.shape or logits.shape != captured[1].shape:
        raise UserError(f"{network_type} computes its logits in a way that fedrift does not support: {SUGGESTION}")
    tolerance, _ = get_tolerance(weight)
    input_scale = fit_scale(captured[0], states)
    plain_logits = F.linear(random_states, weight, getattr(head, "bias", None))
    if not (is_close(input_scale * states, captured[0], tolerance) and is_close(plain_logits, captured[1], tolerance)):
        raise UserError(
            f"{network_type} transforms its last hidden states before the head in a way that fedrift does not support: {SUGGESTION}"
        )
    transform = fit_logit_transform(to_float32(plain_logits), to_float32(logits), numeric_settings(network.config), tolerance)
    if transform is None or (input_scale != 1 and getattr(head, "bias", None) is not None):
        raise UserError(f"{network_type} transforms its logits in a way that fedrift does not support: {SUGGESTION}")
    return LogitTransform(snap_to_config(input_scale, numeric_settings(network.config), tolerance) * transform.scale, transform.cap)


def fit_logit_transform(plain: Tensor, logits: Tensor, config_numbers: dict[str, float], tolerance: float) -> LogitTransform | None:
    """Find the factor and the soft cap that map plain logits to the logits of the network.

    Args:
        plain: h W^T + b.
        logits: The logits of the network.
        config_numbers: The numbers in its configuration, among which a cap is searched.
        tolerance: The relative difference that rounding explains.

    Returns:
        The transform, or None if no such transform fits.
    """
    caps = [value for name, value in config_numbers.items() if "cap" in name and "logit" in name and "att" not in name and value > 0]
    for cap in (None, *caps):
        uncapped = logits if cap is None else (logits / cap).clamp(-0.9, 0.9).atanh() * cap
        is_below_cap = torch.ones_like(logits, dtype=torch.bool) if cap is None else logits.abs() < 0.9 * cap
        scale = snap_to_config(fit_scale(uncapped[is_below_cap], plain[is_below_cap]), config_numbers, tolerance)
        predicted = plain * scale if cap is None else cap * (plain * scale / cap).tanh()
        if is_close(predicted, logits, tolerance):
            return LogitTransform(scale, cap)
    return None


def fit_scale(target: Tensor, reference: Tensor) -> float:
    """Return the factor by which ``reference`` best fits ``target`` (least squares), or 1 if ``reference`` is zero."""
    norm = reference.double().square().sum()
    return float((target.double() * reference.double()).sum() / norm) if norm > 0 else 1.0


def snap_to_config(measured: float, config_numbers: dict[str, float], tolerance: float) -> float:
    """Remove rounding errors from a measured factor.

    The result is the closest of 1 and the powers 1, -1 and -1/2 of the numbers in the configuration, or the measured factor itself if
    none is within the tolerance.
    """
    candidates = [1.0, *(power for value in config_numbers.values() if value for power in (value, 1 / value, abs(value) ** -0.5))]
    best = min(candidates, key=lambda value: abs(measured - value))
    return best if abs(measured - best) <= tolerance * abs(best) else measured


def numeric_settings(config: Any) -> dict[str, float]:
    """Return the numbers in a configuration by name."""
    return {
        name: float(value)
        for part in (config, config.get_text_config())
        for name, value in vars(part).items()
        if isinstance(value, Real) and not isinstance(value, bool)
    }


def is_close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether two tensors differ by at most ``tolerance`` times the largest expected value in the row."""
    size = expected.abs().amax(-1, keepdim=True).clamp_min(1e-6)
    return bool(((actual - expected).abs() <= tolerance * size).all())


@contextmanager
def replace_head_input(head: nn.Module, hidden: Tensor, captured: list[Tensor]) -> Iterator[None]:
    """Replace the input of the head by ``hidden`` in this context.

    ``captured`` receives the original input of the head, and then its output for ``hidden``.
    """

    def replace_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        captured.append(args[0])
        return (hidden.to(args[0].dtype).view(args[0].shape) if args[0].numel() == hidden.numel() else args[0],)

    hooks = [
        head.register_forward_pre_hook(replace_input),
        head.register_forward_hook(lambda module, args, output: captured.append(output)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def reference_losses(network: Any, modules: dict[str, nn.Module], leaves: Tree, scale: float, tokens: Tensor) -> tuple[Tensor, set[str]]:
    """Compute the losses of one client at every position with plain transformers.

    Adapters are added to the outputs of their maps by hooks; all other leaves replace the weights of the network.

    Args:
        network: The unmodified network.
        modules: The trained modules by path.
        leaves: The client's trained weights, without a leading client dimension.
        scale: The factor of the adapters.
        tokens: Token ids, [B, T].

    Returns:
        The losses [B, T-1], and the paths of maps whose adapter had no effect. The network does not use such a map, or it computes
        with its weight without calling it.
    """
    unused = {path for path in modules if f"{path}.A" in leaves and "expert" not in path}  # the router may select an expert for no token

    def adapter_hook(path: str) -> Any:
        def forward(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            unused.discard(path)
            down, up = leaves[f"{path}.A"], leaves[f"{path}.B"]
            return output + scale * (args[0] @ down.T.to(output.dtype)) @ up.T.to(output.dtype)

        return forward

    hooks = [module.register_forward_hook(adapter_hook(path)) for path, module in modules.items() if f"{path}.A" in leaves]
    weights = {name: leaf for name, leaf in leaves.items() if name.rsplit(".", 1)[0] not in modules or not hooks}
    weights = {name: leaf.to(network.get_parameter(name)) for name, leaf in weights.items()}
    try:
        output = functional_call(network, weights, (), {"input_ids": tokens, "use_cache": False})
    finally:
        for hook in hooks:
            hook.remove()
    logits = to_float32(output.logits[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1), unused


def check_losses(actual: Tensor, expected: Tensor, head_weight: Tensor, description: str) -> None:
    """Check that the losses of a stacked model agree with those of plain transformers.

    Args:
        actual: The losses of the stacked model, [C, B, T-1].
        expected: The losses of plain transformers, [C, B, T-1].
        head_weight: The matrix of the head, which determines the tolerance.
        description: The model, for messages.

    Raises:
        UserError: The losses differ by more than the tolerance.
    """
    _, tolerance = get_tolerance(head_weight)
    difference = (actual - expected.to(actual)).abs()
    if tolerance == COARSE_TOLERANCE[1]:  # in low precision, single positions can differ strongly
        difference, expected = difference.mean(), expected.mean()
    if not bool((difference <= tolerance * expected.abs().clamp_min(1).to(actual)).all()):
        raise UserError(
            f"{description} computes different losses for stacked clients than for single clients "
            f"(by up to {float(difference.max()):.1e} nats): {SUGGESTION}"
        )


class StackedModel:
    """A frozen causal language model whose trained weights are passed with every call, stacked along C clients.

    It is a ``LossFn``: ``model(params [C, ...], batch)`` returns the mean loss of each client, [C], in nats per token.
    ``batch["tokens"] [C, B, T]`` holds token ids, and ``batch["loss_mask"] [C, B, T]`` is False on padding. The label of a position is the
    next token, so that the first token of a block is context only.

    Args:
        network: The network, which this object modifies and keeps.
        trainable: Selects the trained modules.
        fused: Whether known blocks use an equivalent implementation with fewer passes over memory. Otherwise only the wrapped
            modules and the head differ from transformers.
        use_prefix_cache: Whether the outputs of the blocks below everything that is trained are cached per sequence. None
            enables the cache on the CPU. The cache has no effect if there are no such blocks.

    Raises:
        UserError: The network is not supported, or its losses differ from those of plain transformers.

    Example:
        >>> model = StackedModel(load_model("pocket", cache_dir=cache_dir).network, Lora(r=8))
        >>> params = model.init_params(seed=0).map(lambda leaf: leaf.expand(3, *leaf.shape[1:]))  # three clients
        >>> losses = model(params, {"tokens": tokens, "loss_mask": torch.ones_like(tokens, dtype=torch.bool)})  # [3]
    """

    def __init__(self, network: nn.Module, trainable: Trainable, fused: bool = True, use_prefix_cache: bool | None = None) -> None:
        check_unshared(network)
        network.eval().requires_grad_(False)
        self.network, self.trainable = network, trainable
        self.active_params = ActiveParams()
        self.modules = trainable.select_modules(network)
        self.warnings = trainable.warnings(network)
        self.head = network.get_output_embeddings()  # type: ignore[operator]
        with explain_errors(network, trainable):
            self.to_logits = read_logits(network)
            tokens, params, expected = sample_tokens(network), perturb_params(self.init_params()), list[Tensor]()
            for client in range(len(tokens)):
                client_params = params.map(lambda leaf: leaf[client])  # noqa: B023
                losses, unused = reference_losses(network, self.modules, client_params, getattr(trainable, "scale", 1.0), tokens[client])
                self._drop_unused_adapters(unused)
                params = Tree({name: leaf for name, leaf in params.items() if name.rsplit(".", 1)[0] not in unused})
                expected.append(losses)
        leaves = self.init_params().keys()
        names = {
            id(leaf): f"{path}.{name}"
            for path, module in self.modules.items()
            for name, leaf in module.named_parameters()
            if f"{path}.{name}" in leaves
        }
        self.head_leaf = names.get(id(self.head.weight))  # a tied head uses the leaf of the embedding
        self.bias_leaf = names.get(id(getattr(self.head, "bias", None)))
        replace_modules(network, {module: trainable.wrap(module, path, self.active_params) for path, module in self.modules.items()})
        if fused:
            fuse_blocks(network, self.active_params)
        num_frozen = count_frozen_blocks(network, self.modules)
        use_cache = self.device.type == "cpu" if use_prefix_cache is None else use_prefix_cache
        self.prefix_cache = PrefixCache(network, num_frozen) if use_cache and num_frozen else None
        with explain_errors(network, trainable):
            self._verify(params, tokens, torch.stack(expected))
            check_gradients(self, params, tokens)

    def compile(self) -> None:
        """Compile every block, once per input shape; this takes about a minute and pays off in long runs."""
        for block in find_blocks(self.network)[1]:
            block.compile()

    def init_params(self, seed: int = 0) -> Tree:
        """Return the initial trained weights, [1, ...]; only those of adapters depend on the seed."""
        return self.trainable.init_params(self.modules, seed)

    @property
    def device(self) -> torch.device:
        """Return the device of the network."""
        return self.head.weight.device  # type: ignore[no-any-return]

    def __call__(self, params: Tree, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss of each client, [C], in nats per token."""
        total, count = self.sequence_losses(params, batch["tokens"], batch["loss_mask"])
        return total.sum(1) / count.sum(1).clamp_min(1)

    def sequence_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of every sequence.

        Args:
            params: The trained weights, [C, ...].
            tokens: Token ids, [C, B, T].
            mask: False on padding, [C, B, T].

        Returns:
            The summed losses in nats and the numbers of predicted tokens, both [C, B].
        """
        losses, counted = self.position_losses(params, tokens, mask)
        return losses.sum(2), counted.sum(2)

    def position_losses(self, params: Tree, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of every token after the first.

        Args:
            params: The trained weights, [C, ...].
            tokens: Token ids, [C, B, T].
            mask: False on padding, [C, B, T].

        Returns:
            The losses in nats (0 on padding) and whether each token is predicted, both [C, B, T-1].
        """
        hidden = self.hidden_states(params, tokens)[:, :, :-1]  # [C, B, T-1, H]
        target, counted = tokens[:, :, 1:], mask[:, :, 1:]
        weight, bias = self.head_weights(params, hidden.dtype)
        if self.head_leaf is not None:
            losses = PerClientHeadLoss.apply(hidden.flatten(1, 2), weight, target.flatten(1), bias, self.to_logits)
            losses = losses.view(target.shape) * counted
        elif bool(counted.all()):
            losses = frozen_head_losses(hidden.flatten(0, 2), weight, target.flatten(), bias, self.to_logits).view(target.shape)
        else:
            kept_losses = frozen_head_losses(hidden[counted], weight, target[counted], bias, self.to_logits)
            losses = kept_losses.new_zeros(target.shape).masked_scatter(counted, kept_losses)
        return losses, counted

    def hidden_states(self, params: Tree, tokens: Tensor, bypass_cache: bool = False) -> Tensor:
        """Compute the last hidden states of every position.

        Args:
            params: The trained weights, [C, ...].
            tokens: Token ids, [C, B, T].
            bypass_cache: Whether to run all blocks even if there is a prefix cache.

        Returns:
            The states, [C, B, T, H].
        """
        rows = tokens.flatten(0, 1)
        cached_prefix = nullcontext() if bypass_cache or self.prefix_cache is None else self.prefix_cache.substitute(rows)
        self.active_params.leaves, self.active_params.num_rows = params, len(rows)
        try:
            with cached_prefix:
                states = find_backbone(self.network)(input_ids=rows, use_cache=False).last_hidden_state
        finally:
            self.active_params.leaves = Tree()
        return states.view(*tokens.shape, -1)  # type: ignore[no-any-return]

    def head_weights(self, params: Tree, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return the matrix and the bias of the head.

        Args:
            params: The trained weights, [C, ...].
            dtype: The dtype of trained weights in the result.

        Returns:
            Matrix and bias of each client, [C, V, H] and [C, V], if the head is trained; otherwise the frozen ones, [V, H] and [V].
            The bias is None if the head has none.
        """
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
        """Remove adapters that would have no effect and record a warning.

        Raises:
            UserError: The target modules were named explicitly, or no adapter would remain.
        """
        if not unused:
            return
        ends = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in unused}))
        reason = f"{type(self.network).__name__} does not call the forward pass of {ends} (for example {min(unused)})"
        if getattr(self.trainable, "target_modules", ()) not in (("auto",), ("all",)) or len(unused) == len(self.modules):
            raise UserError(f"{reason}, so that an adapter would have no effect: remove {ends} from trainable.target_modules")
        self.warnings.append(f"{reason}, so that it gets no adapter")
        self.modules = {path: module for path, module in self.modules.items() if path not in unused}

    @torch.no_grad()
    def _verify(self, params: Tree, tokens: Tensor, expected: Tensor) -> None:
        """Check the losses of stacked clients against the reference; disable the prefix cache if only it causes a difference."""
        description = f"{type(self.network).__name__} with trainable: {{type: {type(self.trainable).__name__}}}"

        def check() -> None:
            mask = torch.ones_like(tokens, dtype=torch.bool)
            check_losses(self.position_losses(params, tokens, mask)[0], expected, self.head.weight, description)

        try:
            check()
        except Exception:
            if self.prefix_cache is None:
                raise
            self.prefix_cache.restore_blocks()
            self.prefix_cache = None
            check()


def check_gradients(model: StackedModel, params: Tree, tokens: Tensor) -> None:
    """Check that the loss has a gradient with respect to the trained weights, on one short sequence per client.

    Raises:
        UserError: The loss does not depend on them, for example because they belong to the image encoder of the network.
    """
    leaves = Tree({name: leaf.detach().clone().requires_grad_() for name, leaf in params.items()})
    tokens = tokens[:, :1]
    with torch.enable_grad():
        loss = model(leaves, {"tokens": tokens, "loss_mask": torch.ones_like(tokens, dtype=torch.bool)}).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if loss.requires_grad else ()
    if all(gradient is None for gradient in gradients):
        raise UserError(
            f"the loss of {type(model.network).__name__} does not depend on the weights that trainable: "
            f"{{type: {type(model.trainable).__name__}}} selects (for example {next(iter(leaves))}): {SUGGESTION}"
        )


@contextmanager
def explain_errors(network: nn.Module, trainable: Trainable) -> Iterator[None]:
    """Convert any error that a network raises to a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = next(iter(str(error).strip().splitlines()), "")[:160]
        raise UserError(
            f"{type(network).__name__} does not work with trainable: {{type: {type(trainable).__name__}}} "
            f"({type(error).__name__}: {message}): {SUGGESTION}"
        ) from error


def replace_modules(network: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Replace modules wherever the network contains them, under all their names."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in replacements:
                setattr(parent, name, replacements[child])


def check_unshared(network: nn.Module) -> None:
    """Check that no other `StackedModel` uses the network, because its adapters would lie below the new ones.

    Raises:
        UserError: Another `StackedModel` has already wrapped modules of the network.
    """
    if wrapped := next((path for path, module in network.named_modules() if isinstance(module, (PerClientLora, PerClientModule))), None):
        raise UserError(
            f"this {type(network).__name__} is already in use by another StackedModel, which trains {wrapped}: load the "
            "network again, or use that StackedModel"
        )


TokenSampler = Callable[[Tensor], Tensor]
"""Maps logits [B, V] to the next token of each sequence, [B, 1]."""


def greedy(logits: Tensor) -> Tensor:
    """Return the most probable token of each sequence, [B, V] -> [B, 1]."""
    return logits.argmax(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class NucleusSampler:
    """Sample from the smallest set of tokens whose total probability is at least ``top_p``.

    Holtzman, Buys, Du, Forbes & Choi, "The Curious Case of Neural Text Degeneration", ICLR 2020, arXiv:1904.09751.
    """

    generator: torch.Generator  # the random generator, on the CPU for models on any device
    top_p: float = 0.9  # the probability

    def __call__(self, logits: Tensor) -> Tensor:
        """Sample the next token of each sequence, [B, V] -> [B, 1]."""
        filtered = TopPLogitsWarper(self.top_p)(None, logits.float().cpu())  # type: ignore[arg-type]
        return torch.multinomial(filtered.softmax(1), 1, generator=self.generator).to(logits.device)


@torch.no_grad()
def generate_tokens(model: StackedModel, params: Tree, prompts: Tensor, num_tokens: int, sampler: TokenSampler = greedy) -> Tensor:
    """Generate continuations of prompts with a key-value cache.

    An end-of-sequence token does not end a continuation.

    Args:
        model: The stacked model.
        params: The trained weights of one model, [1, ...].
        prompts: Prompts of equal length, [B, P].
        num_tokens: The number of tokens to generate per prompt.
        sampler: Selects the next tokens.

    Returns:
        The continuations, [B, num_tokens].
    """
    generated, inputs, cache = [], prompts, None
    model.active_params.leaves, model.active_params.num_rows = params, len(prompts)
    try:
        for _ in range(num_tokens):
            output = find_backbone(model.network)(input_ids=inputs, use_cache=True, past_key_values=cache)
            cache = output.past_key_values
            states = output.last_hidden_state[:, -1]
            inputs = sampler(model.to_logits(states, *first_head_weights(model, params, states.dtype)))
            generated.append(inputs)
    finally:
        model.active_params.leaves = Tree()
    return torch.cat(generated, 1) if generated else prompts[:, :0]


def first_head_weights(model: StackedModel, params: Tree, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the matrix [V, H] and the bias [V] of the head of the first model in ``params``."""
    weight, bias = model.head_weights(params, dtype)
    is_trained = model.head_leaf is not None
    return (weight[0] if is_trained else weight).to(dtype), bias[0] if is_trained and bias is not None else bias


def mean_hidden_states(hidden_fn: Callable[[Tree, Tensor], Tensor], params: Tree, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Average the last hidden states of each sequence over its tokens, without padding.

    Args:
        hidden_fn: Computes hidden states: (params, tokens) -> [C, B, T, H].
        params: The trained weights, [C, ...].
        batch: The batch, with ``tokens`` and ``loss_mask`` [C, B, T].

    Returns:
        The means [C, B, H], and whether each sequence has any token, [C, B].
    """
    states, mask = hidden_fn(params, batch["tokens"]), batch["loss_mask"]
    share = mask / mask.sum(2, keepdim=True).clamp_min(1)  # [C, B, T]
    return (states * share.unsqueeze(3).to(states)).sum(2), mask.any(2)
