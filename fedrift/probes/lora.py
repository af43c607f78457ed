"""Measure how low-rank adapters B A are aggregated, how their products move, and which subspaces they use."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.tree import Tree, adapter_modules, to_float64
from ..core.types import FederatedState, RoundResult
from .base import DerivedMetric, MetricHistory, MetricValues, ScheduledProbe, federation_value
from .context import Passages, ProbeContext, mean_over_models, select_passages, trained_mask
from .losses import LossModel
from .mode_connectivity import passage_loss
from .representation import exp_entropy
from .updates import layer_label, measure_agreement, scatter_clients


def aggregation_error(result: RoundResult) -> MetricValues:
    """Compute the error of averaging the factors B and A of adapters separately, in one round.

    The error is E = sum_k p_k B_k A_k - B̄ Ā = sum_k p_k (B_k - B̄)(A_k - Ā), which is exactly the covariance of the clients'
    factors. ``adapters.error`` is |E| / |sum p_k B_k A_k|, relative to the adapters themselves. ``adapters.error.update`` is
    |E| / |sum p_k B_k A_k - B A|, relative to the change in the round. Norms are Frobenius norms over all modules and models.

    The error also occurs on IID data and grows with the number of local steps. Only the excess over the IID baseline is due to
    non-IID data. For an aggregator that avoids the error (FedEx, FLoRA, FlexLoRA), the metrics show the error that separate averaging
    would have caused. No ``[O, I]`` matrix is built: |U V|^2 is the sum of the elementwise product of U^T U and V V^T, ``[nR, nR]``.

    Returns:
        The two metrics; empty without adapters or if no client trained.
    """
    before, update = result.before.server.params, result.update
    sums = torch.zeros(3, dtype=torch.float64)
    for module in adapter_modules(before):
        for model in range(result.before.server.num_models):
            clients = ((update.cluster_ids == model) & (update.weight > 0)).nonzero().flatten()
            if not len(clients):
                continue
            share = (to_float64(update.weight)[clients] / to_float64(update.weight)[clients].sum()).view(-1, 1, 1)
            start_a, start_b = to_float64(before[module + ".A"][model]), to_float64(before[module + ".B"][model])
            client_a = start_a + to_float64(update.delta[module + ".A"])[clients]  # [n, R, I] A_k
            client_b = start_b + to_float64(update.delta[module + ".B"])[clients]  # [n, O, R] B_k
            error = squared_norm(share * (client_b - (share * client_b).sum(0)), client_a - (share * client_a).sum(0))
            mean_product = squared_norm(share * client_b, client_a)
            change = squared_norm(torch.cat([share * client_b, -start_b.unsqueeze(0)]), torch.cat([client_a, start_a.unsqueeze(0)]))
            sums += torch.stack([error, mean_product, change]).cpu().double()
    error, mean_product, change = sums.clamp_min(0).sqrt().tolist()
    denominators = {"adapters.error": mean_product, "adapters.error.update": change}
    return {name: error / size for name, size in denominators.items() if size > 0}


def squared_norm(up_factors: Tensor, down_factors: Tensor) -> Tensor:
    """Compute |sum_k B_k A_k|^2 from ``up_factors [n, O, R]`` and ``down_factors [n, R, I]``."""
    up, down = up_factors.transpose(0, 1).flatten(1), down_factors.flatten(0, 1)  # [O, nR], [nR, I]
    return ((up.mT @ up) * (down @ down.mT)).sum()


# Update geometry of adapters in the space of the products B A.
#
# The same product B A has many factorizations, so angles between factors depend on the factorization and angles between products
# do not. The update of client k is s (B_k A_k - B A) = s (B_k (A_k - A) + (B_k - B) A). It is again a product of two thin factors,
# ``[O, 2R]`` and ``[2R, I]``, and <U V, X Y> = sum (U^T X) * (V Y^T). So the largest matrix is ``[C 2R, C 2R]``, and no difference
# of large numbers is computed.

PRODUCT_GROUP = "updates"


@dataclass(frozen=True, eq=False)
class ProductGeometry:
    """Geometry of the clients' updates and of the server's path in the space of the products B A.

    The metrics correspond to ``update.*``, which use the factors.

    - ``product.norm``, ``product.cosine`` ``[C]``: norm of each client's update, and its cosine with the mean update.
    - ``product.consensus``, ``product.diversity``, also per layer, and ``product.pairwise``.
    - ``product.step``, ``product.distance_from_start``: distance of the server's products from those before the round, and from w_0.
    - ``product.turn``: cosine of the server's change in this round with its change in the previous round.

    The last three are means over all clients of the model that serves each client. They are missing if the aggregator merges changes
    under the adapters (FedEx, FLoRA), because the products do not include merged changes. Without adapters there are no metrics.
    """

    scale: float  # scale of the adapters, s = lora_alpha / r
    initial_params: Tree = field(default_factory=Tree)  # ``[1, ...]``, the initial parameters w_0

    def __call__(self, result: RoundResult) -> MetricValues:
        """Compute the metrics of a round; empty without adapters or if no client trained."""
        before, update = result.before.server.params, result.update
        modules = adapter_modules(before)
        valid = ~update.failed & (update.steps != 0)
        if not modules or not valid.any():
            return {}
        rows = valid.nonzero().flatten()
        start = before.take(result.before.cluster_ids[result.cohort[rows]])
        updates = update.delta.take(rows.to(update.cluster_ids.device))
        grams = {layer: self.scale**2 * gram for layer, gram in product_gram_by_layer(start, updates).items()}
        agreement = measure_agreement(torch.stack(list(grams.values())).sum(0))
        metrics: MetricValues = {
            "product.norm": scatter_clients(agreement.norm, valid),
            "product.cosine": scatter_clients(agreement.cosine, valid),
            "product.consensus": agreement.consensus,
            "product.diversity": agreement.diversity,
        }
        if len(rows) > 1:
            metrics["product.pairwise"] = agreement.pairwise
        for layer, layer_gram in grams.items():
            if layer and bool(layer_gram.diagonal().any()):
                layer_agreement = measure_agreement(layer_gram)
                metrics["product.consensus", layer], metrics["product.diversity", layer] = (
                    layer_agreement.consensus,
                    layer_agreement.diversity,
                )
        if self.initial_params and not result.after.server.merged_base:
            metrics |= {
                "product.step": self.distance_from(result, before),
                "product.distance_from_start": self.distance_from(result, self.initial_params),
            }
        last_delta = result.before.server_delta
        if last_delta and not result.before.server.merged_base and len(last_delta[modules[0] + ".A"]) == result.after.server.num_models:
            cosines = torch.stack([turning_cosine(result, index) for index in range(result.after.server.num_models)])
            metrics["product.turn"] = cosines[result.after.cluster_ids.cpu()].nanmean()
        return metrics

    def distance_from(self, result: RoundResult, reference: Tree) -> Tensor:
        """Compute the distance |s (B A - B' A')| of the server's products from reference products.

        Args:
            result: The round.
            reference: Factors of the reference products, ``[M, ...]`` or ``[1, ...]``.

        Returns:
            The mean over all clients of the distance of the model that serves each client.
        """
        params = result.after.server.params
        if len(next(iter(reference.values()))) != result.after.server.num_models:
            reference = reference.take(torch.zeros(result.after.server.num_models, dtype=torch.long))
        return (
            self.scale * product_gram(reference, params - reference).diagonal().clamp_min(0).sqrt()[result.after.cluster_ids.cpu()].mean()
        )


def turning_cosine(result: RoundResult, model: int) -> Tensor:
    """Compute the cosine of the last two changes of one model's products; NaN if either change is zero."""
    index, before = torch.tensor([model]), result.before.server.params
    delta, last_delta = result.after.server_delta.take(index), result.before.server_delta.take(index)
    earlier = before.take(index) - last_delta
    start = Tree({name: torch.cat([leaf, earlier[name]]) for name, leaf in before.take(index).items()})
    gram = product_gram(start, Tree({name: torch.cat([leaf, last_delta[name]]) for name, leaf in delta.items()}))
    return gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt()


