"""What a network does is compared with what fedrift makes of it, before anything is trained.

A network is run as transformers runs it, with the trained parts of two clients in turn, and then for both clients at once as a
stacked model. Their losses must agree at every position. How hidden states become logits is measured on random hidden
states, large enough that a soft cap is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import UserError
from ..tree import Tree
from .head import Logits, widened

CLIENTS, ROWS, LENGTH = 2, 2, 9
# Relative difference that rounding may make: of logits from the same hidden states, and of losses through all blocks.
ROUNDING = {torch.float64: (1e-9, 1e-7), torch.float32: (1e-5, 1e-4)}
COARSE = 2e-2, 5e-2
WAY_OUT = "train another model, or report this one"


def rounding(weight: Tensor) -> tuple[float, float]:
    """What `ROUNDING` allows a network whose head has this matrix."""
    return ROUNDING.get(weight.dtype, COARSE) if weight.device.type == "cpu" or weight.dtype == torch.float64 else COARSE


def sample_tokens(network: Any) -> Tensor:
    """A few tokens ``[CLIENTS, ROWS, LENGTH]`` that stand for plain text: no mark of an image or the like among them."""
    config = network.config.get_text_config()
    marks = {value for name, value in vars(network.config).items() if name.endswith(("token_id", "token_index"))
             and isinstance(value, int)}
    size = min(network.get_output_embeddings().weight.shape[0], config.vocab_size)
    plain = torch.tensor([number for number in range(min(size, 1000)) if number not in marks])
    draw = torch.Generator().manual_seed(0)
    chosen = plain[torch.randint(len(plain), (CLIENTS, ROWS, LENGTH), generator=draw)]
    return chosen.to(network.get_output_embeddings().weight.device)


def moved(template: Tree) -> Tree:
    """The trained parts ``[1, ...]`` for two clients, each leaf a little away from where it begins."""
    draw = torch.Generator().manual_seed(1)
    leaves = Tree()
    for name, leaf in template.items():
        spread = float(leaf.float().std()) if leaf.numel() > 1 else 0.0
        noise = torch.randn(CLIENTS, *leaf.shape[1:], generator=draw)
        leaves[name] = leaf + (0.1 * (spread or 0.2) * noise).to(leaf)
    return leaves


@torch.no_grad()
def read_logits(network: Any) -> Logits:
    """How a network makes logits of the last hidden states. Raises `UserError` where fedrift cannot do the same."""
    kind = type(network).__name__
    head: Any = network.get_output_embeddings()
    if not isinstance(head, nn.Module) or getattr(head, "weight", None) is None or head.weight.ndim != 2:
        raise UserError(f"{kind} has no matrix that makes logits of hidden states (get_output_embeddings), which fedrift trains "
                        f"by: {WAY_OUT}")
    tokens = sample_tokens(network)[0]
    states = network.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    weight: Tensor = head.weight  # type: ignore[assignment]
    draw = torch.Generator().manual_seed(2)
    spread = torch.tensor([[0.3, 1.0, 3.0, 10.0, 30.0] * LENGTH] * ROWS)[:, :LENGTH, None]
    given = torch.randn(states.shape, generator=draw).to(states)
    given *= spread.to(states) / float((given @ weight.T).float().std().clamp_min(1e-6))
    seen: list[Tensor] = []
    with replaced_input(head, given, seen):
        logits = network(input_ids=tokens, use_cache=False).logits
    if len(seen) != 2 or seen[0].shape != states.shape or logits.shape != seen[1].shape:
        raise UserError(f"{kind} makes its logits in a way that fedrift does not know: {WAY_OUT}")
    exact, _ = rounding(weight)
    before = factor(seen[0], states)
    plain = F.linear(given, weight, getattr(head, "bias", None))
    if not (is_near(before * states, seen[0], exact) and is_near(plain, seen[1], exact)):
        raise UserError(f"{kind} changes its last hidden states before they become logits in a way that fedrift does not know: "
                        f"{WAY_OUT}")
    found = after_head(widened(plain), widened(logits), settings(network.config), exact)
    if found is None or (before != 1 and getattr(head, "bias", None) is not None):
        raise UserError(f"{kind} changes its logits in a way that fedrift does not know: {WAY_OUT}")
    return Logits(known_value(before, settings(network.config), exact) * found.scale, found.cap)


def after_head(plain: Tensor, logits: Tensor, said: dict[str, float], exact: float) -> Logits | None:
    """The factor and the soft cap that make ``logits`` of ``plain = h W^T + b``; None if it is neither."""
    caps = [value for name, value in said.items() if "cap" in name and "logit" in name and "att" not in name and value > 0]
    for cap in (None, *caps):
        inner = logits if cap is None else (logits / cap).clamp(-0.9, 0.9).atanh() * cap
        use = torch.ones_like(logits, dtype=torch.bool) if cap is None else logits.abs() < 0.9 * cap
        scale = known_value(factor(inner[use], plain[use]), said, exact)
        made = plain * scale if cap is None else cap * (plain * scale / cap).tanh()
        if is_near(made, logits, exact):
            return Logits(scale, cap)
    return None


def factor(much: Tensor, little: Tensor) -> float:
    """The number that ``little`` is multiplied by to be nearest to ``much``; 1 where both are zero."""
    below = little.double().square().sum()
    return float((much.double() * little.double()).sum() / below) if below > 0 else 1.0


def known_value(measured: float, said: dict[str, float], exact: float) -> float:
    """A measured factor without rounding: 1, or the number of the configuration, or its inverse, that it is."""
    candidates = [1.0, *(power for value in said.values() if value for power in (value, 1 / value, abs(value) ** -0.5))]
    best = min(candidates, key=lambda value: abs(measured - value))
    return best if abs(measured - best) <= exact * abs(best) else measured


def settings(config: Any) -> dict[str, float]:
    """The numbers of a configuration by name."""
    return {name: float(value) for part in (config, config.get_text_config()) for name, value in vars(part).items()
            if isinstance(value, Real) and not isinstance(value, bool)}


def is_near(ours: Tensor, theirs: Tensor, relative: float) -> bool:
    """Whether two tensors differ by no more than a share of the largest number in a row."""
    size = theirs.abs().amax(-1, keepdim=True).clamp_min(1e-6)
    return bool(((ours - theirs).abs() <= relative * size).all())


@contextmanager
def replaced_input(head: nn.Module, given: Tensor, seen: list[Tensor]) -> Iterator[None]:
    """While the network works, its head reads ``given``; ``seen`` gets what it was to read and what it made of ``given``."""
    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0])
        return (given.to(args[0].dtype).view(args[0].shape) if args[0].numel() == given.numel() else args[0],)

    hooks = [head.register_forward_pre_hook(before),
             head.register_forward_hook(lambda module, args, out: seen.append(out))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def plain_losses(network: Any, modules: dict[str, nn.Module], leaves: Tree, scale: float,
                 tokens: Tensor) -> tuple[Tensor, set[str]]:
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
    logits = widened(out.logits[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1), idle


def check_losses(ours: Tensor, theirs: Tensor, weight: Tensor, what: str) -> None:
    """Raise `UserError` where losses ``[C, B, T-1]`` are not those of plain transformers; ``weight`` is the head's."""
    _, through = rounding(weight)
    apart = (ours - theirs.to(ours)).abs()
    if through == COARSE[1]:  # in few bits single positions may be far off
        apart, theirs = apart.mean(), theirs.mean()
    if not bool((apart <= through * theirs.abs().clamp_min(1).to(ours)).all()):
        raise UserError(f"{what} computes other losses in a stack of clients than alone (by up to "
                        f"{float(apart.max()):.1e} nats): {WAY_OUT}")
