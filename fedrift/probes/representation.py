"""How alike two representations are, and how much room one takes: pure functions of hidden states.

States are ``[..., P, H]``: P token positions (one a row, never pooled over a text), H wide.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.tree import Tree, to_float64
from ..core.types import FederatedState, RoundResult
from ..models.introspection import visit_attention, visit_hidden_states
from ..models.stacked_model import StackedModel
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


def cka(a: Tensor, b: Tensor) -> Tensor:
    """Debiased linear CKA of every representation with every other, ``[A, P, H], [D, P, G] -> [A, D]``.

    HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)) with the unbiased estimator HSIC_1 of Song, Smola, Gretton, Bedo &
    Borgwardt, "Feature Selection via Dependence Maximization", JMLR 2012 (equation 5); CKA is Kornblith, Norouzi, Lee &
    Hinton, ICML 2019, arXiv:1905.00414. 1 if one is the other rotated and scaled, 0 on average if they are independent,
    and below 0 by chance; without the correction independent states of width 128 have 0.67 at 64 positions.
    """
    left, right = centered_gram(a).flatten(1), centered_gram(b).flatten(1)
    return row_cosines(left, right)


def centered_gram(states: Tensor) -> Tensor:
    """U-centred inner products of the positions, ``[A, P, H] -> [A, P, P]``, float64.

    Szekely & Rizzo, "Partial distance correlation with methods for dissimilarities", Annals of Statistics 2014
    (definition 2): the inner product of two such matrices is P (P - 3) times the unbiased HSIC_1.
    """
    states = to_float64(states - states.mean(-2, keepdim=True))  # moves no result, and keeps digits
    count = states.shape[-2]
    if count < 4:
        raise ValueError(f"wanted at least 4 positions, got {count}")
    gram = states @ states.mT
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    rows = gram.sum(-1, keepdim=True)
    gram = gram - rows / (count - 2) - rows.mT / (count - 2) + rows.sum(-2, keepdim=True) / ((count - 1) * (count - 2))
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    return gram


def row_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row with every other, ``[A, K], [D, K] -> [A, D]``; NaN where one has no length."""
    lengths = a.norm(dim=1)[:, None] * b.norm(dim=1)
    return torch.where(lengths > 0, a @ b.T / lengths, torch.nan)


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean over positions of the cosine of a position's two states, ``[..., P, H] -> [...]``."""
    return F.cosine_similarity(to_float64(a), to_float64(b), dim=-1).mean(-1)


def mean_pairwise_cosine(states: Tensor) -> Tensor:
    """``mean_cosine``, the mean over the pairs of A models, ``[A, P, H] -> []``, A at least 2."""
    way, count = F.normalize(to_float64(states), dim=-1), len(states)
    return ((way.sum(0).pow(2).sum(-1) - way.pow(2).sum((0, -1))) / (count * (count - 1))).mean()


def anisotropy(states: Tensor) -> Tensor:
    """Mean cosine of the states of two positions, ``[..., P, H] -> [...]``: 0 if they point everywhere, 1 if one way."""
    way = F.normalize(to_float64(states), dim=-1)
    count = way.shape[-2]
    return (way.sum(-2).pow(2).sum(-1) - way.pow(2).sum((-2, -1))) / (count * (count - 1))


def effective_rank(states: Tensor) -> Tensor:
    """exp of the entropy of the singular values' shares, ``[..., P, H] -> [...]``; NaN of what is zero or not finite.

    Roy & Vetterli, "The effective rank", EUSIPCO 2007. Of the states as they are, not centred.
    """
    sound = states.isfinite().flatten(-2).all(-1)
    values = torch.linalg.svdvals(to_float64(torch.where(sound[..., None, None], states, 0)).cpu())
    return torch.where(sound.cpu(), exp_entropy(values), torch.nan)


def exp_entropy(values: Tensor) -> Tensor:
    """How many equal values would spread as evenly, ``[..., K] -> [...]``; NaN where all are zero."""
    share = values / values.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


# Hidden states, layer by layer: how far they have moved from the pretrained model's, and the clients' from each other.

HIDDEN_GROUP = "hidden"