def product_gram(start: Tree, deltas: Tree) -> Tensor:
    """Compute the inner products of the changes of B A, over all modules.

    Args:
        start: Factors before the change, ``[n, ...]``.
        deltas: Changes of the factors, ``[n, ...]``.

    Returns:
        Inner products, ``[n, n]`` float64 on the CPU.
    """
    return torch.stack(list(product_gram_by_layer(start, deltas).values())).sum(0)


def product_gram_by_layer(start: Tree, deltas: Tree) -> dict[str, Tensor]:
    """Compute the inner products of ``product_gram`` per layer; "" is the key of modules outside the layers."""
    count, grams = len(next(iter(start.values()))), dict[str, Tensor]()
    for module in adapter_modules(start):
        start_a, start_b = to_float64(start[module + ".A"]), to_float64(start[module + ".B"])  # [n, R, I], [n, O, R]
        delta_a, delta_b = to_float64(deltas[module + ".A"]), to_float64(deltas[module + ".B"])
        up = torch.cat([start_b + delta_b, delta_b], 2).transpose(0, 1).flatten(1)  # [O, n 2R]: B_k, B_k - B
        down = torch.cat([delta_a, start_a], 1).flatten(0, 1)  # [n 2R, I]: A_k - A, A
        products = (up.mT @ up) * (down @ down.mT)  # [n 2R, n 2R]
        gram, layer = (products.unflatten(0, (count, -1)).unflatten(2, (count, -1)).sum((1, 3)).cpu().double(), layer_label(module + "."))
        grams[layer] = grams.get(layer, 0.0) + gram
    return grams


