"""Compare hidden states and attention of models, and measure the rank and anisotropy of hidden states.

Hidden states are ``[..., P, H]``: P token positions, one per row and never pooled over a text, of width H.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.tree import Tree, to_float64
from ..core.types import FederatedState, RoundResult
from .base import DerivedMetric, MetricValues, ScheduledProbe
from .context import (
    Passages,
    ProbeContext,
    client_models,
    initial_model,
    layer_name,
    mean_over_models,
    select_passages,
    server_models,
    trained_mask,
)
from .updates import scatter_clients

if TYPE_CHECKING:
    from ..models.stacked_model import StackedModel


def cka(a: Tensor, b: Tensor) -> Tensor:
    """Compute the debiased linear CKA of every representation with every other.

    CKA is HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)) with the unbiased estimator HSIC_1 of Song, Smola, Gretton, Bedo & Borgwardt,
    "Feature Selection via Dependence Maximization", JMLR 2012 (equation 5). CKA is due to Kornblith, Norouzi, Lee & Hinton, ICML 2019,
    arXiv:1905.00414. It is 1 if one representation is a rotated and scaled copy of the other. For independent representations it is
    0 on average and may be negative. Without the bias correction, independent states of width 128 have a CKA of 0.67 at 64 positions.

    Args:
        a: ``[A, P, H]``.
        b: ``[D, P, G]``.

    Returns:
        CKA, ``[A, D]``.

    Raises:
        ValueError: There are fewer than 4 positions.
    """
    left, right = centered_gram(a).flatten(1), centered_gram(b).flatten(1)
    return row_cosines(left, right)


def centered_gram(states: Tensor) -> Tensor:
    """Compute the U-centered inner products of the positions, ``[A, P, H] -> [A, P, P]`` float64.

    Szekely & Rizzo, "Partial distance correlation with methods for dissimilarities", Annals of Statistics 2014 (definition 2): the
    inner product of two such matrices is P (P - 3) times the unbiased HSIC_1.
    """
    states = to_float64(states - states.mean(-2, keepdim=True))  # does not change the result and reduces cancellation
    count = states.shape[-2]
    if count < 4:
        raise ValueError(f"unbiased CKA needs at least 4 positions, but got {count}; use more text")
    gram = states @ states.mT
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    rows = gram.sum(-1, keepdim=True)
    gram = gram - rows / (count - 2) - rows.mT / (count - 2) + rows.sum(-2, keepdim=True) / ((count - 1) * (count - 2))
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    return gram


def row_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Compute the cosine of every row with every other, ``[A, K], [D, K] -> [A, D]``; NaN where a row has zero norm."""
    lengths = a.norm(dim=1)[:, None] * b.norm(dim=1)
    return torch.where(lengths > 0, a @ b.T / lengths, torch.nan)


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Average over positions the cosine between two models' states of the same position, ``[..., P, H] -> [...]``."""
    return F.cosine_similarity(to_float64(a), to_float64(b), dim=-1).mean(-1)


def mean_pairwise_cosine(states: Tensor) -> Tensor:
    """Average ``mean_cosine`` over all pairs of A >= 2 models, ``[A, P, H] -> []``."""
    directions, count = F.normalize(to_float64(states), dim=-1), len(states)
    return ((directions.sum(0).pow(2).sum(-1) - directions.pow(2).sum((0, -1))) / (count * (count - 1))).mean()


def anisotropy(states: Tensor) -> Tensor:
    """Compute the mean cosine between the states of two different positions, ``[..., P, H] -> [...]``.

    It is about 0 if directions are uniformly distributed and 1 if all states have the same direction.
    """
    directions = F.normalize(to_float64(states), dim=-1)
    count = directions.shape[-2]
    return (directions.sum(-2).pow(2).sum(-1) - directions.pow(2).sum((-2, -1))) / (count * (count - 1))


