"""Aggregation of LoRA adapters that are saved in PEFT's format: one folder per client in, one folder out.

Separate means of B and A are not the mean of the products B A. With the weights p_k and the means B̄ and Ā the difference is
sum_k p_k B_k A_k - B̄ Ā = sum_k p_k (B_k - B̄)(A_k - Ā). The methods differ in how they treat it:

- ``fedavg``: the means of A and B; the difference is lost (FedIT, arXiv:2305.05644);
- ``ffa``: all clients share one frozen A, so the mean of B is exact (FFA-LoRA, arXiv:2403.12313);
- ``flexlora``: the best adapter of the same rank, by singular values (FlexLoRA, arXiv:2402.11505);
- ``fedex``: the means of A and B, and the difference beside them (FedEx-LoRA, arXiv:2410.09432);
- ``flora``: all clients' factors stacked, which is exact (FLoRA, arXiv:2409.05976).

No ``[O, I]`` matrix is built, so an adapter of a large model takes no more memory than the clients' adapters together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .algorithms.aggregators import FFALoRA, FlexLoRA, Mean
from .algorithms.aggregators.base import Aggregator
from .algorithms.aggregators.lora import weighted_products
from .core.errors import UserError, quote_value, unknown_name_error
from .core.tree import Tree, adapter_modules, to_float64
from .core.types import ClientStateStore, CohortUpdate, FederatedState, RoundResult, ServerState, single_cluster
from .probes.lora import aggregation_error, squared_norm

Method = Literal["fedavg", "ffa", "flora", "fedex", "flexlora"]
METHODS: tuple[Method, ...] = get_args(Method)
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
SUFFIXES = {"A": ".lora_A.weight", "B": ".lora_B.weight"}
# What must be equal in all folders; the value that PEFT takes where an older file lacks the key.
COMPARED_KEYS: dict[str, Any] = {
    "base_model_name_or_path": None,
    "revision": None,
    "r": 8,
    "lora_alpha": 8,
    "use_rslora": False,
    "target_modules": None,
    "fan_in_fan_out": False,
}
# What an adapter may not have: the key, the only value that is allowed, and what the key means.
UNSUPPORTED_KEYS: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_dora": ((False, None), "weight-decomposed adapters (DoRA)"),
    "bias": (("none", None), "trained biases"),
    "lora_bias": ((False, None), "biases of B"),
    "modules_to_save": (([], None), "whole trained modules"),
    "rank_pattern": (({}, None), "ranks that differ from module to module"),
    "alpha_pattern": (({}, None), "scales that differ from module to module"),
    "target_parameters": (([], None), "adapters of parameters, whose factors hold several matrices,"),
    "use_bdlora": ((False, None), "block-diagonal factors (BD-LoRA), which the file holds in another shape,"),
}
# Values of init_lora_weights with which PEFT changes the base weights when it loads a folder, by a part of rank r.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
RANDOM_INITS = "pissa_niter_"  # start of the values with which this part is drawn at random, so that each process has another base
EXACT = 1e-6  # relative distance below which a mean of products is exact but for rounding


@dataclass(frozen=True, eq=False)
class AggregatedAdapter:
    """The adapter that ``aggregate_adapters`` made, and what averaging cost.

    Args:
        method: The aggregation method.
        weights: The weight of each folder, normalized to a sum of 1.
        config: The content of ``adapter_config.json``.
        state_dict: The tensors of ``adapter_model.safetensors`` by their names there.
        error: The aggregation error of separate means over all modules: the Frobenius norm of the mean of the products minus the
            product of the means, divided by that of the mean of the products.
        error_by_module: The same for each module.
        remaining_error: The same distance for the tensors of this adapter in place of the separate means. Where the method is exact,
            it is the rounding to the data type of the files.
        folder: Where the adapter was written; None if it was not.

    Example:
        >>> adapter = fedrift.aggregate_adapters([run.folder / "model", baseline.folder / "model"], "fedavg")
        >>> adapter.method, adapter.rank
        ('fedavg', 8)
    """

    method: Method
    weights: tuple[float, ...]
    config: dict[str, Any]
    state_dict: dict[str, Tensor]
    error: float
    error_by_module: dict[str, float]
    remaining_error: float
    folder: Path | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the adapter is the mean of the clients' products, but for rounding as that of float32."""
        return self.remaining_error < EXACT

    @property
    def rank(self) -> int:
        """The rank of the adapter, ``r`` of its configuration."""
        return int(self.config["r"])


