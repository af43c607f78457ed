"""The adapters of a tree, seen as products: ``<module>.B [., O, R]`` times ``<module>.A [., R, I]``.

Separate means of B and A are not the mean of B A: with p_k, B̄, Ā the weights and means,
sum_k p_k B_k A_k - B̄ Ā = sum_k p_k (B_k - B̄)(A_k - Ā). What the product aggregates share is here.
The scale alpha/r is not: they work below it, and the model applies it to base and adapter alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.optimizers import Sgd
from ...core.random import torch_stream
from ...core.tree import Tree, to_float64
from ...core.types import CohortUpdate, ServerState
from .mean import AlgorithmInfo, Mean, rows_by_model


@dataclass(frozen=True)
class ProductAggregator(Mean):
    """The frame of aggregates that look at B A, not at B and A."""

    couples_lora_factors: ClassVar[bool] = True

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        said, ours = reject_missing_adapters(self, param_names), type(self).__name__
        if algorithm.server_optimizer != Sgd(1.0):
            said.append(
                f"{ours} sets the adapters to what the clients' products say; a server optimiser would move "
                f"them elsewhere: use server_optimizer=Sgd(1.0), not {algorithm.server_optimizer}"
            )
        if algorithm.rescales_updates:
            said.append(
                f"{ours} multiplies the clients' factors, and {type(algorithm).__name__} rescales the "
                "changes or steps beyond them, which does not so with their products: use Mean or FFALoRA"
            )
        return said


def reject_missing_adapters(aggregator: Mean, param_names: Collection[str]) -> list[str]:
    if lora_modules(param_names):
        return []
    return [f"{type(aggregator).__name__} is about low-rank adapters, and none are trained: use trainable: {{type: Lora}}"]


def keeps_param_state(algorithm: AlgorithmInfo, param_names: Collection[str]) -> bool:
    """Whether clients keep memories that look like the params."""
    kept = algorithm.init_client_state(Tree({name: torch.zeros(1, 1, 1) for name in param_names}))
    return any(name.endswith(tuple(param_names)) for name in kept)


def reject_param_state(aggregator: Mean, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
    """The refusal of such memories by an aggregate that changes what the params mean."""
    if not keeps_param_state(algorithm, param_names):
        return []
    return [
        f"{type(aggregator).__name__} changes what A and B mean from round to round, and {type(algorithm).__name__} "
        "keeps memories in their terms; use Mean or FFALoRA with it"
    ]


def reject_weight_decay(aggregator: Mean, server_optimizer: Any) -> list[str]:
    """The refusal of a server optimiser that moves leaves without being told to, by an aggregate that holds some still."""
    if not getattr(server_optimizer, "weight_decay", 0):
        return []
    return [f"{type(aggregator).__name__} holds one factor still; the weight decay of {server_optimizer} would move it"]


def lora_modules(param_names: Collection[str]) -> list[str]:
    """The modules that wear an adapter."""
    return [name.removesuffix(".A") for name in param_names if name.endswith(".A") and name[:-1] + "B" in param_names]


def weighted_products(server: ServerState, report: CohortUpdate, module: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each model that was trained, sum_k p_k B_k A_k as two factors, ``[O, nR]`` (with the p_k) and ``[nR, I]``."""
    rows = report.cluster_ids
    down = to_float64(server.params[module + ".A"])[rows] + to_float64(report.delta[module + ".A"])  # [C, R, I]
    up = to_float64(server.params[module + ".B"])[rows] + to_float64(report.delta[module + ".B"])  # [C, O, R]
    for model, mine in rows_by_model(report):
        share = to_float64(report.weight)[mine] / report.weight[mine].sum()
        yield model, (up[mine] * share.view(-1, 1, 1)).transpose(0, 1).flatten(1), down[mine].flatten(0, 1)


def zero_base(params: Tree) -> Tree:
    """Nothing under the adapters yet, ``<module>.base [M, O, I]``."""
    pairs = {module: (params[module + ".B"], params[module + ".A"]) for module in lora_modules(params.keys())}
    return Tree({f"{module}.base": up.new_zeros(*up.shape[:2], down.shape[2]) for module, (up, down) in pairs.items()})