def product_efficiency(metrics: MetricValues, history: MetricHistory) -> MetricValues:
    """Compute ``product.efficiency``, the distance from w_0 divided by the path length, like ``update.efficiency`` for factors."""
    step, distance = federation_value(metrics, "product.step"), federation_value(metrics, "product.distance_from_start")
    length = history.total.get(("product.step", ""), 0.0) + step
    return {"product.efficiency": distance / length} if length > 0 else {}


def product_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure the geometry of the adapters' products B A in every round; it needs adapters."""
    if not adapter_modules(context.initial_params):
        return []
    return [
        ScheduledProbe("products", ProductGeometry(float(context.model.trainable.scale), context.initial_params)),
        DerivedMetric("products", product_efficiency),
    ]


# Subspaces of adapters: how many directions they use, and whether clients use the same ones.

SUBSPACE_GROUP = "adapters"

RANK_TOLERANCE = 1e-6  # relative to the largest singular value; smaller values are rounding errors


def adapter_subspaces(result: RoundResult) -> MetricValues:
    """Compute ranks and principal angles of the products B A.

    Each metric is a mean over all adapted modules, and over the modules of each layer (domain ``layer 03``).

    - ``adapters.rank``: effective rank of the server's adapters after the round, exp of the entropy of the normalized singular values.
    - ``adapters.rank.stable``: stable rank |B A|_F^2 / |B A|_2^2 of the server's adapters.
    - ``adapters.angle``: mean squared cosine of the principal angles between clients' adapters after training. It is the mean over
      pairs of clients, and over column spaces and row spaces, which are also reported separately (``columns``, ``rows``). It is 1
      for identical spaces and 0 for orthogonal spaces; R / O or R / I is expected by chance. Row spaces are similar at the start,
      because all clients start with the same A.

    All values come from QR decompositions of the factors; no ``[O, I]`` matrix is built and no token is processed. A product that is
    zero has no directions and is ignored.

    Returns:
        The metrics; empty without adapters.
    """
    return server_ranks(result.after) | client_angles(result)


