"""What the clients' own training says: loss, tokens, steps, and who failed."""

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
    """Each client ``[C]``: ``train.loss`` mean over the local steps, ``train.loss.start`` of the first step (nats per
    token, without any regulariser); ``weight`` in the mean; ``train.tokens``; ``train.steps``; ``failed`` 0 or 1.
    Where clients are elsewhere, ``wire.down`` and ``wire.up``: bytes of tensors that travelled to each, and back."""
    report = result.report
    travelled: MetricValues = {}
    if report.bytes_on_wire is not None:
        travelled = {"wire.down": report.bytes_on_wire[:, 0].double(), "wire.up": report.bytes_on_wire[:, 1].double()}
    return {
        "train.loss.start": report.loss[:, 0],
        "train.loss": torch.where(report.steps > 0, report.loss[:, 1], torch.nan),
        "weight": report.weight.cpu(),
        "train.tokens": report.tokens,
        "train.steps": report.steps,
        "failed": report.failed.double(),
        **travelled,
    }


# Update geometry: how long the clients' updates are, and how far they agree, in all and layer by layer.

LAYER_PATTERN = re.compile(r"\.(\d+)\.")


class UpdateAgreement(NamedTuple):
    """What the inner products of n updates say."""

    norm: Tensor  # [n] |d_i|
    cosine: Tensor  # [n] of d_i with the mean update
    consensus: Tensor  # |mean d| / mean |d|
    diversity: Tensor  # mean |d|^2 / |mean d|^2
    pairwise: Tensor  # mean cosine of two different updates; NaN of one alone


def update_geometry(result: RoundResult) -> MetricValues:
    """Lengths and angles of the clients' updates d_i, one round, before aggregation.

    Each client ``[C]``: ``update.norm`` |d_i|; ``update.cosine`` of d_i with the mean update; ``update.relative``
    |d_i| / |w_i|, w_i the trained weights that the client received (NaN where they are all 0).
    The federation: ``model.norm``, the mean of |w_i| over the cohort; ``update.consensus`` |mean d| / mean |d|, 1 if all
    agree and 1 / sqrt(C) if they are orthogonal; ``update.diversity`` mean |d|^2 / |mean d|^2, from 1 (identical) to C
    (orthogonal) and beyond (Yin et al., AISTATS 2018, arXiv:1706.05699, over a round instead of a step); both by layer too,
    with the domain ``layer 03``; ``update.pairwise`` mean cosine of two clients' updates; ``update.divergence``
    mean_{i<j} |d_i - d_j| / mean |d|; ``gradient.norm`` of each client's mean raw gradient over its local steps,
    ``[C]``, its mean over the clients, of the same name, and its variance ``gradient.norm.variance``. Failed clients are
    NaN and do not count.
    """
    sound = ~result.report.failed & (result.report.steps > 0)
    grams = gram_by_layer(result.report.delta.take(sound.nonzero().flatten().to(device_of(result.report.delta))))
    gram = torch.stack(list(grams.values())).sum(0)
    count = len(gram)
    received = received_norms(result)
    reading: MetricValues = {("model.norm", ""): received.mean()}
    if count:
        said = measure_agreement(gram)
        reading["update.norm"] = scatter_clients(said.norm, sound)
        reading["update.relative"] = reading["update.norm"] / received.where(received > 0, torch.nan)
        reading["update.cosine"] = scatter_clients(said.cosine, sound)
        reading["update.consensus"], reading["update.diversity"] = said.consensus, said.diversity
        for layer, own in grams.items():
            if layer and bool(own.diagonal().any()):  # a layer that nobody trains has no direction
                part = measure_agreement(own)
                reading["update.consensus", layer], reading["update.diversity", layer] = part.consensus, part.diversity
        if count > 1:
            norm = said.norm
            apart = (norm.pow(2)[:, None] + norm.pow(2) - 2 * gram).clamp_min(0).sqrt()
            reading["update.divergence"] = apart.sum() / (count * (count - 1)) / norm.mean().clamp_min(1e-30)
            reading["update.pairwise"] = said.pairwise
    slope = result.report.mean_grad.norm().cpu()
    slope = torch.where(sound, slope, torch.nan)
    reading["gradient.norm"] = slope
    if count:
        reading["gradient.norm", ""] = slope[sound].mean()
    if count > 1:
        reading["gradient.norm.variance"] = slope[sound].var()
    return reading


