"""Aggregators for LoRA adapters, whose weight change is the product of ``<module>.B [., O, R]`` and ``<module>.A [., R, I]``.

The product of the means of B and A is not the mean of the products B A. With weights p_k and means B̄ and Ā,
sum_k p_k B_k A_k - B̄ Ā = sum_k p_k (B_k - B̄)(A_k - Ā). The aggregators in this module reduce or remove this aggregation error.
They do not apply the scale alpha/r, because the model applies it to the merged base weights and to the adapter.

Axis letters: C clients of the cohort, M models of the server, O outputs and I inputs of a module, R the rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...core.lazy_imports import torch
from ...core.optimizers import Sgd
from ...core.random import torch_stream
from ...core.tree import Tree, adapter_modules, to_float64
from ...core.types import CohortUpdate, ServerState
from .base import Aggregator, AlgorithmInfo
from .mean import Mean, rows_by_model

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ProductAggregator(Mean):
    """Base class of aggregators that work on the products B A. Parameters that belong to no adapter are averaged as in ``Mean``."""

    couples_lora_factors: ClassVar[bool] = True

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        reasons, own_name = reject_missing_adapters(self, param_names), type(self).__name__
        if algorithm.server_optimizer != Sgd(1.0):
            reasons.append(
                f"{own_name} computes the adapters from the products of the clients, and another server optimizer would change "
                f"the result; use server_optimizer=Sgd(1.0), not {algorithm.server_optimizer}"
            )
        if algorithm.rescales_updates:
            reasons.append(
                f"{own_name} multiplies the factors of the clients, but {type(algorithm).__name__} rescales the updates of the "
                "factors or moves beyond them, which does not rescale the products; use Mean or FFALoRA"
            )
        return reasons


def reject_missing_adapters(aggregator: Aggregator, param_names: Collection[str]) -> list[str]:
    """Return the reason against an aggregator for adapters if no adapters are trained."""
    if adapter_modules(param_names):
        return []
    return [f"{type(aggregator).__name__} needs low-rank adapters, but none are trained; use trainable: {{type: Lora}}"]


def keeps_param_state(algorithm: AlgorithmInfo, param_names: Collection[str]) -> bool:
    """Return whether the client states of an algorithm contain leaves that correspond to trained parameters."""
    client_state = algorithm.init_client_state(Tree({name: torch.zeros(1, 1, 1) for name in param_names}))
    return any(name.endswith(tuple(param_names)) for name in client_state)


def reject_param_state(aggregator: Aggregator, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
    """Return the reason against such client states for an aggregator that changes the basis of the factors in each round."""
    if not keeps_param_state(algorithm, param_names):
        return []
    return [
        f"{type(aggregator).__name__} changes the basis of A and B in every round, but the client states of {type(algorithm).__name__} "
        "refer to the previous factors; use Mean or FFALoRA"
    ]


def reject_weight_decay(aggregator: Aggregator, server_optimizer: Any) -> list[str]:
    """Return the reason against weight decay on the server for an aggregator that freezes some parameters."""
    if not getattr(server_optimizer, "weight_decay", 0):
        return []
    return [
        f"{type(aggregator).__name__} freezes one factor, but the weight decay of {server_optimizer} would change it; use weight_decay=0"
    ]


def weighted_products(server: ServerState, update: CohortUpdate, module: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Compute sum_k p_k B_k A_k of a module for each model that received an update, as two factors.

    Args:
        server: The state of the server before the round.
        update: The updates of the cohort.
        module: The name of the module.

    Yields:
        The index of the model, and the stacked factors ``[O, nR]``, which includes the p_k, and ``[nR, I]`` of its n clients.
    """
    cluster_ids = update.cluster_ids
    down = to_float64(server.params[module + ".A"])[cluster_ids] + to_float64(update.delta[module + ".A"])  # [C, R, I]
    up = to_float64(server.params[module + ".B"])[cluster_ids] + to_float64(update.delta[module + ".B"])  # [C, O, R]
    for model, rows in rows_by_model(update):
        p = to_float64(update.weight)[rows] / update.weight[rows].sum()
        yield model, (up[rows] * p.view(-1, 1, 1)).transpose(0, 1).flatten(1), down[rows].flatten(0, 1)


def zero_base(params: Tree) -> Tree:
    """Create the initial merged base weights, zeros ``<module>.base [M, O, I]`` for every adapter."""
    factors = {module: (params[module + ".B"], params[module + ".A"]) for module in adapter_modules(params.keys())}
    return Tree({f"{module}.base": up.new_zeros(*up.shape[:2], down.shape[2]) for module, (up, down) in factors.items()})