def server_ranks(state: FederatedState) -> MetricValues:
    """Compute ``adapters.rank`` and ``adapters.rank.stable``, as means over all clients if there are several models."""
    params, ranks, stable = state.server.params, {}, {}
    for module in adapter_modules(params):
        singular_values = product_svd(params[module + ".B"], params[module + ".A"])[1]  # [M, R]
        nonzero = singular_values[:, 0] > 0
        ranks[module] = torch.where(nonzero, exp_entropy(singular_values), torch.nan)
        stable[module] = torch.where(nonzero, singular_values.pow(2).sum(1) / singular_values[:, 0].pow(2), torch.nan)
    return {
        key: mean_over_models(value, state)
        for name, by_module in {"adapters.rank": ranks, "adapters.rank.stable": stable}.items()
        for key, value in mean_by_layer(name, by_module).items()
    }


def client_angles(result: RoundResult) -> MetricValues:
    """Compute ``adapters.angle`` between the clients that trained."""
    rows = trained_mask(result).nonzero().flatten()
    if len(rows) < 2:
        return {}
    params = result.client_params
    overlaps: dict[str, dict[str, Tensor]] = {"columns": {}, "rows": {}, "": {}}
    for module in adapter_modules(params):
        up, values, down = product_svd(params[module + ".B"].cpu()[rows], params[module + ".A"].cpu()[rows])
        valid = values > RANK_TOLERANCE * values[:, :1]  # [C, R]
        column_overlap, row_overlap = subspace_overlap(up, valid), subspace_overlap(down, valid)
        overlaps["columns"][module], overlaps["rows"][module], overlaps[""][module] = (
            column_overlap,
            row_overlap,
            (column_overlap + row_overlap) / 2,
        )
    metrics: MetricValues = {**mean_by_layer("adapters.angle", overlaps[""])}
    for side in ("columns", "rows"):
        for key, value in mean_by_layer("adapters.angle", overlaps[side]).items():
            metrics["adapters.angle", f"{key[1]} {side}" if isinstance(key, tuple) else side] = value
    return metrics


def product_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the thin SVD of B A from its factors.

    Args:
        up: B of n adapters, ``[n, O, R]``.
        down: A of n adapters, ``[n, R, I]``.

    Returns:
        Left singular vectors ``[n, O, R]``, singular values ``[n, R]`` and right singular vectors ``[n, I, R]``, float64 on the CPU.
        Singular values are NaN if a factor is not finite.
    """
    up, down = to_float64(up).cpu(), to_float64(down).cpu()
    finite = up.isfinite().flatten(1).all(1) & down.isfinite().flatten(1).all(1)
    q_up, r_up = torch.linalg.qr(torch.where(finite[:, None, None], up, 0))
    q_down, r_down = torch.linalg.qr(torch.where(finite[:, None, None], down, 0).mT)
    u, values, v = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    return q_up @ u, torch.where(finite[:, None], values, torch.nan), q_down @ v.mT


def subspace_overlap(bases: Tensor, valid: Tensor) -> Tensor:
    """Compute the mean squared cosine of principal angles, averaged over pairs of subspaces.

    For orthonormal U, a pair has the value |U_i^T U_j|^2 / min(r_i, r_j).

    Args:
        bases: Orthonormal bases, ``[C, O, R]``.
        valid: Basis vectors that span the subspace, ``[C, R]`` bool.

    Returns:
        The mean; NaN if no pair of subspaces has directions.
    """
    bases = torch.where(valid[:, None], bases, 0.0)
    gram = torch.einsum("cor,doq->cdrq", bases, bases).pow(2).sum((2, 3))
    ranks = valid.sum(1)
    pairs = torch.ones_like(gram).triu(1).bool() & (torch.minimum(ranks[:, None], ranks) > 0)
    return (gram / torch.minimum(ranks[:, None], ranks))[pairs].mean()


def mean_by_layer(metric: str, by_module: dict[str, Tensor]) -> dict[str | tuple[str, str], Tensor]:
    """Average a metric over all modules and over the modules of each layer, ignoring NaN."""
    layers: dict[str, list[Tensor]] = {}
    metrics: dict[str | tuple[str, str], Tensor] = {metric: torch.stack(list(by_module.values())).nanmean(0)} if by_module else {}
    for module, value in by_module.items():
        if layer_label(module):
            layers.setdefault(layer_label(module), []).append(value)
    return metrics | {(metric, name): torch.stack(values).nanmean(0) for name, values in layers.items()}


def subspace_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure the rank and the subspaces of the adapters, with the expensive probes; it needs adapters."""
    return [ScheduledProbe("subspaces", adapter_subspaces, "expensive")] if adapter_modules(context.initial_params) else []


