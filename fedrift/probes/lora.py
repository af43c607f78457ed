"""The aggregation error of low-rank adapters: what is lost when B and A are averaged apart."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.tree import Tree, to_float64
from ..core.types import FederatedState, RoundResult
from .base import DerivedMetric, MetricHistory, MetricValues, ScheduledProbe, federation_value
from .context import Passages, ProbeContext, mean_over_models, select_passages, trained_mask
from .losses import LossModel
from .mode_connectivity import passage_loss
from .representation import exp_entropy
from .updates import layer_label, measure_agreement, scatter_clients


def aggregation_error(result: RoundResult) -> MetricValues:
    """How far the product of the means is from the mean of the products, in this round.

    E = sum_k p_k B_k A_k - B̄ Ā = sum_k p_k (B_k - B̄)(A_k - Ā), exactly: the covariance of the clients' factors.
    ``adapters.error`` is |E| / |sum p_k B_k A_k|, of the adapters as they are, and ``adapters.error.update``
    |E| / |sum p_k B_k A_k - B A|, of what the round has changed: Frobenius norms over all modules and models.
    It is there without heterogeneity too and grows with the local steps; only beyond the IID baseline's is it non-IID's.
    An aggregate that avoids the loss (FedEx, FLoRA, FlexLoRA) is shown what separate means would have lost.
    No ``[O, I]`` matrix is built: |U V|^2 is the sum of U^T U times V V^T, element by element, ``[nR, nR]``.
    Without adapters, or where nobody trained, the reading is empty.
    """
    before, report = result.before.server.params, result.report
    sums = torch.zeros(3, dtype=torch.float64)
    for module in [name.removesuffix(".A") for name in before if name.endswith(".A") and name[:-1] + "B" in before]:
        for model in range(result.before.server.num_models):
            mine = ((report.cluster_ids == model) & (report.weight > 0)).nonzero().flatten()
            if not len(mine):
                continue
            share = (to_float64(report.weight)[mine] / to_float64(report.weight)[mine].sum()).view(-1, 1, 1)
            down, up = to_float64(before[module + ".A"][model]), to_float64(before[module + ".B"][model])
            downs = down + to_float64(report.delta[module + ".A"])[mine]  # [n, R, I] A_k
            ups = up + to_float64(report.delta[module + ".B"])[mine]  # [n, O, R] B_k
            apart = squared_norm(share * (ups - (share * ups).sum(0)), downs - (share * downs).sum(0))
            whole = squared_norm(share * ups, downs)
            moved = squared_norm(torch.cat([share * ups, -up.unsqueeze(0)]), torch.cat([downs, down.unsqueeze(0)]))
            sums += torch.stack([apart, whole, moved]).cpu().double()
    apart, whole, moved = sums.clamp_min(0).sqrt().tolist()
    sizes = {"adapters.error": whole, "adapters.error.update": moved}
    return {name: apart / size for name, size in sizes.items() if size > 0}


def squared_norm(up_factors: Tensor, down_factors: Tensor) -> Tensor:
    """|sum_k ups_k downs_k|^2, from ``[n, O, R]`` and ``[n, R, I]``."""
    tall, flat = up_factors.transpose(0, 1).flatten(1), down_factors.flatten(0, 1)  # [O, nR], [nR, I]
    return ((tall.mT @ tall) * (flat @ flat.mT)).sum()


# Update geometry of low-rank adapters in the space that matters: the changes of B A, not those of B and of A.
#
# The same B A can be written with many B and A, so angles between factors depend on how it is written; those of products
# do not. A client's change is s (B_k A_k - B A) = s (B_k (A_k - A) + (B_k - B) A), which is again two thin factors,
# ``[O, 2R]`` and ``[2R, I]``, and <U V, X Y> = sum (U^T X) * (V Y^T): nothing larger than ``[C 2R, C 2R]`` is built, and no
# difference of large numbers is taken.

PRODUCT_GROUP = "updates"


@dataclass(frozen=True, eq=False)
class ProductGeometry:
    """Each client ``[C]``: ``product.norm``, ``product.cosine`` with the mean change. The federation: ``product.consensus``,
    ``product.diversity``, both by layer too, and ``product.pairwise``, as ``update.*`` are in the space of the factors;
    ``product.step`` and ``product.travelled``, how far the server's products moved in the round and since w_0;
    ``product.turn``: cosine of the server's change with its last one; all three means over the clients of the model that each
    shares. Nothing without adapters; of the server nothing where an aggregate merges changes under the adapters (FedEx,
    FLoRA), for what is merged is not in here.
    """

    scale: float  # s = lora_alpha / r
    initial_params: Tree = field(default_factory=Tree)  # [1, ...] w_0

    def __call__(self, result: RoundResult) -> MetricValues:
        before, report = result.before.server.params, result.report
        modules = adapter_modules(before)
        sound = ~report.failed & (report.steps > 0)
        if not modules or not sound.any():
            return {}
        rows = sound.nonzero().flatten()
        start = before.take(result.before.cluster_ids[result.cohort[rows]])
        moves = report.delta.take(rows.to(report.cluster_ids.device))
        grams = {layer: self.scale**2 * gram for layer, gram in product_gram_by_layer(start, moves).items()}
        said = measure_agreement(torch.stack(list(grams.values())).sum(0))
        reading: MetricValues = {
            "product.norm": scatter_clients(said.norm, sound),
            "product.cosine": scatter_clients(said.cosine, sound),
            "product.consensus": said.consensus,
            "product.diversity": said.diversity,
        }
        if len(rows) > 1:
            reading["product.pairwise"] = said.pairwise
        for layer, own in grams.items():
            if layer and bool(own.diagonal().any()):
                part = measure_agreement(own)
                reading["product.consensus", layer], reading["product.diversity", layer] = part.consensus, part.diversity
        if self.initial_params and not result.after.server.merged_base:
            reading |= {
                "product.step": self.distance_from(result, before),
                "product.travelled": self.distance_from(result, self.initial_params),
            }
        last = result.before.server_delta
        if last and not result.before.server.merged_base and len(last[modules[0] + ".A"]) == result.after.server.num_models:
            turns = torch.stack([turning_cosine(result, number) for number in range(result.after.server.num_models)])
            reading["product.turn"] = turns[result.after.cluster_ids.cpu()].nanmean()
        return reading

    def distance_from(self, result: RoundResult, reference: Tree) -> Tensor:
        """|s (B A - B' A')| from the products at ``reference``, ``[M, ...]`` or ``[1, ...]``; the mean over the clients'
        models."""
        now = result.after.server.params
        if len(next(iter(reference.values()))) != result.after.server.num_models:
            reference = reference.take(torch.zeros(result.after.server.num_models, dtype=torch.long))
        return self.scale * product_gram(reference, now - reference).diagonal().clamp_min(0).sqrt()[result.after.cluster_ids.cpu()].mean()


def turning_cosine(result: RoundResult, model: int) -> Tensor:
    """Cosine of the change of one model's products with the change before it; NaN where it stood still."""
    one, before = torch.tensor([model]), result.before.server.params
    now, last = result.after.server_delta.take(one), result.before.server_delta.take(one)
    earlier = before.take(one) - last
    start = Tree({name: torch.cat([leaf, earlier[name]]) for name, leaf in before.take(one).items()})
    gram = product_gram(start, Tree({name: torch.cat([leaf, last[name]]) for name, leaf in now.items()}))
    return gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt()