def effective_rank(states: Tensor) -> Tensor:
    """Compute the effective rank, exp of the entropy of the normalized singular values, ``[..., P, H] -> [...]``.

    Roy & Vetterli, "The effective rank", EUSIPCO 2007. The states are not centered. The result is NaN if the states are zero or not
    finite.
    """
    finite = states.isfinite().flatten(-2).all(-1)
    values = torch.linalg.svdvals(to_float64(torch.where(finite[..., None, None], states, 0)).cpu())
    return torch.where(finite.cpu(), exp_entropy(values), torch.nan)


def exp_entropy(values: Tensor) -> Tensor:
    """Compute exp of the entropy of normalized values, ``[..., K] -> [...]``; NaN where all values are zero."""
    share = values / values.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


# Hidden states per layer: changes from the pretrained model, and differences between clients.

HIDDEN_GROUP = "hidden"

HIDDEN_POSITIONS = 1024  # compared tokens, each in its context
MIN_POSITIONS = 4  # minimum number of positions for unbiased CKA


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """Compare hidden states between models on the same passages.

    Each layer is a domain (``layer 03``), and the domain "" is the mean over layers. The functions above define the measures.

    Server's model; with several models, the mean over all clients:

    - ``hidden.cosine.pretrained``: mean cosine with the pretrained model's state of the same position.
    - ``hidden.cka.pretrained``: debiased linear CKA with the pretrained model.
    - ``hidden.anisotropy``: mean cosine between positions.
    - ``hidden.rank``: effective rank; ``hidden.rank.ratio``: the rank divided by the pretrained model's.

    Clients after local training, before aggregation:

    - ``hidden.cosine.server``, ``hidden.cka.server`` ``[C]``: similarity of each client to the server's new model.
    - ``hidden.cosine.clients``, ``hidden.cka.clients``: means over pairs of clients.

    1,024 positions are compared, or all if there are fewer; the first two positions of a text block are skipped. One evaluation processes
    the passages M + C times, which are about 1,060 tokens in text blocks of 64 tokens. It needs no output layer and no gradient. It holds
    the states of the pretrained model and of the server's models in memory: layers x 1,024 x width numbers per model, 71 MB for
    SmolLM2-135M. The clients' states are held for one layer at a time, with 8 MB plus some copies for each client's 1,024 x 1,024
    inner products.
    """

    model: StackedModel
    initial_params: Tree  # [1, ...] initial trained parameters, with which the model is the pretrained one
    passages: Passages
    pretrained_states: dict[int, Tensor] = field(default_factory=dict, repr=False)  # layer -> pretrained states [1, P, H]

    def __call__(self, result: RoundResult) -> MetricValues:
        """Compute the metrics of the server's models and of the clients' models."""
        server = self.compute_states(server_models(result.after))
        return self.server_metrics(server, result.after) | self.client_metrics(server, result)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Compute the metrics that need only the server's models."""
        return self.server_metrics(self.compute_states(server_models(state)), state)

    def server_metrics(self, states: dict[int, Tensor], state: FederatedState) -> MetricValues:
        """Compare states of the server's models, ``[M, P, H]`` per layer, with the pretrained model."""
        if not self.pretrained_states:
            self.pretrained_states.update(self.compute_states(self.initial_params))
        by_metric: dict[str, list[Tensor]] = {}
        for layer, layer_states in states.items():
            pretrained = self.pretrained_states[layer]  # [1, P, H]
            rank = effective_rank(layer_states)
            for name, value in {
                "hidden.cosine.pretrained": mean_cosine(layer_states, pretrained),
                "hidden.cka.pretrained": cka(layer_states, pretrained)[:, 0],
                "hidden.anisotropy": anisotropy(layer_states),
                "hidden.rank": rank,
                "hidden.rank.ratio": rank / effective_rank(pretrained),
            }.items():
                by_metric.setdefault(name, []).append(mean_over_models(value, state))
        return {key: value for name, values in by_metric.items() for key, value in layer_metrics(name, torch.stack(values)).items()}

    def client_metrics(self, server_states: dict[int, Tensor], result: RoundResult) -> MetricValues:
        """Compare the clients' states with the server's states, ``[M, P, H]`` per layer, and with each other."""
        trained = trained_mask(result)
        rows = trained.nonzero().flatten()
        if not len(rows):
            return {}
        cluster_ids = result.after.cluster_ids[result.cohort].cpu()[rows]
        pairs = torch.ones(len(rows), len(rows)).triu(1).bool()
        to_server = {name: torch.full((len(server_states), len(rows)), torch.nan, dtype=torch.float64) for name in ("cosine", "cka")}
        between = {name: torch.full((len(server_states),), torch.nan, dtype=torch.float64) for name in to_server}

        def visit(layer: int, states: Tensor) -> None:
            client_states, layer_states = self.select_positions(states)[rows.to(states.device)], server_states[layer].to(states.device)
            client_grams = centered_gram(client_states).flatten(1)  # [C, P * P]
            similarity = row_cosines(client_grams, centered_gram(layer_states).flatten(1)).cpu()  # [C, M]
            to_server["cka"][layer] = similarity[torch.arange(len(rows)), cluster_ids]
            to_server["cosine"][layer] = mean_cosine(client_states, layer_states[cluster_ids.to(layer_states.device)]).cpu()
            if len(rows) > 1:
                between["cka"][layer] = row_cosines(client_grams, client_grams).cpu()[pairs].mean()
                between["cosine"][layer] = mean_pairwise_cosine(client_states).cpu()

        from ..models.introspection import visit_hidden_states  # imports transformers, which a recorder of other loops does without

        visit_hidden_states(self.model, client_models(result), self.passages.tokens.to(self.model.device), visit)
        metrics: MetricValues = {}
        for name, by_layer in to_server.items():
            metrics |= {
                (f"hidden.{name}.server", layer_name(layer)): scatter_clients(values, trained) for layer, values in enumerate(by_layer)
            }
            metrics[f"hidden.{name}.server"] = scatter_clients(by_layer.mean(0), trained)
            if len(rows) > 1:
                metrics |= layer_metrics(f"hidden.{name}.clients", between[name])
        return metrics

    def compute_states(self, params: Tree) -> dict[int, Tensor]:
        """Compute the states of A models at the evaluated positions, ``[A, P, H]`` per layer."""
        from ..models.introspection import visit_hidden_states

        by_layer: dict[int, Tensor] = {}
        visit_hidden_states(
            self.model,
            params,
            self.passages.tokens.to(self.model.device),
            lambda layer, states: by_layer.__setitem__(layer, self.select_positions(states).clone()),
        )
        return by_layer

    def select_positions(self, states: Tensor) -> Tensor:
        """Select the evaluated positions, ``[A, B, T, H] -> [A, P, H]``."""
        return states.flatten(1, 2)[:, self.passages.positions.to(states.device)]