@dataclass(frozen=True, eq=False)
class SavedAdapter:
    """One folder that PEFT wrote. ``factors``: ``<module>.A [R, I]`` and ``<module>.B [O, R]``; ``prefixes``: as the file has them."""

    folder: Path
    config: dict[str, Any]
    factors: Tree
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)


def aggregate_adapters(
    folders: Sequence[str | PathLike[str]],
    method: Method = "fedavg",
    weights: Sequence[float] | None = None,
    output: str | PathLike[str] | None = None,
) -> AggregatedAdapter:
    """Aggregate LoRA adapters that PEFT saved, one folder per client, into one adapter that PEFT loads.

    Args:
        folders: The clients' folders, each with ``adapter_config.json`` and ``adapter_model.safetensors``.
        method: ``fedavg``, ``ffa``, ``flexlora``, ``fedex`` or ``flora``. The rank stays the same with the first three. With the other
            two it is the number of clients times as large, where ``flora`` leaves out clients of weight 0; in the file of ``fedex`` the
            first ``r`` ranks are the means of A and B.
        weights: What each client counts, for example its number of training tokens. Default: all alike.
        output: The folder to write. Default: nothing is written.

    Returns:
        The adapter, and the aggregation error of separate means, over all modules and for each.

    Raises:
        UserError: A folder cannot be read; the adapters differ in base model, rank, scale or target modules; they have something beside
            LoRA factors; the method does not fit them; or the output folder is not empty.

    Example:
        >>> folders = [run.folder / "model", baseline.folder / "model"]
        >>> adapter = fedrift.aggregate_adapters(folders, "fedex", output=folder / "mean")
        >>> adapter.is_exact, adapter.rank
        (True, 16)
    """
    if method not in METHODS:
        raise unknown_name_error("aggregation method", str(method), METHODS)
    if isinstance(folders, (str, PathLike)) or not folders:
        raise UserError("give the folders of the adapters as a list of at least one")
    adapters = [read_adapter(Path(folder)) for folder in folders]
    shares = normalize_weights(weights, len(adapters))
    for other in adapters[1:]:
        check_alike(adapters[0], other)
    check_rank_can_change(adapters[0], method)
    target = None if output is None else check_output(Path(output))
    result = make_round(adapters, shares, method)
    dtypes = adapters[0].dtypes
    factors = Tree({name: leaf.to(dtypes[name]) for name, leaf in FACTORIES[method](result).items()})
    aggregated = AggregatedAdapter(
        method,
        shares,
        scale_rank(adapters[0].config, rank_factor(adapters[0].factors, factors)),
        to_state_dict(factors),
        read_error(result),
        errors_by_module(result),
        measure_distance(result, factors),
        target,
    )
    if target is not None:
        write_adapter(target, aggregated)
    return aggregated


# Reading folders, and refusing what cannot be aggregated.


