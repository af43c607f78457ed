"""Linear mode connectivity: is there a hill of loss on the straight line between two models?

Frankle, Dziugaite, Roy & Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020,
arXiv:1912.05671.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tree import Tree
from ..values import Round
from .bench import Bench
from .loss import Judge
from .panel import After, Look
from .passages import Passages, passages
from .probe import Reading
from .update import scattered
from .worn import one_client, server_models, sound

GROUP = "barriers"

POSITIONS = 512  # tokens whose loss counts


@dataclass(frozen=True, eq=False)
class Barriers:
    """``barrier.server``, one a client: between its model as trained and the server's new one; ``barrier.clients``: the
    mean over pairs of clients, each with the next in the cohort.

    max over x of L((1 - x) w_a + x w_b) - ((1 - x) L(w_a) + x L(w_b)), in nats per token of the passages, x in ``points``
    equal steps from 0 to 1 (the ends are 0, so it is never below). Weights are interpolated, not the factors of
    adapters: see ``between``.

    A look with C clients reads the passages C + M + (2 C or, for 2 clients, 3) (points - 2) times with the head: with 5
    points, 5 clients and 540 tokens 19,400 tokens. One model is in memory at a time. A client that failed is NaN.
    """

    model: Judge
    passages: Passages
    points: int = 5

    def __call__(self, done: Round) -> Reading:
        there = sound(done)
        rows = there.nonzero().flatten().tolist()
        if not rows:
            return {}
        locals_ = {row: one_client(done, row) for row in rows}
        ends = {row: self.nats(model) for row, model in locals_.items()}
        groups = done.after.group[done.cohort].tolist()
        server = server_models(done.after)
        models = {group: server.rows(slice(group, group + 1)) for group in {groups[row] for row in rows}}
        losses = {group: self.nats(model) for group, model in models.items()}
        reading: Reading = {"barrier.server": scattered(torch.tensor(
            [self.along(locals_[row], models[groups[row]], ends[row], losses[groups[row]]) for row in rows],
            dtype=torch.float64), there)}
        pairs = list(zip(rows, rows[1:] + rows[:1], strict=True))[:len(rows) if len(rows) > 2 else len(rows) - 1]
        if pairs:
            found = [self.along(locals_[one], locals_[two], ends[one], ends[two]) for one, two in pairs]
            reading["barrier.clients"] = sum(found) / len(found)
        return reading

    def tokens(self, clients: int) -> float:
        """Tokens that a look at so many clients sends forward, with one model of the server."""
        pairs = clients if clients > 2 else clients - 1
        return float(self.passages.tokens.numel() * (clients + 1 + (clients + pairs) * (self.points - 2)))

    def along(self, one: Tree, two: Tree, first: float, last: float) -> float:
        """The barrier between two models ``[1, ...]`` with these losses."""
        inner = [self.nats(between(one, two, x)) for x in torch.linspace(0, 1, self.points).tolist()[1:-1]]
        return barrier(torch.tensor([first, *inner, last], dtype=torch.float64)).item()

    def nats(self, params: Tree) -> float:
        return nats(self.model, params, self.passages)


@torch.no_grad()
def nats(model: Judge, params: Tree, text: Passages) -> float:
    """Loss of one model ``[1, ...]`` on the passages, nats per token that counts."""
    where = next(iter(params.values())).device
    total, _ = model.sums(params, text.tokens[None].to(where), text.counts[None].to(where))
    return total.double().sum().item() / int(text.counts[:, 1:].sum())


def barrier(losses: Tensor) -> Tensor:
    """The highest rise over the chord between the ends, of losses ``[K]`` at equal steps along a line."""
    x = torch.linspace(0, 1, len(losses), dtype=losses.dtype)
    return (losses - ((1 - x) * losses[0] + x * losses[-1])).amax()


def between(one: Tree, two: Tree, x: float) -> Tree:
    """The model whose weights lie at ``x`` between two models' ``[1, ...]``, to be worn as they are.

    For adapters that is (1 - x) B_a A_a + x B_b A_b, which is itself an adapter, of rank 2 R: A = [A_a; A_b] and
    B = [(1 - x) B_a, x B_b]. Interpolating A and B apart would be another model.
    """
    found = Tree()
    for name, leaf in one.items():
        other = two[name]
        if name.endswith(".A") and name[:-1] + "B" in one:
            found[name] = torch.cat([leaf, other], dim=1)  # [1, 2R, I]
        elif name.endswith(".B") and name[:-1] + "A" in one:
            found[name] = torch.cat([(1 - x) * leaf, x * other], dim=2)  # [1, O, 2R]
        else:
            found[name] = (1 - x) * leaf + x * other
    return found


def looks(bench: Bench) -> list[Look | After]:
    """Barriers, whenever deep looks are taken."""
    text = passages(bench.held_out, POSITIONS)
    if not len(text.places):
        return []
    probe = Barriers(bench.model, text)
    return [Look("barriers", probe, "deep", probe.tokens(bench.cohort))]
