"""Measure the clients' local training, the geometry of their updates and gradients, and the path of the server's model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.tree import Tree
from ..core.types import LossFn, RoundResult
from .base import DerivedMetric, MetricHistory, MetricValues, ScheduledProbe, federation_value
from .context import ProbeContext


def training_metrics(result: RoundResult) -> MetricValues:
    """Report the clients' local training, one value per client of the cohort ``[C]``.

    - ``train.loss``: mean over the local steps; ``train.loss.start``: first local step. Both are in nats per token, without any
      regularizer.
    - ``weight``: weight of the client's update in the mean (``training.client_weighting``).
    - ``train.tokens``, ``train.steps``: trained tokens and local steps.
    - ``failed``: 1 if the client failed, which means that its update has a number that is not finite and the server does not use it;
      otherwise 0.
    - ``wire.down``, ``wire.up``: bytes of tensors that were sent to and received from the client, if clients run elsewhere.
    """
    update = result.update
    traffic: MetricValues = {}
    if update.bytes_on_wire is not None:
        traffic = {"wire.down": update.bytes_on_wire[:, 0].double(), "wire.up": update.bytes_on_wire[:, 1].double()}
    return {
        "train.loss.start": update.loss[:, 0],
        "train.loss": torch.where(update.steps != 0, update.loss[:, 1], torch.nan),
        "weight": update.weight.cpu(),
        "train.tokens": update.tokens,
        "train.steps": update.steps,
        "failed": update.failed.double(),
        **traffic,
    }


# Update geometry: norms of the clients' updates and the agreement between them, over all parameters and per layer.

LAYER_PATTERN = re.compile(r"\.(\d+)\.")


class UpdateAgreement(NamedTuple):
    """Norms and agreement of n updates, computed from their inner products."""

    norm: Tensor  # [n] |d_i|
    cosine: Tensor  # [n] cosine of d_i with the mean update
    consensus: Tensor  # |mean d| / mean |d|
    diversity: Tensor  # mean |d|^2 / |mean d|^2
    pairwise: Tensor  # mean cosine of two different updates; NaN for a single update


def update_geometry(result: RoundResult) -> MetricValues:
    """Compute norms and angles of the clients' updates d_i before aggregation.

    Per client, ``[C]``; NaN for a client that failed:

    - ``update.norm``: |d_i|.
    - ``update.cosine``: cosine of d_i with the mean update.
    - ``update.relative``: |d_i| / |w_i|, where w_i are the trained weights that the client received; NaN if these are all 0.
    - ``gradient.norm``: norm of the client's mean raw gradient over its local steps, before clipping and corrections by the algorithm.

    For the federation, without failed clients except in the first:

    - ``model.norm``: mean of |w_i| over the whole cohort, failed clients included.
    - ``update.consensus``: |mean d| / mean |d|, with the unweighted mean. It is 1 for identical updates and 1 / sqrt(C) for orthogonal
      updates of equal norm. Also per layer, recorded under a domain such as ``layer 03``.
    - ``update.diversity``: mean |d|^2 / |mean d|^2. It is 1 for identical and C for orthogonal updates, and has no upper bound (C
      times the gradient diversity of Yin et al., AISTATS 2018, arXiv:1706.05699, over a round instead of a step). Also per layer.
    - ``update.pairwise``: mean cosine of two clients' updates.
    - ``update.divergence``: mean_{i<j} |d_i - d_j| / mean |d|, the mean distance of two clients' updates relative to their mean norm. It
      says nothing about whether training diverges.
    - ``gradient.norm`` and ``gradient.norm.variance``: mean and variance of the clients' gradient norms.

    If all updates are zero, as with FedSGD, whose clients send gradients, there are norms but no angles.
    """
    valid = ~result.update.failed & (result.update.steps != 0)  # a client whose number of steps is unknown has trained
    grams = gram_by_layer(result.update.delta.take(valid.nonzero().flatten().to(result.update.delta.device)))
    gram = torch.stack(list(grams.values())).sum(0)
    count = len(gram)
    received = received_norms(result)
    metrics: MetricValues = {("model.norm", ""): received.mean()}
    if count:
        agreement = measure_agreement(gram)
        metrics["update.norm"] = scatter_clients(agreement.norm, valid)
        metrics["update.relative"] = metrics["update.norm"] / received.where(received > 0, torch.nan)
        has_direction = bool(gram.diagonal().any())  # FedSGD's clients send gradients, and their updates are zero
        if has_direction:
            metrics["update.cosine"] = scatter_clients(agreement.cosine, valid)
            metrics["update.consensus"], metrics["update.diversity"] = agreement.consensus, agreement.diversity
        for layer, layer_gram in grams.items():
            if layer and bool(layer_gram.diagonal().any()):  # the updates of an untrained layer are zero and have no direction
                layer_agreement = measure_agreement(layer_gram)
                metrics["update.consensus", layer], metrics["update.diversity", layer] = (
                    layer_agreement.consensus,
                    layer_agreement.diversity,
                )
        if count > 1 and has_direction:
            norm = agreement.norm
            distances = (norm.pow(2)[:, None] + norm.pow(2) - 2 * gram).clamp_min(0).sqrt()
            metrics["update.divergence"] = distances.sum() / (count * (count - 1)) / norm.mean().clamp_min(1e-30)
            metrics["update.pairwise"] = agreement.pairwise
    gradient_norm = result.update.mean_grad.norm().cpu()
    is_unknown = gradient_norm.isnan() | (result.update.steps.isnan() & (gradient_norm == 0))  # of a client that reports neither
    metrics["gradient.norm"] = torch.where(valid & ~is_unknown, gradient_norm, torch.nan)
    known = gradient_norm[valid & ~is_unknown]
    if len(known):
        metrics["gradient.norm", ""] = known.mean()
    if len(known) > 1:
        metrics["gradient.norm.variance"] = known.var()
    return metrics


def received_norms(result: RoundResult) -> Tensor:
    """Compute the Euclidean norm of the trained weights that each client of the cohort received, ``[C]`` float64."""
    models, positions = result.before.cluster_ids[result.cohort].unique(return_inverse=True)
    return result.before.server.params.take(models).norm().cpu().double()[positions.cpu()]


def measure_agreement(gram: Tensor) -> UpdateAgreement:
    """Compute norms and agreement from the inner products ``[n, n]`` of n >= 1 updates."""
    norm, mean_product = gram.diagonal().clamp_min(0).sqrt(), gram.mean(1)  # <d_i, mean d>
    mean_norm = gram.mean().clamp_min(0).sqrt()  # |mean d|
    off_diagonal = ~torch.eye(len(gram), dtype=torch.bool)
    return UpdateAgreement(
        norm,
        mean_product / (norm * mean_norm).clamp_min(1e-30),
        mean_norm / norm.mean().clamp_min(1e-30),
        norm.pow(2).mean() / mean_norm.pow(2).clamp_min(1e-30),
        (gram / (norm[:, None] * norm).clamp_min(1e-30))[off_diagonal].mean(),
    )


def gram_by_layer(updates: Tree) -> dict[str, Tensor]:
    """Compute the inner products of the rows per layer, ``[C, C]`` float64 on the CPU; "" is the key of leaves outside the layers."""
    grams: dict[str, Tensor] = {}
    for name, leaf in updates.items():
        flat = leaf.flatten(1).cpu().double()
        layer = layer_label(name)
        grams[layer] = grams.get(layer, 0.0) + flat @ flat.T
    return grams


def layer_label(name: str) -> str:
    """Return the layer of a leaf, e.g. ``layer 03`` for the fourth transformer block, or "" for a leaf outside the transformer blocks."""
    match = LAYER_PATTERN.search(name)
    return f"layer {int(match[1]):02d}" if match else ""


def scatter_clients(values: Tensor, mask: Tensor) -> Tensor:
    """Write ``values`` to the clients in ``mask [C]`` and NaN to all others, ``[C]`` float64."""
    return torch.full((len(mask),), torch.nan, dtype=torch.float64).masked_scatter(mask, values)


# Gradient dissimilarity at common weights, without the bias from sampling noise.
#
# Two constants describe how much the gradients of clients differ. G^2, the gradient spread, is the mean squared distance between a
# client's gradient and the mean gradient: 0 on IID data. B^2, the gradient dissimilarity, is the mean squared norm of the clients'
# gradients relative to the squared norm of their mean: 1 if all clients agree. SCAFFOLD calls the pair (G, B) bounded gradient
# dissimilarity and assumes mean_k |g_k|^2 <= G^2 + B^2 |g|^2 (Karimireddy
# et al., ICML 2020, arXiv:1910.06378, assumption A1). B alone is definition 3 of FedProx (Li et al., "Federated Optimization in
# Heterogeneous Networks", MLSys 2020, arXiv:1812.06127). Let g_k be client k's gradient, p_k its share of the training tokens and
# g = sum_k p_k g_k. Then
#
# G^2 = sum_k p_k |g_k - g|^2,  B^2 = sum_k p_k |g_k|^2 / |g|^2 = 1 + G^2 / |g|^2,
#
# and the gradient diversity of Yin et al., AISTATS 2018, arXiv:1706.05699, is sum_k |g_k|^2 / |sum_k g_k|^2.
#
# A sampled gradient is g_k plus noise, so |g_k + noise|^2 is biased upward. Therefore each client's samples are split into two
# disjoint halves with independent noise, and every product <x, y> is computed between gradients of different halves.


def mean_gradient(loss_fn: LossFn, params: Tree, batches: Iterable[dict[str, Tensor]]) -> Tree:
    """Compute each client's gradient of its mean loss over all batches.

    Args:
        loss_fn: Loss per client.
        params: ``[C, ...]``, the weights at which gradients are computed.
        batches: Batches ``[C, ...]``. The entry ``weight [C]``, 1 if missing, is the weight of the batch for each client.

    Returns:
        Gradients, ``[C, ...]``.
    """
    total, total_weight = params.zeros_like(), torch.zeros(len(next(iter(params.values()))), dtype=torch.float64)
    for batch in batches:
        leaves = params.map(lambda leaf: leaf.detach().requires_grad_())
        loss = loss_fn(leaves, batch)
        weight = batch.get("weight", torch.ones(len(loss))).to(loss)
        gradients = torch.autograd.grad((loss * weight).sum(), list(leaves.values()))
        total, total_weight = total + Tree(dict(zip(leaves, gradients, strict=True))), total_weight + weight.double().cpu()
    return total * (1 / total_weight.clamp_min(1e-12)).to(total.device)


def gradient_dissimilarity(first_half: Tree, second_half: Tree, weights: Tensor) -> MetricValues:
    """Estimate G^2 and B^2 (defined above), the gradient diversity, and the mean cosine of two clients' gradients.

    The estimates are unbiased, except for the bias of ratios. For identical clients G2 is 0 on average and may be negative.

    Args:
        first_half: Gradients of the first halves, ``[C, ...]``.
        second_half: Gradients of the second halves, ``[C, ...]``.
        weights: The clients' weights, ``[C]``.

    Returns:
        ``gradient.G2``, ``gradient.B2``, ``gradient.diversity`` and ``gradient.cosine``; NaN where the
        estimated norm in a denominator is not positive.
    """
    gram = flatten_rows(first_half) @ flatten_rows(second_half).T
    gram = (gram + gram.T) / 2  # <g_i, g_j>, [C, C]
    p = weights.double().cpu() / weights.double().sum().cpu()
    squared_norms, squared_norm_of_mean = gram.diagonal(), p @ gram @ p
    norm = torch.where(squared_norms > 0, squared_norms, torch.nan).sqrt()
    off_diagonal = ~torch.eye(len(gram), dtype=torch.bool)
    return {
        "gradient.G2": p @ squared_norms - squared_norm_of_mean,
        "gradient.B2": safe_ratio(p @ squared_norms, squared_norm_of_mean),
        "gradient.diversity": safe_ratio(squared_norms.sum(), gram.sum()),
        "gradient.cosine": (gram / (norm[:, None] * norm))[off_diagonal].nanmean(),
    }


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide two tensors; NaN where the denominator is not positive."""
    return torch.where(denominator > 0, numerator / denominator, torch.nan)