def add_to_base(base: Tree, module: str, model: int, change: Tensor) -> Tensor:
    """The base of a module with ``change [O, I]`` added for one model."""
    leaf = base[f"{module}.base"]
    return leaf.index_add(0, torch.tensor([model], device=leaf.device), change.to(leaf).unsqueeze(0))


# FFA-LoRA: A stays as it was drawn, only B is trained, so averaging B is averaging B A.
#
# Sun, Li, Li & Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv:2403.12313.
# Half of the traffic, no aggregation error for any number of local steps, and the mean of products stays
# linear under clipping and noise: ``inner_aggregator`` is how B is aggregated, ``FFALoRA(DPMean(clip_norm=0.5))``
# the paper's case.


@dataclass(frozen=True)
class FFALoRA(Mean):
    couples_lora_factors: ClassVar[bool] = True
    inner_aggregator: Mean = Mean()

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        return frozenset(module + ".A" for module in lora_modules(param_names))

    def aggregate(self, server: ServerState, report: CohortUpdate) -> Tree:
        still = self.frozen_params(report.delta.keys(), 0)
        trained = Tree({name: leaf for name, leaf in report.delta.items() if name not in still})
        found = self.inner_aggregator.aggregate(server, replace(report, delta=trained))
        return Tree({name: found[name] if name in found else leaf * 0 for name, leaf in server.params.items()})

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        said = reject_missing_adapters(self, param_names) + reject_weight_decay(self, algorithm.server_optimizer)
        if self.inner_aggregator.couples_lora_factors:
            return [
                *said,
                f"FFALoRA aggregates B alone, and {type(self.inner_aggregator).__name__} is about B and A: use "
                "inner_aggregator=Mean, Median, TrimmedMean, Krum or DPMean",
            ]
        return said + self.inner_aggregator.incompatibilities(algorithm, param_names)

    def warnings(self, algorithm: AlgorithmInfo, weighting: str) -> list[str]:
        return self.inner_aggregator.warnings(algorithm, weighting)

    def cohort_warnings(self, cohort_size: int) -> list[str]:
        return self.inner_aggregator.cohort_warnings(cohort_size)


# RoLoRA: one round trains B with A still, the next A with B still, and each is averaged exactly.
#
# Chen, Guo, Ju, Dalal, Zhu & Khisti, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", 2025,
# arXiv:2502.01755 (RoLoRA). The first round trains B: while B is zero, A has no gradient.


@dataclass(frozen=True)
class RoLoRA(Mean):
    couples_lora_factors: ClassVar[bool] = True

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        still = "A" if round % 2 == 0 else "B"
        return frozenset(f"{module}.{still}" for module in lora_modules(param_names))

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        said = reject_missing_adapters(self, param_names) + reject_weight_decay(self, algorithm.server_optimizer)
        if "client_state" in algorithm.uploads and keeps_param_state(algorithm, param_names):
            said.append(
                f"RoLoRA trains each factor every other round only, and what {type(algorithm).__name__} remembers of it "
                "would be of a round in which it stood still; use Mean or FFALoRA with it"
            )
        if getattr(algorithm.server_optimizer, "momentum", 0) or getattr(algorithm.server_optimizer, "betas", (0,))[0]:
            said.append(f"RoLoRA holds one factor still; the momentum of {algorithm.server_optimizer} would move it")
        return said


# The best adapter of the given rank: the ideal mean, cut by its singular values.
#
# M = sum p_k B_k A_k = U S V^T; B = U_R sqrt(S_R), A = sqrt(S_R) V_R^T. No rank-R adapter is nearer to M (Eckart & Young,
# 1936); what is lost is sqrt(sum of the squares of the other singular values). Bai et al., "Federated
# Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources" (FlexLoRA), NeurIPS 2024,
# arXiv:2402.11505, aggregates so. M is never built: its factors are stacked and orthogonalised first.


@dataclass(frozen=True)
class FlexLoRA(ProductAggregator):
    def aggregate(self, server: ServerState, report: CohortUpdate) -> Tree:
        change = Tree(super().aggregate(server, report))
        for module in lora_modules(server.params.keys()):
            down, up = server.params[module + ".A"].clone(), server.params[module + ".B"].clone()
            for model, tall, flat in weighted_products(server, report, module):
                tall, flat = truncate_rank(tall, flat, down.shape[1])
                up[model], down[model] = tall.to(up), flat.to(down)
            change[module + ".A"] = down - server.params[module + ".A"]
            change[module + ".B"] = up - server.params[module + ".B"]
        return change

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        return super().incompatibilities(algorithm, param_names) + reject_param_state(self, algorithm, param_names)