def read_adapter(folder: Path) -> SavedAdapter:
    """Read one folder that PEFT wrote.

    Raises:
        UserError: There is no such adapter, or it has something beside the factors of LoRA.
    """
    config = read_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        hint = "; save it with safe_serialization=True" if (folder / "adapter_model.bin").exists() else ""
        raise UserError(f"{folder} has no {WEIGHTS_FILE}{hint}")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    factors, dtypes = Tree(), {}
    for name, leaf in tensors.items():
        kind = next((kind for kind, suffix in SUFFIXES.items() if name.endswith(suffix)), "")
        if not kind or leaf.ndim != 2 or not leaf.is_floating_point():
            dtype = "" if leaf.is_floating_point() else f" of {str(leaf.dtype).removeprefix('torch.')}"
            raise UserError(f"{path} holds {name} {list(leaf.shape)}{dtype}, and only LoRA factors of linear layers can be aggregated")
        module = name.removesuffix(SUFFIXES[kind])
        factors[f"{module}.{kind}"] = leaf if leaf.dtype == torch.float64 else leaf.float()
        dtypes[f"{module}.{kind}"] = leaf.dtype
    if len(factors) != 2 * len(adapter_modules(factors.keys())) or not factors:
        raise UserError(f"{path} does not hold a pair of A and B for each module")
    for name, leaf in factors.items():
        if leaf.shape[name.endswith(".B")] != config["r"]:
            raise UserError(
                f"{path} holds {name} {list(leaf.shape)}, but r is {quote_value(config['r'])} in {CONFIG_FILE}, so that PEFT does not load "
                "it: save the adapter again"
            )
    if not bool(torch.stack([leaf.isfinite().all() for leaf in factors.values()]).all()):
        raise UserError(f"{path} holds numbers that are not finite: leave this client out")
    return SavedAdapter(folder, config, factors, dtypes)


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``adapter_config.json``, and refuse kinds of adapters that are not plain LoRA."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(f"{path} cannot be read: {reason}; {folder} must be a folder that PEFT saved") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise UserError(f"{path} is of the type {quote_value(kind)}, and only LORA adapters can be aggregated")
    for key, (allowed, meaning) in UNSUPPORTED_KEYS.items():
        if config.get(key) not in allowed:
            raise UserError(f"{path} has {key}={quote_value(config[key])}, and {meaning} cannot be aggregated")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"{path} has r={quote_value(rank)}, and the rank of a LoRA adapter is a whole number of at least 1")
    if alpha is None or not is_number(alpha) or not alpha > 0:
        raise UserError(f"{path} has lora_alpha={quote_value(alpha)}, and the scale of a LoRA adapter is a finite number above 0")
    return config


def base_changing_init(adapter: SavedAdapter) -> str:
    """The ``init_lora_weights`` of an adapter if PEFT changes the base weights by it, otherwise ""."""
    init = str(adapter.config.get("init_lora_weights")).lower()
    return init if init.startswith(BASE_CHANGING_INITS) else ""


def check_rank_can_change(adapter: SavedAdapter, method: Method) -> None:
    """Raise `UserError` if a method writes another rank, and PEFT would take another part of the base weights away for it."""
    init = base_changing_init(adapter)
    if init and method in ("flora", "fedex"):
        raise UserError(
            f"{method} writes adapters of another rank, and with init_lora_weights={init!r} PEFT changes the base weights by a part of "
            "the adapter's rank when it loads a folder: take fedavg, ffa or flexlora, or save the clients' adapters as plain LoRA with "
            "path_initial_model_for_weight_conversion"
        )


def check_alike(first: SavedAdapter, other: SavedAdapter) -> None:
    """Raise `UserError` unless two adapters are of one base model, rank, scale, target modules and shapes."""
    if base_changing_init(first).startswith(RANDOM_INITS):
        raise UserError(
            f"{first.folder} has init_lora_weights={base_changing_init(first)!r}, with which PEFT changes the base weights by a part that "
            "it draws at random in each process: the clients' adapters are of different base weights. Use with 'pissa', "
            "or save the clients' adapters as plain LoRA with path_initial_model_for_weight_conversion"
        )
    if base_changing_init(first) != base_changing_init(other):
        mine, theirs = (each.config.get("init_lora_weights") for each in (first, other))
        raise UserError(
            f"the adapters differ in init_lora_weights: {quote_value(mine)} in {first.folder} and {quote_value(theirs)} in {other.folder}, "
            "and PEFT changes the base weights by it: only adapters of one base can be aggregated"
        )
    for key, default in COMPARED_KEYS.items():
        mine, theirs = (
            sorted(value) if isinstance(value, list) else value for value in (each.config.get(key, default) for each in (first, other))
        )
        if mine != theirs:
            raise UserError(
                f"the adapters differ in {key}: {quote_value(mine)} in {first.folder} and {quote_value(theirs)} in {other.folder}; "
                "only adapters of one base model and one LoRA configuration can be aggregated"
            )
    odd = sorted(first.factors.keys() ^ other.factors.keys())
    if odd:
        raise UserError(f"the adapters have different modules: {odd[0]} is only in one of {first.folder} and {other.folder}")
    for name, leaf in first.factors.items():
        if leaf.shape != other.factors[name].shape:
            raise UserError(
                f"{name} is {list(leaf.shape)} in {first.folder} and {list(other.factors[name].shape)} in {other.folder}: "
                "the base models or ranks differ"
            )