def adapter_modules(tree: Tree) -> list[str]:
    """The modules that wear an adapter."""
    return [name.removesuffix(".A") for name in tree if name.endswith(".A") and name[:-1] + "B" in tree]


def product_gram(start: Tree, deltas: Tree) -> Tensor:
    """Inner products of the changes of B A of n clients that begin at ``start`` and move by ``deltas``, both ``[n, ...]``, over
    all modules, ``[n, n]`` float64 on the CPU."""
    return torch.stack(list(product_gram_by_layer(start, deltas).values())).sum(0)


def product_gram_by_layer(start: Tree, deltas: Tree) -> dict[str, Tensor]:
    """The same layer by layer; "" is what is in no layer."""
    count, grams = len(next(iter(start.values()))), dict[str, Tensor]()
    for module in adapter_modules(start):
        down, up = to_float64(start[module + ".A"]), to_float64(start[module + ".B"])  # [n, R, I], [n, O, R]
        by_down, by_up = to_float64(deltas[module + ".A"]), to_float64(deltas[module + ".B"])
        tall = torch.cat([up + by_up, by_up], 2).transpose(0, 1).flatten(1)  # [O, n 2R]: B_k, B_k - B
        flat = torch.cat([by_down, down], 1).flatten(0, 1)  # [n 2R, I]: A_k - A, A
        each = (tall.mT @ tall) * (flat @ flat.mT)  # [n 2R, n 2R]
        gram, layer = (each.unflatten(0, (count, -1)).unflatten(2, (count, -1)).sum((1, 3)).cpu().double(), layer_label(module + "."))
        grams[layer] = grams.get(layer, 0.0) + gram
    return grams