def truncate_rank(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best ``[O, R]``, ``[R, I]`` for ``up [O, n] @ down [n, I]``; signs fixed, so that no order matters.

    A direction that carries nothing keeps a row in A (its B is zero): with both zero it could never learn.
    """
    left, core = torch.linalg.qr(up)
    right, other = torch.linalg.qr(down.mT)
    u, s, vt = torch.linalg.svd(core @ other.mT, full_matrices=False)
    u, s, v = left @ u[:, :rank], s[:rank], right @ vt[:rank].mT
    flip = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()  # [1, R]
    root = s.sqrt()
    alive = s > s[0] * 1e-7
    return u * flip * root * alive, ((v * flip) * torch.where(alive, root, 1.0)).mT


# FedEx-LoRA: factors are averaged, and what that loses is added under them.
#
# Singhal, Ponkshe & Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of
# Foundation Models", ACL 2025, arXiv:2410.09432. B̄ = sum p_k B_k, Ā = sum p_k A_k,
# base <- base + (sum p_k B_k A_k - B̄ Ā); a module computes W + s (base + B A), so the model is the ideal mean.
# The residual takes the same p_k as the factors and is an ``[O, I]`` matrix that every client must receive.


@dataclass(frozen=True)
class FedEx(ProductAggregator):
    modifies_base: ClassVar[bool] = True

    def init_merged_base(self, params: Tree) -> Tree:
        return zero_base(params)

    def after_server_step(self, before: ServerState, after: ServerState, report: CohortUpdate) -> ServerState:
        base = Tree(after.merged_base)
        for module in lora_modules(before.params.keys()):
            for model, up, down in weighted_products(before, report, module):
                kept = to_float64(after.params[module + ".B"][model]) @ to_float64(after.params[module + ".A"][model])
                base[f"{module}.base"] = add_to_base(base, module, model, up @ down - kept)
        return replace(after, merged_base=base)

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        said = super().incompatibilities(algorithm, param_names)
        if algorithm.is_personalized:
            said.append(
                f"FedEx moves the weights under everybody's adapters by what the shared ones lack, and "
                f"{type(algorithm).__name__}'s clients wear their own; use Mean or FFALoRA with it"
            )
        return said


# FLoRA: the clients' adapters are stacked, merged under fresh ones, and everybody starts anew.
#
# Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
# NeurIPS 2024, arXiv:2409.05976. A = [A_1; ...; A_m], B = [p_1 B_1, ..., p_m B_m], base <- base + B A; the weights
# stand on one factor only (on both they would be squared). Then B = 0 and a fresh random A, the same for all.


@dataclass(frozen=True)
class FLoRA(ProductAggregator):
    modifies_base: ClassVar[bool] = True

    def init_merged_base(self, params: Tree) -> Tree:
        return zero_base(params)

    def aggregate(self, server: ServerState, report: CohortUpdate) -> Tree:
        change = Tree(super().aggregate(server, report))
        for module in lora_modules(server.params.keys()):
            down, up = server.params[module + ".A"], server.params[module + ".B"]
            bound = 1 / math.sqrt(down.shape[-1])
            fresh = (
                torch.empty(down.shape, dtype=torch.float64)
                .uniform_(-bound, bound, generator=torch_stream(report.server_seed, "flora", module))
                .to(down)
            )
            change[module + ".A"], change[module + ".B"] = fresh - down, -up
        return change

    def after_server_step(self, before: ServerState, after: ServerState, report: CohortUpdate) -> ServerState:
        base = Tree(after.merged_base)
        for module in lora_modules(before.params.keys()):
            for model, up, down in weighted_products(before, report, module):
                base[f"{module}.base"] = add_to_base(base, module, model, up @ down)
        return replace(after, merged_base=base)

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        return super().incompatibilities(algorithm, param_names) + reject_param_state(self, algorithm, param_names)


__all__ = [
    "FlexLoRA",
    "ProductAggregator",
    "add_to_base",
    "keeps_param_state",
    "lora_modules",
    "reject_missing_adapters",
    "reject_param_state",
    "reject_weight_decay",
    "truncate_rank",
    "weighted_products",
    "zero_base",
]