def normalize_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The weights of ``count`` adapters with a sum of 1; equal ones by default."""
    given: list[Any] = [1.0] * count if weights is None else list(weights)
    if len(given) != count:
        raise UserError(f"{len(given)} weights for {count} adapters: give one weight per folder, in the same order")
    if not all(is_number(weight) and weight >= 0 for weight in given) or not any(given):
        raise UserError(f"the weights are {quote_value(given)}: all must be finite and at least 0, and one must be above 0")
    numbers = [float(weight) for weight in given]
    if math.isinf(sum(numbers)):
        numbers = [number / len(numbers) for number in numbers]
    return tuple(number / sum(numbers) for number in numbers)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number that is no truth value and within the range of floats."""
    if isinstance(value, (bool, str)):
        return False
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def check_output(folder: Path) -> Path:
    """Refuse a folder that holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: name another folder, or remove it first")
    return folder


# Aggregating: the adapters as the updates of one round of a server whose factors are zero.


def make_round(adapters: Sequence[SavedAdapter], weights: Sequence[float], method: Method) -> RoundResult:
    """The round in which the clients ``[C]`` sent these adapters. The server's factors are 0, but for the A that ``ffa`` holds."""
    count, first = len(adapters), adapters[0].factors
    factors = Tree({name: torch.stack([each.factors[name] for each in adapters]) for name in first})
    params = first.map(lambda leaf: torch.zeros_like(leaf)[None])
    if method == "ffa":
        check_shared_down(adapters)
        params = Tree({name: first[name][None] if name.endswith(".A") else leaf for name, leaf in params.items()})
    server = ServerState(params, Tree(), Tree())
    state = FederatedState(0, server, ClientStateStore.replicate(Tree(), count), single_cluster(count))
    report = CohortUpdate(
        delta=factors - params.take(torch.zeros(count, dtype=torch.long)),
        client_state=Tree(),
        state_delta=Tree(),
        mean_grad=Tree(),
        weight=torch.tensor(weights, dtype=torch.float64),
        steps=torch.ones(count, dtype=torch.long),
        loss=torch.zeros(count, 2),
        tokens=torch.zeros(count),
        failed=torch.zeros(count, dtype=torch.bool),
        cluster_ids=single_cluster(count),
        cluster_sizes=torch.tensor([count]),
        lr=torch.zeros(count),
    )
    return RoundResult(state, state, torch.arange(count), report)


def check_shared_down(adapters: Sequence[SavedAdapter]) -> None:
    """Raise `UserError` unless all adapters have the same A, as FFA-LoRA trains them."""
    first = adapters[0]
    for other in adapters[1:]:
        odd = [name for name, leaf in first.factors.items() if name.endswith(".A") and not torch.equal(leaf, other.factors[name])]
        if odd:
            raise UserError(
                f"ffa averages B under one frozen A, and {odd[0]} differs between {first.folder} and {other.folder}: "
                "take fedex, flora or flexlora, or train with lora_A frozen"
            )


def add_change(aggregator: Aggregator, result: RoundResult) -> Tree:
    """The server's factors ``[...]`` after one of fedrift's aggregators."""
    server = result.before.server
    return (server.params + aggregator.aggregate(server, result.update)).map(lambda leaf: leaf[0])


def stack_factors(result: RoundResult) -> Tree:
    """FLoRA: A = [A_1; ...; A_C] and B = [p_1 B_1, ..., p_C B_C] for each module."""
    stacked = Tree()
    for module in adapter_modules(result.update.delta.keys()):
        _, stacked[f"{module}.B"], stacked[f"{module}.A"] = next(weighted_products(result.before.server, result.update, module))
    return stacked