# Loss that is caused by averaging B and A separately instead of averaging their products exactly, in the same round.

EXACT_MEAN_GROUP = "adapters"

EXACT_MEAN_POSITIONS = 512  # evaluated tokens


@dataclass(frozen=True, eq=False)
class ExactMean:
    """Loss of (mean B)(mean A) minus loss of the mean of the products B_k A_k, ``adapters.error.loss``.

    The unit is nats per token of the passages. Both means are over the clients whose updates were used, with the clients' weights and
    without the server optimizer. The metric is therefore a counterfactual of the round that does not depend on the run's own
    aggregator. It is positive if averaging the factors separately increased the loss. The exact mean is evaluated as an adapter of
    rank n R, A = [A_1; ...; A_n] and B = [p_1 B_1, ..., p_n B_n].

    One evaluation processes the passages twice for each model that at least one client trained. Several models are weighted by the
    total weight of their clients.
    """

    model: LossModel
    passages: Passages

    def __call__(self, result: RoundResult) -> MetricValues:
        """Compute the metric of a round; empty if no update was used."""
        update, excess, total_weight = result.update, 0.0, 0.0
        cluster_ids, weight = update.cluster_ids.cpu(), to_float64(update.weight).cpu()
        for index in range(result.before.server.num_models):
            rows = ((cluster_ids == index) & (weight > 0)).nonzero().flatten()
            if len(rows):
                share = weight[rows] / weight[rows].sum()
                params, base = result.client_params.take(rows), result.before.server.base_for(torch.tensor([index]))
                separate, exact = (
                    passage_loss(self.model, Tree({**mean, **base}), self.passages)
                    for mean in (average_params(params, share), average_products(params, share))
                )
                excess, total_weight = excess + (separate - exact) * float(weight[rows].sum()), total_weight + float(weight[rows].sum())
        return {"adapters.error.loss": excess / total_weight} if total_weight else {}


def average_params(client_params: Tree, weights: torch.Tensor) -> Tree:
    """Average every leaf with ``weights [n]``, ``[n, ...] -> [1, ...]``."""
    return client_params.map(lambda leaf: (broadcast_weights(weights, leaf) * leaf).sum(0, keepdim=True))


def average_products(client_params: Tree, weights: torch.Tensor) -> Tree:
    """Build the adapter whose product is the weighted mean of the clients' products.

    Args:
        client_params: ``[n, ...]``.
        weights: ``[n]``, weights with sum 1.

    Returns:
        Factors ``[1, n R, I]`` and ``[1, O, n R]`` per module, and the weighted mean ``[1, ...]`` of all other leaves.
    """
    mean, modules = average_params(client_params, weights), adapter_modules(client_params)
    for module in modules:
        down, up = client_params[module + ".A"], client_params[module + ".B"]
        mean[module + ".A"] = down.flatten(0, 1)[None]
        mean[module + ".B"] = (broadcast_weights(weights, up) * up).transpose(0, 1).flatten(1)[None]
    return mean


def broadcast_weights(weights: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """Reshape ``weights [n]`` so that they multiply a leaf ``[n, ...]``."""
    return weights.to(leaf).view(-1, *[1] * (leaf.ndim - 1))


def exact_mean_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure the loss that the exact mean of the adapters' products would have, with the expensive probes; it needs adapters and text."""
    passages = select_passages(context.held_out, EXACT_MEAN_POSITIONS)
    if not adapter_modules(context.initial_params) or not len(passages.positions):
        return []
    return [ScheduledProbe("exact mean", ExactMean(context.model, passages), "expensive", 2.0 * passages.tokens.numel())]
