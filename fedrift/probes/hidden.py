"""Hidden states, layer by layer: how far they have moved from the pretrained model's, and the clients' from each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models.inside import watch_states
from ..models.stacked import StackedModel
from ..tree import Tree
from ..values import Round, State
from .bench import Bench
from .panel import After, Look
from .passages import Passages, passages
from .probe import Reading
from .representation import alike, alike_in_pairs, anisotropy, centred_products, cka, cosines, effective_rank
from .update import scattered
from .worn import client_models, layer_name, mean_model, server_models, sound

GROUP = "hidden"

POSITIONS = 1024  # tokens in their context that are compared
LEAST = 4  # that say anything about likeness


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """Each layer is a domain (``layer 03``), and "" the mean over the layers; the same passages for every model.

    Of the server's model (of several, the mean over the fleet): ``hidden.cosine.pretrained``, the mean cosine of a
    position's state with the same position's in the pretrained model; ``hidden.cka.pretrained``, debiased linear CKA of
    the two; ``hidden.anisotropy``; ``hidden.rank``, the effective rank, and ``hidden.rank.ratio``, to the pretrained
    model's. Of the clients as trained, before aggregation: ``hidden.cosine.server`` and ``hidden.cka.server`` with the
    server's new model, one a client; ``hidden.cosine.clients`` and ``hidden.cka.clients``, means over pairs of clients. See
    ``representation.py`` for each measure.

    Positions are tokens in their context, 1,024 if there are as many; the first two of a block do not count. A look
    reads (M + C) times the tokens of the passages, about 1,060 at 64 a block: no head, no gradient. The states of
    the pretrained and the server's models are kept while it looks (layers x 1,024 x width numbers each, 71 MB for
    SmolLM2-135M), the clients' one layer at a time, with 8 MB and some copies for each client's 1,024 x 1,024 products.
    """

    model: StackedModel
    start: Tree  # [1, ...] the pretrained model, as it is worn
    passages: Passages
    kept: dict[int, Tensor] = field(default_factory=dict, repr=False)  # layer -> its states in the pretrained model [1, P, H]

    def __call__(self, done: Round) -> Reading:
        server = self.states(server_models(done.after))
        return self.of_server(server, done.after) | self.of_clients(server, done)

    def of(self, state: State) -> Reading:
        """What is to be said of the server's models alone."""
        return self.of_server(self.states(server_models(state)), state)

    def of_server(self, states: dict[int, Tensor], state: State) -> Reading:
        if not self.kept:
            self.kept.update(self.states(self.start))
        found: dict[str, list[Tensor]] = {}
        for layer, now in states.items():
            before = self.kept[layer]  # [1, P, H]
            rank = effective_rank(now)
            for name, value in {
                "hidden.cosine.pretrained": alike(now, before),
                "hidden.cka.pretrained": cka(now, before)[:, 0],
                "hidden.anisotropy": anisotropy(now),
                "hidden.rank": rank,
                "hidden.rank.ratio": rank / effective_rank(before),
            }.items():
                found.setdefault(name, []).append(mean_model(value, state))
        return {key: value for name, values in found.items() for key, value in by_layer(name, torch.stack(values)).items()}

    def of_clients(self, server: dict[int, Tensor], done: Round) -> Reading:
        there = sound(done)
        rows = there.nonzero().flatten()
        if not len(rows):
            return {}
        shared = done.after.group[done.cohort].cpu()[rows]
        pairs = torch.ones(len(rows), len(rows)).triu(1).bool()
        found = {name: torch.full((len(server), len(rows)), torch.nan, dtype=torch.float64) for name in ("cosine", "cka")}
        between = {name: torch.full((len(server),), torch.nan, dtype=torch.float64) for name in found}

        def see(layer: int, states: Tensor) -> None:
            ours, models = self.placed(states)[rows.to(states.device)], server[layer].to(states.device)
            clients = centred_products(ours).flatten(1)  # [C, P * P]
            own = cosines(clients, centred_products(models).flatten(1)).cpu()  # [C, M]
            found["cka"][layer] = own[torch.arange(len(rows)), shared]
            found["cosine"][layer] = alike(ours, models[shared.to(models.device)]).cpu()
            if len(rows) > 1:
                between["cka"][layer] = cosines(clients, clients).cpu()[pairs].mean()
                between["cosine"][layer] = alike_in_pairs(ours).cpu()

        watch_states(self.model, client_models(done), self.passages.tokens.to(self.model.device), see)
        reading: Reading = {}
        for name, each in found.items():
            reading |= {(f"hidden.{name}.server", layer_name(layer)): scattered(values, there)
                        for layer, values in enumerate(each)}
            reading[f"hidden.{name}.server"] = scattered(each.mean(0), there)
            if len(rows) > 1:
                reading |= by_layer(f"hidden.{name}.clients", between[name])
        return reading

    def states(self, params: Tree) -> dict[int, Tensor]:
        """The states of A models at the places that count, ``[A, P, H]`` a layer."""
        found: dict[int, Tensor] = {}
        watch_states(self.model, params, self.passages.tokens.to(self.model.device),
                     lambda layer, states: found.__setitem__(layer, self.placed(states).clone()))
        return found

    def placed(self, states: Tensor) -> Tensor:
        """``[A, B, T, H] -> [A, P, H]``."""
        return states.flatten(1, 2)[:, self.passages.places.to(states.device)]


def by_layer(metric: str, values: Tensor) -> Reading:
    """``values [L]`` as a reading: each layer's and, as a whole, their mean."""
    return {metric: values.mean(), **{(metric, layer_name(layer)): value for layer, value in enumerate(values)}}


def looks(bench: Bench) -> list[Look | After]:
    """Hidden states, whenever deep looks are taken, if there is text enough; for a cohort and one model of the server."""
    text = passages(bench.held_out, POSITIONS)
    if len(text.places) < LEAST:
        return []
    return [Look("hidden", HiddenStates(bench.model, bench.start, text), "deep", float((1 + bench.cohort) * text.tokens.numel()))]