HIDDEN_POSITIONS = 1024  # tokens in their context that are compared
MIN_POSITIONS = 4  # that say anything about likeness


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """Each layer is a domain (``layer 03``), and "" the mean over the layers; the same passages for every model.

    Of the server's model (of several, the mean over the fleet): ``hidden.cosine.pretrained``, the mean cosine of a
    position's state with the same position's in the pretrained model; ``hidden.cka.pretrained``, debiased linear CKA of
    the two; ``hidden.anisotropy``; ``hidden.rank``, the effective rank, and ``hidden.rank.ratio``, to the pretrained
    model's. Of the clients as trained, before aggregation: ``hidden.cosine.server`` and ``hidden.cka.server`` with the
    server's new model, one a client; ``hidden.cosine.clients`` and ``hidden.cka.clients``, means over pairs of clients. See the
    functions above for each measure.

    Positions are tokens in their context, 1,024 if there are as many; the first two of a block do not count. A look
    reads (M + C) times the tokens of the passages, about 1,060 at 64 a block: no head, no gradient. The states of
    the pretrained and the server's models are kept while it looks (layers x 1,024 x width numbers each, 71 MB for
    SmolLM2-135M), the clients' one layer at a time, with 8 MB and some copies for each client's 1,024 x 1,024 products.
    """

    model: StackedModel
    initial_params: Tree  # [1, ...] the pretrained model, as it is worn
    passages: Passages
    pretrained_states: dict[int, Tensor] = field(default_factory=dict, repr=False)  # layer -> its states in the pretrained model [1, P, H]

    def __call__(self, result: RoundResult) -> MetricValues:
        server = self.compute_states(server_models(result.after))
        return self.server_metrics(server, result.after) | self.client_metrics(server, result)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """What is to be said of the server's models alone."""
        return self.server_metrics(self.compute_states(server_models(state)), state)

    def server_metrics(self, states: dict[int, Tensor], state: FederatedState) -> MetricValues:
        if not self.pretrained_states:
            self.pretrained_states.update(self.compute_states(self.initial_params))
        found: dict[str, list[Tensor]] = {}
        for layer, now in states.items():
            before = self.pretrained_states[layer]  # [1, P, H]
            rank = effective_rank(now)
            for name, value in {
                "hidden.cosine.pretrained": mean_cosine(now, before),
                "hidden.cka.pretrained": cka(now, before)[:, 0],
                "hidden.anisotropy": anisotropy(now),
                "hidden.rank": rank,
                "hidden.rank.ratio": rank / effective_rank(before),
            }.items():
                found.setdefault(name, []).append(mean_over_models(value, state))
        return {key: value for name, values in found.items() for key, value in layer_metrics(name, torch.stack(values)).items()}

    def client_metrics(self, server_states: dict[int, Tensor], result: RoundResult) -> MetricValues:
        there = trained_mask(result)
        rows = there.nonzero().flatten()
        if not len(rows):
            return {}
        shared = result.after.cluster_ids[result.cohort].cpu()[rows]
        pairs = torch.ones(len(rows), len(rows)).triu(1).bool()
        found = {name: torch.full((len(server_states), len(rows)), torch.nan, dtype=torch.float64) for name in ("cosine", "cka")}
        between = {name: torch.full((len(server_states),), torch.nan, dtype=torch.float64) for name in found}

        def see(layer: int, states: Tensor) -> None:
            ours, models = self.select_positions(states)[rows.to(states.device)], server_states[layer].to(states.device)
            clients = centered_gram(ours).flatten(1)  # [C, P * P]
            own = row_cosines(clients, centered_gram(models).flatten(1)).cpu()  # [C, M]
            found["cka"][layer] = own[torch.arange(len(rows)), shared]
            found["cosine"][layer] = mean_cosine(ours, models[shared.to(models.device)]).cpu()
            if len(rows) > 1:
                between["cka"][layer] = row_cosines(clients, clients).cpu()[pairs].mean()
                between["cosine"][layer] = mean_pairwise_cosine(ours).cpu()

        visit_hidden_states(self.model, client_models(result), self.passages.tokens.to(self.model.device), see)
        reading: MetricValues = {}
        for name, each in found.items():
            reading |= {(f"hidden.{name}.server", layer_name(layer)): scatter_clients(values, there) for layer, values in enumerate(each)}
            reading[f"hidden.{name}.server"] = scatter_clients(each.mean(0), there)
            if len(rows) > 1:
                reading |= layer_metrics(f"hidden.{name}.clients", between[name])
        return reading

    def compute_states(self, params: Tree) -> dict[int, Tensor]:
        """The states of A models at the places that count, ``[A, P, H]`` a layer."""
        found: dict[int, Tensor] = {}
        visit_hidden_states(
            self.model,
            params,
            self.passages.tokens.to(self.model.device),
            lambda layer, states: found.__setitem__(layer, self.select_positions(states).clone()),
        )
        return found

    def select_positions(self, states: Tensor) -> Tensor:
        """``[A, B, T, H] -> [A, P, H]``."""
        return states.flatten(1, 2)[:, self.passages.positions.to(states.device)]