def received_norms(result: RoundResult) -> Tensor:
    """The Euclidean length of the trained weights that each client of the cohort received, ``[C]`` float64."""
    models, place = result.before.cluster_ids[result.cohort].unique(return_inverse=True)
    return result.before.server.params.take(models).norm().cpu().double()[place.cpu()]


def measure_agreement(gram: Tensor) -> UpdateAgreement:
    """From the inner products ``[n, n]`` of n updates, n at least 1."""
    norm, along = gram.diagonal().clamp_min(0).sqrt(), gram.mean(1)  # <d_i, mean d>
    length = gram.mean().clamp_min(0).sqrt()  # |mean d|
    apart = ~torch.eye(len(gram), dtype=torch.bool)
    return UpdateAgreement(
        norm,
        along / (norm * length).clamp_min(1e-30),
        length / norm.mean().clamp_min(1e-30),
        norm.pow(2).mean() / length.pow(2).clamp_min(1e-30),
        (gram / (norm[:, None] * norm).clamp_min(1e-30))[apart].mean(),
    )


def gram_by_layer(updates: Tree) -> dict[str, Tensor]:
    """All inner products of the rows, ``[C, C]``, in float64 on the CPU, layer by layer; "" is what is in no layer."""
    grams: dict[str, Tensor] = {}
    for name, leaf in updates.items():
        flat = leaf.flatten(1).cpu().double()
        layer = layer_label(name)
        grams[layer] = grams.get(layer, 0.0) + flat @ flat.T
    return grams


def layer_label(name: str) -> str:
    """``layer 03`` for a leaf of the fourth block, "" for one that is in no block."""
    found = LAYER_PATTERN.search(name)
    return f"layer {int(found[1]):02d}" if found else ""