def layer_metrics(metric: str, values: Tensor) -> MetricValues:
    """Build metrics from ``values [L]``: one value per layer, and their mean for the whole model."""
    return {metric: values.mean(), **{(metric, layer_name(layer)): value for layer, value in enumerate(values)}}


def hidden_state_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Compare hidden states between models, with the expensive probes; with fewer than 4 positions nothing is measured."""
    passages = select_passages(context.held_out, HIDDEN_POSITIONS)
    if len(passages.positions) < MIN_POSITIONS:
        return []
    return [
        ScheduledProbe(
            "hidden",
            HiddenStates(context.model, context.initial_params, passages),
            "expensive",
            float((1 + context.cohort_size) * passages.tokens.numel()),
        )
    ]


# Attention: entropy of each head's weights, and their change from the pretrained model.

ATTENTION_GROUP = "attention"

ATTENTION_POSITIONS = 512  # queries per head


@dataclass(frozen=True, eq=False)
class AttentionProbe:
    """Entropy and change of attention weights per head, per layer and for the whole model.

    Heads are domains such as ``layer 03 head 01``. The value of a layer is the mean over its heads, and the value of the model is the
    mean over layers.

    - ``attention.entropy``: entropy of a query's weights divided by the log of the number of keys it may attend to. It is 1 for
      uniform weights and 0 if one key has all the weight.
    - ``attention.shift``: KL(current || pretrained) of the two models' weights, in nats.

    Both are means over the evaluated positions; with several models, over all clients. The weights are computed in a separate forward
    pass with a plain attention implementation. Training and evaluation keep the fast one. One evaluation processes the passages, which
    should have about 500 tokens, 2 M times: each of the M models together with the pretrained one. It holds the weights of one layer
    at a time: 2 models x sequences x heads x T x T numbers.
    """

    model: StackedModel
    initial_params: Tree  # [1, ...] initial trained parameters, with which the model is the pretrained one
    passages: Passages

    def __call__(self, result: RoundResult) -> MetricValues:
        """Compute the metrics of the server's models after the round."""
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Compute the metrics of the server's models."""
        models = server_models(state)
        by_model = [self.measure_heads(models.take(slice(index, index + 1))) for index in range(state.server.num_models)]
        metrics: MetricValues = {}
        for metric, values in zip(("attention.entropy", "attention.shift"), mean_over_models(torch.stack(by_model), state), strict=True):
            metrics[metric] = values.mean()  # values [L, heads]
            for layer, heads in enumerate(values):
                metrics[metric, layer_name(layer)] = heads.mean()
                for head, value in enumerate(heads):
                    metrics[metric, f"{layer_name(layer)} head {head:02d}"] = value
        return metrics

    def measure_heads(self, params: Tree) -> Tensor:
        """Compute entropy and shift of each head of one model ``[1, ...]``, ``[2, L, heads]``."""
        by_layer: list[Tensor] = []

        def visit(layer: int, weights: Tensor) -> None:
            pretrained, current = weights
            mask = self.passages.mask.to(weights.device)
            by_layer.append(torch.stack([attention_entropy(current, mask), attention_shift(current, pretrained, mask)]).cpu())

        from ..models.introspection import visit_attention

        both = initial_model(self.initial_params, params).map(lambda initial, other: torch.cat([initial, other]), params)
        visit_attention(self.model, both, self.passages.tokens.to(self.model.device), visit)
        return torch.stack(by_layer, 1)