def layer_metrics(metric: str, values: Tensor) -> MetricValues:
    """``values [L]`` as a reading: each layer's and, as a whole, their mean."""
    return {metric: values.mean(), **{(metric, layer_name(layer)): value for layer, value in enumerate(values)}}


def hidden_state_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Hidden states, whenever expensive probes run, if there is text enough; for a cohort and one model of the server."""
    text = select_passages(context.held_out, HIDDEN_POSITIONS)
    if len(text.positions) < MIN_POSITIONS:
        return []
    return [
        ScheduledProbe(
            "hidden",
            HiddenStates(context.model, context.initial_params, text),
            "expensive",
            float((1 + context.cohort_size) * text.tokens.numel()),
        )
    ]


# Attention: how widely each head looks, and how far its looking has moved from the pretrained model's.

ATTENTION_GROUP = "attention"

ATTENTION_POSITIONS = 512  # queries of each head


@dataclass(frozen=True, eq=False)
class AttentionProbe:
    """Of each head (``layer 03 head 01``), each layer (the mean over its heads) and the whole (the mean over layers):

    ``attention.entropy``, of the weights that a position gives to itself and those before it, divided by the log of
    how many they are: 1 if it looks at all alike, 0 if at one alone. ``attention.shift``: the divergence
    KL(now || pretrained) of the two models' weights, in nats. Both are means over the positions that count; of several
    models, the mean over the fleet.

    The weights are had from a separate pass in which attention is computed plainly; training and evaluation go on in the
    fast one. A look reads (1 + M) times the tokens of its passages, which should be some 500. One layer's weights are in
    memory at a time: models x blocks x heads x T x T numbers.
    """

    model: StackedModel
    initial_params: Tree  # [1, ...] the pretrained model, as it is worn
    passages: Passages

    def __call__(self, result: RoundResult) -> MetricValues:
        return self.evaluate_state(result.after)

    def evaluate_state(self, state: FederatedState) -> MetricValues:
        """Of the server's models."""
        models = server_models(state)
        each = [self.measure_heads(models.take(slice(number, number + 1))) for number in range(state.server.num_models)]
        reading: MetricValues = {}
        for metric, values in zip(("attention.entropy", "attention.shift"), mean_over_models(torch.stack(each), state), strict=True):
            reading[metric] = values.mean()  # values [L, heads]
            for layer, heads in enumerate(values):
                reading[metric, layer_name(layer)] = heads.mean()
                for head, value in enumerate(heads):
                    reading[metric, f"{layer_name(layer)} head {head:02d}"] = value
        return reading

    def measure_heads(self, params: Tree) -> Tensor:
        """Entropy and shift of each head of one model ``[1, ...]``: ``[2, L, heads]``."""
        found: list[Tensor] = []

        def see(layer: int, weights: Tensor) -> None:
            before, now = weights
            counts = self.passages.mask.to(weights.device)
            found.append(torch.stack([attention_entropy(now, counts), attention_shift(now, before, counts)]).cpu())

        both = initial_model(self.initial_params, params).map(lambda one, other: torch.cat([one, other]), params)
        visit_attention(self.model, both, self.passages.tokens.to(self.model.device), see)
        return torch.stack(found, 1)


def attention_entropy(weights: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions that count of -sum a log a / log(allowed keys), ``[B, heads, T, T], [B, T] -> [heads]``.

    Position t may look at the t + 1 positions up to itself; the first, that has no choice, must not count.
    """
    allowed = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    share = torch.special.entr(to_float64(weights)).sum(-1) / to_float64(allowed).log()  # [B, heads, T]
    return mean_over_positions(share, mask)


def attention_shift(now: Tensor, before: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions that count of KL(now || before), ``[B, heads, T, T] twice, [B, T] -> [heads]``."""
    now, before = to_float64(now), to_float64(before)
    tiny = torch.finfo(torch.float32).tiny  # a weight that underflowed is not a proof of impossibility
    apart = torch.special.xlogy(now, now.clamp_min(tiny)) - torch.special.xlogy(now, before.clamp_min(tiny))
    return mean_over_positions(apart.sum(-1), mask)


def mean_over_positions(values: Tensor, mask: Tensor) -> Tensor:
    """``[B, heads, T], [B, T] -> [heads]``: the mean over the positions that count."""
    chosen = mask[:, None].expand_as(values)
    return torch.where(chosen, values, 0.0).sum((0, 2)) / mask.sum()


def attention_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Attention, whenever expensive probes run; for one model of the server."""
    text = select_passages(context.held_out, ATTENTION_POSITIONS)
    if not len(text.positions):
        return []
    return [
        ScheduledProbe("attention", AttentionProbe(context.model, context.initial_params, text), "expensive", 2.0 * text.tokens.numel())
    ]