def scatter_clients(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` of the clients at ``mask [C]``, NaN for the others, ``[C]``."""
    return torch.full((len(mask),), torch.nan, dtype=torch.float64).masked_scatter(mask, values)


def device_of(tree: Tree) -> torch.device:
    return next(iter(tree.values())).device


# Gradient dissimilarity: how far the clients' gradients at the same weights point apart, without the noise of samples.
#
# With g_k client k's gradient, p_k its share and g = sum_k p_k g_k (Li et al., "Federated Optimization in Heterogeneous
# Networks", MLSys 2020, arXiv:1812.06127, definition 3; Karimireddy et al., "SCAFFOLD", ICML 2020, arXiv:1910.06378,
# assumption A1):
#
# G^2 = sum_k p_k |g_k - g|^2,  B^2 = sum_k p_k |g_k|^2 / |g|^2 = 1 + G^2 / |g|^2,
#
# and the gradient diversity of Yin et al., AISTATS 2018, arXiv:1706.05699: sum_k |g_k|^2 / |sum_k g_k|^2.
#
# Gradients of samples are g_k plus noise, and |g_k + noise|^2 is too large. So each client's probe is cut into two disjoint
# halves with independent noise, and every product <x, y> is taken between a gradient of one half and one of the other.


def mean_gradient(loss_fn: LossFn, params: Tree, batches: Iterable[dict[str, Tensor]]) -> Tree:
    """Each client's gradient of its mean loss over all batches, ``[C, ...]``, at ``params [C, ...]``.

    A batch counts for a client as much as its ``weight [C]`` says (1 if absent).
    """
    total, mass = params.zeros_like(), torch.zeros(len(next(iter(params.values()))), dtype=torch.float64)
    for batch in batches:
        leaves = params.map(lambda leaf: leaf.detach().requires_grad_())
        loss = loss_fn(leaves, batch)
        weight = batch.get("weight", torch.ones(len(loss))).to(loss)
        found = torch.autograd.grad((loss * weight).sum(), list(leaves.values()))
        total, mass = total + Tree(dict(zip(leaves, found, strict=True))), mass + weight.double().cpu()
    return total * (1 / mass.clamp_min(1e-12)).to(next(iter(total.values())).device)


def gradient_dissimilarity(first_half: Tree, second_half: Tree, weights: Tensor) -> MetricValues:
    """``gradient.G2``, ``gradient.B2``, ``gradient.diversity``, and ``gradient.cosine``, the mean over pairs of clients.

    ``first_half`` and ``second_half``, ``[C, ...]``, are the gradients of the two halves; ``weights [C]`` the clients' weights.
    Estimates, unbiased but for the ratios: G2 of identical clients is 0 on average and may be below. NaN where the noise leaves
    no length to divide by.
    """
    gram = flatten_rows(first_half) @ flatten_rows(second_half).T
    gram = (gram + gram.T) / 2  # <g_i, g_j>, [C, C]
    p = weights.double().cpu() / weights.double().sum().cpu()
    own, length = gram.diagonal(), p @ gram @ p
    norm = torch.where(own > 0, own, torch.nan).sqrt()
    apart = ~torch.eye(len(gram), dtype=torch.bool)
    return {
        "gradient.G2": p @ own - length,
        "gradient.B2": safe_ratio(p @ own, length),
        "gradient.diversity": safe_ratio(own.sum(), gram.sum()),
        "gradient.cosine": (gram / (norm[:, None] * norm))[apart].nanmean(),
    }


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, torch.nan)


def flatten_rows(tree: Tree) -> Tensor:
    """All leaves side by side, ``[C, total]``, float64 on the CPU."""
    return torch.cat([leaf.flatten(1) for leaf in tree.values()], 1).cpu().double()


# The way that the server's model takes: how far each step, how far in all, how straight, and whether it turns back.

SERVER_PATH_GROUP = "updates"


@dataclass(frozen=True, eq=False)
class ServerPath:
    """``update.step`` |w_{t+1} - w_t|, ``update.travelled`` |w_{t+1} - w_0|, ``update.turn`` cos(Delta_t, Delta_{t-1}).

    A turn that stays below 0 is oscillation in the space of the parameters; of independent steps it is about 0. Where
    there are several models, the mean over the clients of the model that each shares. What an aggregate merges under the
    adapters is not in here (``product.turn`` is not said there at all).
    """

    initial_params: Tree  # [1, ...] w_0

    def __call__(self, result: RoundResult) -> MetricValues:
        moved, group = result.after.server_delta, result.after.cluster_ids.cpu()
        reading: MetricValues = {
            "update.step": moved.norm().cpu()[group].mean(),
            "update.travelled": distance(result.after.server.params, self.initial_params).cpu()[group].mean(),
        }
        before = result.before.server_delta
        if before and len(next(iter(before.values()))) == len(next(iter(moved.values()))):
            turn = moved.dot(before) / (moved.norm() * before.norm())
            reading["update.turn"] = turn.cpu()[group].nanmean()  # a model that stood still has no direction
        return reading


def distance(params: Tree, reference: Tree) -> Tensor:
    """How far each model is from one, ``[M, ...]`` and ``[1, ...]`` to ``[M]``, float64."""
    return params.map(lambda leaf, first: leaf.double() - first.double(), reference).norm()


def path_efficiency(metrics: MetricValues, history: MetricHistory) -> MetricValues:
    """``update.efficiency``: the distance travelled over the length of the path, 1 on a straight line, about 1 / sqrt(t) on
    a random one."""
    step, far = federation_value(metrics, "update.step"), federation_value(metrics, "update.travelled")
    length = history.total.get(("update.step", ""), 0.0) + step
    return {"update.efficiency": far / length} if length > 0 else {}


def server_path_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """The server's way, and what the algorithm itself knows of the round."""
    return [
        ScheduledProbe("path", ServerPath(context.initial_params)),
        DerivedMetric("path", path_efficiency),
        ScheduledProbe("evidence", context.algorithm.round_metrics),
    ]