def add_to_base(base: Tree, module: str, model: int, change: Tensor) -> Tensor:
    """Return the merged base weights ``[M, O, I]`` of a module after adding ``change [O, I]`` to those of one model."""
    leaf = base[f"{module}.base"]
    return leaf.index_add(0, torch.tensor([model], device=leaf.device), change.to(leaf).unsqueeze(0))


@dataclass(frozen=True)
class FFALoRA(Aggregator):
    """FFA-LoRA: A keeps its random initial value and only B is trained, so the mean of B gives the mean of the products B A.

    Sun, Li, Li & Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv:2403.12313.

    FFA-LoRA halves the communication and has no aggregation error for any number of local steps. The products remain linear in
    B under clipping and noise. The paper uses ``FFALoRA(DPMean(clip_norm=0.5))``.

    Args:
        inner_aggregator: The aggregator of B.
    """

    couples_lora_factors: ClassVar[bool] = True
    inner_aggregator: Aggregator = Mean()

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        return frozenset(module + ".A" for module in adapter_modules(param_names))

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        frozen = self.frozen_params(update.delta.keys(), 0)
        trained = Tree({name: leaf for name, leaf in update.delta.items() if name not in frozen})
        mean = self.inner_aggregator.aggregate(server, replace(update, delta=trained))
        return Tree({name: mean[name] if name in mean else leaf * 0 for name, leaf in server.params.items()})

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        reasons = reject_missing_adapters(self, param_names) + reject_weight_decay(self, algorithm.server_optimizer)
        if self.inner_aggregator.couples_lora_factors:
            return [
                *reasons,
                f"FFALoRA aggregates only B, but {type(self.inner_aggregator).__name__} needs both B and A; use "
                "inner_aggregator=Mean, Median, TrimmedMean, Krum or DPMean",
            ]
        return reasons + self.inner_aggregator.incompatibilities(algorithm, param_names)

    def warnings(self, algorithm: AlgorithmInfo, weighting: str) -> list[str]:
        return self.inner_aggregator.warnings(algorithm, weighting)

    def cohort_warnings(self, cohort_size: int) -> list[str]:
        return self.inner_aggregator.cohort_warnings(cohort_size)


@dataclass(frozen=True)
class RoLoRA(Mean):
    """RoLoRA: rounds alternate between training B with A frozen and training A with B frozen, so each mean is exact.

    Chen, Guo, Ju, Dalal, Zhu & Khisti, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", 2025,
    arXiv:2502.01755. The first round trains B, because the gradient of A is zero while B is zero.
    """

    couples_lora_factors: ClassVar[bool] = True

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        frozen_factor = "A" if round % 2 == 0 else "B"
        return frozenset(f"{module}.{frozen_factor}" for module in adapter_modules(param_names))

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        reasons = reject_missing_adapters(self, param_names) + reject_weight_decay(self, algorithm.server_optimizer)
        if "client_state" in algorithm.uploads and keeps_param_state(algorithm, param_names):
            reasons.append(
                f"RoLoRA trains each factor only in every second round, and the client states of {type(algorithm).__name__} for a "
                "factor would be from a round in which it was frozen; use Mean or FFALoRA"
            )
        server = algorithm.server_optimizer
        averages = getattr(server, "num_averaged", 1) > 1
        if averages or getattr(server, "momentum", 0) or getattr(server, "betas", (0,))[0]:
            reasons.append(
                f"RoLoRA freezes one factor, but the {'average' if averages else 'momentum'} of {server} would change it; use "
                "server_optimizer=Sgd(1.0)"
            )
        return reasons


@dataclass(frozen=True)
class FlexLoRA(ProductAggregator):
    """FlexLoRA: the mean of the products B A is truncated to the best adapter of the given rank.

    Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources" (FlexLoRA),
    NeurIPS 2024, arXiv:2402.11505.

    M = sum_k p_k B_k A_k = U S V^T; B = U_R sqrt(S_R), A = sqrt(S_R) V_R^T. No adapter of rank R is closer to M (Eckart & Young,
    1936). The error is the root of the sum of the squares of the other singular values. M is never computed, because its
    factors are stacked and orthogonalized first.
    """

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        change = Tree(super().aggregate(server, update))
        for module in adapter_modules(server.params.keys()):
            down, up = server.params[module + ".A"].clone(), server.params[module + ".B"].clone()
            for model, mean_up, mean_down in weighted_products(server, update, module):
                mean_up, mean_down = truncate_rank(mean_up, mean_down, down.shape[1])
                up[model], down[model] = mean_up.to(up), mean_down.to(down)
            change[module + ".A"] = down - server.params[module + ".A"]
            change[module + ".B"] = up - server.params[module + ".B"]
        return change

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        return super().incompatibilities(algorithm, param_names) + reject_param_state(self, algorithm, param_names)