def product_efficiency(metrics: MetricValues, history: MetricHistory) -> MetricValues:
    """``product.efficiency``: the distance travelled over the length of the path, as ``update.efficiency`` for the factors."""
    step, far = federation_value(metrics, "product.step"), federation_value(metrics, "product.travelled")
    length = history.total.get(("product.step", ""), 0.0) + step
    return {"product.efficiency": far / length} if length > 0 else {}


def product_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    if not adapter_modules(context.initial_params):
        return []
    return [
        ScheduledProbe("products", ProductGeometry(float(context.model.trainable.scale), context.initial_params)),
        DerivedMetric("products", product_efficiency),
    ]


# Adapters as maps: how many directions they use, and whether the clients use the same ones.

SUBSPACE_GROUP = "adapters"

RANK_TOLERANCE = 1e-6  # of the largest singular value: what is smaller is rounding, and no direction


def adapter_subspaces(result: RoundResult) -> MetricValues:
    """Of the product B A of each adapted module: the mean over a layer's modules (``layer 03``), and over all modules.

    The server's adapters after the round: ``adapters.rank``, exp of the entropy of the singular values' shares;
    ``adapters.rank.stable``, |B A|_F^2 / |B A|_2^2. The clients' after training: ``adapters.angle``, the mean over pairs
    of clients of the mean squared cosine of the principal angles between their column spaces and between their
    row spaces (also as ``columns`` and ``rows``): 1 if they are the same space, 0 if orthogonal, R / O or R / I by chance.
    Row spaces begin alike, for all begin with one A. From QR of the factors; no ``[O, I]`` matrix is built, no token read.
    A product that is zero has no directions and does not count. Without adapters the reading is empty.
    """
    return server_ranks(result.after) | client_angles(result)


def server_ranks(state: FederatedState) -> MetricValues:
    """``adapters.rank`` and ``adapters.rank.stable``; of several models, the mean over the fleet."""
    params, ranks, stable = state.server.params, {}, {}
    for module in lora_modules(params):
        values = product_svd(params[module + ".B"], params[module + ".A"])[1]  # [M, R]
        there = values[:, 0] > 0
        ranks[module] = torch.where(there, exp_entropy(values), torch.nan)
        stable[module] = torch.where(there, values.pow(2).sum(1) / values[:, 0].pow(2), torch.nan)
    return {
        key: mean_over_models(value, state)
        for name, found in {"adapters.rank": ranks, "adapters.rank.stable": stable}.items()
        for key, value in mean_by_layer(name, found).items()
    }


def client_angles(result: RoundResult) -> MetricValues:
    """``adapters.angle`` between the clients that trained."""
    rows = trained_mask(result).nonzero().flatten()
    if len(rows) < 2:
        return {}
    local = result.client_params
    found: dict[str, dict[str, Tensor]] = {"columns": {}, "rows": {}, "": {}}
    for module in lora_modules(local):
        up, values, down = product_svd(local[module + ".B"].cpu()[rows], local[module + ".A"].cpu()[rows])
        there = values > RANK_TOLERANCE * values[:, :1]  # [C, R]
        columns, across = subspace_overlap(up, there), subspace_overlap(down, there)
        found["columns"][module], found["rows"][module], found[""][module] = columns, across, (columns + across) / 2
    reading: MetricValues = {**mean_by_layer("adapters.angle", found[""])}
    for side in ("columns", "rows"):
        for key, value in mean_by_layer("adapters.angle", found[side]).items():
            reading["adapters.angle", f"{key[1]} {side}" if isinstance(key, tuple) else side] = value
    return reading