def flatten_rows(tree: Tree) -> Tensor:
    """Concatenate all leaves, ``[C, total]`` float64 on the CPU."""
    return torch.cat([leaf.flatten(1) for leaf in tree.values()], 1).cpu().double()


# Path of the server's model: step lengths, distance from the start, efficiency and the cosine of successive steps.

SERVER_PATH_GROUP = "updates"


@dataclass(frozen=True, eq=False)
class ServerPath:
    """Path of the server's model w_t.

    - ``update.step``: |w_{t+1} - w_t|.
    - ``update.distance_from_start``: |w_{t+1} - w_0|.
    - ``update.turn``: cos(Delta_t, Delta_{t-1}), the cosine of successive steps. Values that stay below 0 mean oscillation in
      parameter space. Independent steps have values around 0. ``product.turn`` is the same for the products of the adapters' factors.

    With several models, each metric is the mean over all clients of the value for the model that the client trains. Changes that an
    aggregator such as FedEx makes to the base weights under the adapters are not included; ``product.turn`` is missing in that case.
    """

    initial_params: Tree  # [1, ...] initial parameters w_0

    def __call__(self, result: RoundResult) -> MetricValues:
        """Compute the metrics of a round."""
        step, cluster_ids = result.after.server_delta, result.after.cluster_ids.cpu()
        metrics: MetricValues = {
            "update.step": step.norm().cpu()[cluster_ids].mean(),
            "update.distance_from_start": distance(result.after.server.params, self.initial_params).cpu()[cluster_ids].mean(),
        }
        last_step = result.before.server_delta
        if last_step and len(next(iter(last_step.values()))) == len(next(iter(step.values()))):
            turn = step.dot(last_step) / (step.norm() * last_step.norm())
            metrics["update.turn"] = turn.cpu()[cluster_ids].nanmean()  # a model that did not change has no direction
        return metrics


def distance(params: Tree, reference: Tree) -> Tensor:
    """Compute the distance of each model from a reference model.

    Args:
        params: ``[M, ...]``.
        reference: ``[1, ...]``.

    Returns:
        Distances, ``[M]`` float64.
    """
    return params.map(lambda leaf, first: leaf.double() - first.double(), reference).norm()


def path_efficiency(metrics: MetricValues, history: MetricHistory) -> MetricValues:
    """Compute ``update.efficiency``, the distance from the start divided by the path length.

    It is 1 for a straight line and about 1 / sqrt(t) for a random walk.
    """
    step, distance = federation_value(metrics, "update.step"), federation_value(metrics, "update.distance_from_start")
    length = history.total.get(("update.step", ""), 0.0) + step
    return {"update.efficiency": distance / length} if length > 0 else {}


def server_path_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure the path of the server's model and the algorithm's own metrics, such as control variates."""
    return [
        ScheduledProbe("path", ServerPath(context.initial_params)),
        DerivedMetric("path", path_efficiency),
        ScheduledProbe("algorithm", context.algorithm.round_metrics),
    ]