def truncate_rank(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Compute the best rank-R approximation of a product of two factors.

    The signs of the singular vectors are fixed, so that the result does not depend on the order of the clients.

    Args:
        up: The first factor, ``[O, n]``.
        down: The second factor, ``[n, I]``.
        rank: The rank R of the approximation.

    Returns:
        The factors B ``[O, R]`` and A ``[R, I]``. For a singular value of about zero, and beyond the number of inputs or outputs, the
        column of B is zero, but the row of A is not: an adapter with zeros in both factors has no gradient and could not learn.
    """
    up_q, up_r = torch.linalg.qr(up)
    down_q, down_r = torch.linalg.qr(down.mT)
    u, s, vt = torch.linalg.svd(up_r @ down_r.mT, full_matrices=False)
    u, s, v = up_q @ u[:, :rank], s[:rank], down_q @ vt[:rank].mT
    sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()  # [1, R]
    root = s.sqrt()
    nonzero = s > s[0] * 1e-7
    mean_up, mean_down = u * sign * root * nonzero, ((v * sign) * torch.where(nonzero, root, 1.0)).mT
    copies = torch.arange(rank, device=up.device) % len(s)  # there are fewer singular values than ranks in a module that is too narrow
    return torch.nn.functional.pad(mean_up, (0, rank - len(s))), mean_down[copies]


@dataclass(frozen=True)
class FedEx(ProductAggregator):
    """FedEx-LoRA: the factors are averaged, and the aggregation error is added to the base weights.

    Singhal, Ponkshe & Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models",
    ACL 2025, arXiv:2410.09432.

    B̄ = sum_k p_k B_k, Ā = sum_k p_k A_k, base <- base + (sum_k p_k B_k A_k - B̄ Ā). A module computes W + s (base + B A), where s
    is the scale alpha/r, so the model is the exact mean of the local models. The residual uses the same p_k as the factors. It
    is an ``[O, I]`` matrix that every client must receive.
    """

    modifies_base: ClassVar[bool] = True

    def init_merged_base(self, params: Tree) -> Tree:
        return zero_base(params)

    def after_server_step(self, before: ServerState, after: ServerState, update: CohortUpdate) -> ServerState:
        base = Tree(after.merged_base)
        for module in adapter_modules(before.params.keys()):
            for model, up, down in weighted_products(before, update, module):
                product = to_float64(after.params[module + ".B"][model]) @ to_float64(after.params[module + ".A"][model])
                base[f"{module}.base"] = add_to_base(base, module, model, up @ down - product)
        return replace(after, merged_base=base)

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        reasons = super().incompatibilities(algorithm, param_names)
        if algorithm.is_personalized:
            reasons.append(
                f"FedEx changes the base weights to correct the shared adapters, but the clients of {type(algorithm).__name__} "
                "use personalized adapters on the same base weights; use Mean or FFALoRA"
            )
        return reasons


@dataclass(frozen=True)
class FLoRA(ProductAggregator):
    """FLoRA: the adapters of the clients are stacked and merged into the base weights, and a new adapter is initialized.

    Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", NeurIPS 2024,
    arXiv:2409.05976.

    A = [A_1; ...; A_m], B = [p_1 B_1, ..., p_m B_m], base <- base + B A. The weights p_k apply to one factor only, because on
    both factors they would be squared. The new adapter has B = 0 and a random A, which is the same for all clients.
    """

    modifies_base: ClassVar[bool] = True

    def init_merged_base(self, params: Tree) -> Tree:
        return zero_base(params)

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        change = Tree(super().aggregate(server, update))
        for module in adapter_modules(server.params.keys()):
            down, up = server.params[module + ".A"], server.params[module + ".B"]
            bound = 1 / math.sqrt(down.shape[-1])
            new_down = (
                torch.empty(down.shape, dtype=torch.float64)
                .uniform_(-bound, bound, generator=torch_stream(update.server_seed, "flora", module))
                .to(down)
            )
            change[module + ".A"], change[module + ".B"] = new_down - down, -up
        return change

    def after_server_step(self, before: ServerState, after: ServerState, update: CohortUpdate) -> ServerState:
        base = Tree(after.merged_base)
        for module in adapter_modules(before.params.keys()):
            for model, up, down in weighted_products(before, update, module):
                base[f"{module}.base"] = add_to_base(base, module, model, up @ down)
        return replace(after, merged_base=base)

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        return super().incompatibilities(algorithm, param_names) + reject_param_state(self, algorithm, param_names)