def product_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD of B A from its factors ``[A, O, R], [A, R, I]``: ``[A, O, R], [A, R], [A, I, R]``, float64.

    NaN where a factor is not finite.
    """
    up, down = to_float64(up).cpu(), to_float64(down).cpu()
    finite = up.isfinite().flatten(1).all(1) & down.isfinite().flatten(1).all(1)
    tall, left = torch.linalg.qr(torch.where(finite[:, None, None], up, 0))
    flat, right = torch.linalg.qr(torch.where(finite[:, None, None], down, 0).mT)
    u, values, v = torch.linalg.svd(left @ right.mT, full_matrices=False)
    return tall @ u, torch.where(finite[:, None], values, torch.nan), flat @ v.mT


def subspace_overlap(bases: Tensor, valid: Tensor) -> Tensor:
    """Mean over pairs of mean cos^2 of the principal angles, of the spaces ``[C, O, R]`` whose directions ``valid [C, R]`` count.

    |U_i^T U_j|^2 / min(r_i, r_j), for orthonormal U; NaN if no pair has directions.
    """
    bases = torch.where(valid[:, None], bases, 0.0)
    gram = torch.einsum("cor,doq->cdrq", bases, bases).pow(2).sum((2, 3))
    ranks = valid.sum(1)
    pairs = torch.ones_like(gram).triu(1).bool() & (torch.minimum(ranks[:, None], ranks) > 0)
    return (gram / torch.minimum(ranks[:, None], ranks))[pairs].mean()


def lora_modules(params: dict[str, Tensor]) -> list[str]:
    """The modules that have an adapter."""
    return [name.removesuffix(".A") for name in params if name.endswith(".A") and name[:-1] + "B" in params]


def mean_by_layer(metric: str, by_module: dict[str, Tensor]) -> dict[str | tuple[str, str], Tensor]:
    """A metric's mean over all modules, and over those of each layer; modules that say nothing (NaN) do not count."""
    layers: dict[str, list[Tensor]] = {}
    reading: dict[str | tuple[str, str], Tensor] = {metric: torch.stack(list(by_module.values())).nanmean(0)} if by_module else {}
    for module, value in by_module.items():
        if layer_label(module):
            layers.setdefault(layer_label(module), []).append(value)
    return reading | {(metric, name): torch.stack(values).nanmean(0) for name, values in layers.items()}


def subspace_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Adapters, whenever expensive probes run; nothing where none are trained."""
    return [ScheduledProbe("subspaces", adapter_subspaces, "expensive")] if lora_modules(context.initial_params) else []


# What averaging B and A apart costs: the loss that exact averaging of the same round would have saved.

EXACT_MEAN_GROUP = "adapters"

EXACT_MEAN_POSITIONS = 512  # tokens whose loss counts


@dataclass(frozen=True, eq=False)
class ExactMean:
    """``adapters.error.loss``: loss of mean B times mean A less loss of the mean of B_k A_k, nats per token of the passages.

    Both means are over the clients whose reports counted, by their weights, and without the server's optimiser: a
    counterfactual of the round, whatever the run's own aggregate is. Above 0 where averaging apart did harm. The exact mean is
    worn as an adapter of rank n R, A = [A_1; ...; A_n] and B = [p_1 B_1, ..., p_n B_n]. A look reads the passages twice for
    each model that somebody trained; several are weighed by the weight of their clients.
    """

    model: LossModel
    passages: Passages

    def __call__(self, result: RoundResult) -> MetricValues:
        report, saved, whole = result.report, 0.0, 0.0
        group, weight = report.cluster_ids.cpu(), to_float64(report.weight).cpu()
        for number in range(result.before.server.num_models):
            mine = ((group == number) & (weight > 0)).nonzero().flatten()
            if len(mine):
                share = weight[mine] / weight[mine].sum()
                local, under = result.client_params.take(mine), result.before.server.base_for(torch.tensor([number]))
                apart, exact = (
                    passage_loss(self.model, Tree({**mean, **under}), self.passages)
                    for mean in (average_params(local, share), average_products(local, share))
                )
                saved, whole = saved + (apart - exact) * float(weight[mine].sum()), whole + float(weight[mine].sum())
        return {"adapters.error.loss": saved / whole} if whole else {}


def average_params(client_params: Tree, weights: torch.Tensor) -> Tree:
    """Every leaf's mean by ``weights [n]``, ``[n, ...] -> [1, ...]``."""
    return client_params.map(lambda leaf: (broadcast_weights(weights, leaf) * leaf).sum(0, keepdim=True))


def average_products(client_params: Tree, weights: torch.Tensor) -> Tree:
    """The adapter whose product is the mean of the products, ``[1, n R, I]`` and ``[1, O, n R]``; the mean of other leaves."""
    found, modules = average_params(client_params, weights), adapter_modules(client_params)
    for module in modules:
        down, up = client_params[module + ".A"], client_params[module + ".B"]
        found[module + ".A"] = down.flatten(0, 1)[None]
        found[module + ".B"] = (broadcast_weights(weights, up) * up).transpose(0, 1).flatten(1)[None]
    return found


def broadcast_weights(weights: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """``weights [n]`` to multiply a leaf ``[n, ...]`` by."""
    return weights.to(leaf).view(-1, *[1] * (leaf.ndim - 1))


def exact_mean_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """The cost of averaging apart, whenever expensive probes run; nothing without adapters."""
    text = select_passages(context.held_out, EXACT_MEAN_POSITIONS)
    if not adapter_modules(context.initial_params) or not len(text.positions):
        return []
    return [ScheduledProbe("exact mean", ExactMean(context.model, text), "expensive", 2.0 * text.tokens.numel())]