def average_with_residual(result: RoundResult) -> Tree:
    """FedEx: Ā and B̄, and beside them the residual sum_k p_k (B_k - B̄)(A_k - Ā) of rank (C - 1) R.

    sum_k p_k (A_k - Ā) is 0, so B̄ can be replaced by B_C; then the last client's term vanishes.
    """
    factors, weight = result.update.delta.map(to_float64), result.update.weight / result.update.weight.sum()
    mean = add_change(Mean(), result)
    found = Tree()
    for module in adapter_modules(factors.keys()):
        down, up = factors[f"{module}.A"], factors[f"{module}.B"]  # [C, R, I], [C, O, R]
        centered = down - (weight.view(-1, 1, 1) * down).sum(0)
        shifted = weight.view(-1, 1, 1) * (up - up[-1])
        found[f"{module}.A"] = torch.cat([to_float64(mean[f"{module}.A"]), centered[:-1].flatten(0, 1)])
        found[f"{module}.B"] = torch.cat([to_float64(mean[f"{module}.B"]), shifted[:-1].transpose(0, 1).flatten(1)], 1)
    return found


FACTORIES = {
    "fedavg": lambda result: add_change(Mean(), result),
    "ffa": lambda result: add_change(FFALoRA(), result),
    "flexlora": lambda result: add_change(FlexLoRA(), result),
    "flora": stack_factors,
    "fedex": average_with_residual,
}


# What averaging cost.


def errors_by_module(result: RoundResult) -> dict[str, float]:
    """The aggregation error of separate means, for each module."""
    return {module: read_error(select_module(result, module)) for module in adapter_modules(result.update.delta.keys())}


def read_error(result: RoundResult) -> float:
    """The aggregation error as runs record it; 0 where nothing was trained."""
    return float(aggregation_error(result).get("adapters.error", 0.0))


def select_module(result: RoundResult, module: str) -> RoundResult:
    """The same round with the factors of one module only."""

    def one(tree: Tree) -> Tree:
        return Tree({f"{module}.{kind}": tree[f"{module}.{kind}"] for kind in "AB"})

    before = replace(result.before, server=replace(result.before.server, params=one(result.before.server.params)))
    return replace(result, before=before, after=before, update=replace(result.update, delta=one(result.update.delta)))


def measure_distance(result: RoundResult, factors: Tree) -> float:
    """The relative Frobenius distance of an adapter ``[...]`` from the mean of the clients' products, over all modules."""
    apart = whole = 0.0
    for module in adapter_modules(factors.keys()):
        _, up, down = next(weighted_products(result.before.server, result.update, module))
        own_up, own_down = to_float64(factors[f"{module}.B"]), to_float64(factors[f"{module}.A"])
        apart += float(squared_norm(torch.cat([up, -own_up], 1)[None], torch.cat([down, own_down])[None]))
        whole += float(squared_norm(up[None], down[None]))
    return math.sqrt(max(apart, 0.0) / whole) if whole > 0 else 0.0


# Writing what PEFT reads.


def scale_rank(config: Mapping[str, Any], factor: int) -> dict[str, Any]:
    """The configuration with ``factor`` times the rank and the same scale, which is alpha / r, or alpha / sqrt(r) with rsLoRA."""
    alpha, rank = config.get("lora_alpha", COMPARED_KEYS["lora_alpha"]), int(config.get("r", COMPARED_KEYS["r"]))
    alpha = alpha * (math.sqrt(factor) if config.get("use_rslora") else factor)
    return {**config, "r": rank * factor, "lora_alpha": alpha, "inference_mode": True}


def rank_factor(before: Tree, after: Tree) -> int:
    """How many times as large the rank is; ``flora`` has no ranks of clients whose weight is 0."""
    return next(len(leaf) // len(before[name]) for name, leaf in after.items() if name.endswith(".A"))


def to_state_dict(factors: Tree) -> dict[str, Tensor]:
    """The factors by the names of PEFT's file."""
    named = {f"{name[:-2]}{SUFFIXES[name[-1]]}": leaf for name, leaf in factors.items()}
    return {name: leaf.contiguous() for name, leaf in sorted(named.items())}


def write_adapter(folder: Path, adapter: AggregatedAdapter) -> None:
    """Write the folder; the configuration comes last, so that a folder with one is whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(adapter.state_dict, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps(adapter.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error


__all__ = ["METHODS", "AggregatedAdapter", "aggregate_adapters"]