def attention_entropy(weights: Tensor, mask: Tensor) -> Tensor:
    """Average -sum a log a / log(number of allowed keys) over the evaluated positions.

    Position t may attend to the t + 1 positions up to itself. The first position has only one key and must be excluded by ``mask``.

    Args:
        weights: ``[B, heads, T, T]``.
        mask: Evaluated positions, ``[B, T]`` bool.

    Returns:
        Normalized entropies, ``[heads]``.
    """
    allowed = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    relative = torch.special.entr(to_float64(weights)).sum(-1) / to_float64(allowed).log()  # [B, heads, T]
    return mean_over_positions(relative, mask)


def attention_shift(now: Tensor, before: Tensor, mask: Tensor) -> Tensor:
    """Average KL(now || before) over the evaluated positions.

    Args:
        now: Current weights, ``[B, heads, T, T]``.
        before: Reference weights, ``[B, heads, T, T]``.
        mask: Evaluated positions, ``[B, T]`` bool.

    Returns:
        Divergences in nats, ``[heads]``.
    """
    now, before = to_float64(now), to_float64(before)
    tiny = torch.finfo(torch.float32).tiny  # keeps the divergence finite where a reference weight underflowed to 0
    divergence = torch.special.xlogy(now, now.clamp_min(tiny)) - torch.special.xlogy(now, before.clamp_min(tiny))
    return mean_over_positions(divergence.sum(-1), mask)


def mean_over_positions(values: Tensor, mask: Tensor) -> Tensor:
    """Average over the evaluated positions, ``[B, heads, T], [B, T] -> [heads]``."""
    selected = mask[:, None].expand_as(values)
    return torch.where(selected, values, 0.0).sum((0, 2)) / mask.sum()


def attention_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure how the attention weights of each head change, with the expensive probes; without text nothing is measured."""
    passages = select_passages(context.held_out, ATTENTION_POSITIONS)
    if not len(passages.positions):
        return []
    return [
        ScheduledProbe(
            "attention", AttentionProbe(context.model, context.initial_params, passages), "expensive", 2.0 * passages.tokens.numel()
        )
    ]
