"""Linear mode connectivity: is there a hill of loss on the straight line between two models?

Frankle, Dziugaite, Roy & Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020,
arXiv:1912.05671.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.tree import Tree
from ..core.types import RoundResult
from .base import DerivedMetric, MetricValues, ScheduledProbe
from .context import Passages, ProbeContext, client_model, select_passages, server_models, trained_mask
from .losses import LossModel
from .updates import scatter_clients

BARRIERS_GROUP = "barriers"

BARRIER_POSITIONS = 512  # tokens whose loss counts


@dataclass(frozen=True, eq=False)
class LossBarriers:
    """``barrier.server``, one a client: between its model as trained and the server's new one; ``barrier.clients``: the
    mean over pairs of clients, each with the next in the cohort.

    max over x of L((1 - x) w_a + x w_b) - ((1 - x) L(w_a) + x L(w_b)), in nats per token of the passages, x in ``num_points``
    equal steps from 0 to 1 (the ends are 0, so it is never below). Weights are interpolated, not the factors of
    adapters: see ``interpolate``.

    A look with C clients reads the passages C + M + (2 C or, for 2 clients, 3) (points - 2) times with the head: with 5
    points, 5 clients and 540 tokens 19,400 tokens. One model is in memory at a time. A client that failed is NaN.
    """

    model: LossModel
    passages: Passages
    num_points: int = 5

    def __call__(self, result: RoundResult) -> MetricValues:
        there = trained_mask(result)
        rows = there.nonzero().flatten().tolist()
        if not rows:
            return {}
        locals_ = {row: client_model(result, row) for row in rows}
        ends = {row: self.mean_loss(model) for row, model in locals_.items()}
        groups = result.after.cluster_ids[result.cohort].tolist()
        server = server_models(result.after)
        models = {group: server.take(slice(group, group + 1)) for group in {groups[row] for row in rows}}
        losses = {group: self.mean_loss(model) for group, model in models.items()}
        reading: MetricValues = {
            "barrier.server": scatter_clients(
                torch.tensor(
                    [self.barrier_between(locals_[row], models[groups[row]], ends[row], losses[groups[row]]) for row in rows],
                    dtype=torch.float64,
                ),
                there,
            )
        }
        pairs = list(zip(rows, rows[1:] + rows[:1], strict=True))[: len(rows) if len(rows) > 2 else len(rows) - 1]
        if pairs:
            found = [self.barrier_between(locals_[one], locals_[two], ends[one], ends[two]) for one, two in pairs]
            reading["barrier.clients"] = sum(found) / len(found)
        return reading

    def forward_tokens(self, num_clients: int) -> float:
        """Tokens that a look at so many clients sends forward, with one model of the server."""
        pairs = num_clients if num_clients > 2 else num_clients - 1
        return float(self.passages.tokens.numel() * (num_clients + 1 + (num_clients + pairs) * (self.num_points - 2)))

    def barrier_between(self, a: Tree, b: Tree, loss_a: float, loss_b: float) -> float:
        """The barrier between two models ``[1, ...]`` with these losses."""
        inner = [self.mean_loss(interpolate(a, b, x)) for x in torch.linspace(0, 1, self.num_points).tolist()[1:-1]]
        return barrier_height(torch.tensor([loss_a, *inner, loss_b], dtype=torch.float64)).item()

    def mean_loss(self, params: Tree) -> float:
        return passage_loss(self.model, params, self.passages)


@torch.no_grad()
def passage_loss(model: LossModel, params: Tree, text_passages: Passages) -> float:
    """Loss of one model ``[1, ...]`` on the passages, nats per token that counts."""
    where = next(iter(params.values())).device
    total, _ = model.sequence_losses(params, text_passages.tokens[None].to(where), text_passages.mask[None].to(where))
    return total.double().sum().item() / int(text_passages.mask[:, 1:].sum())


def barrier_height(losses: Tensor) -> Tensor:
    """The highest rise over the chord between the ends, of losses ``[K]`` at equal steps along a line."""
    x = torch.linspace(0, 1, len(losses), dtype=losses.dtype)
    return (losses - ((1 - x) * losses[0] + x * losses[-1])).amax()


def interpolate(a: Tree, b: Tree, fraction: float) -> Tree:
    """The model whose weights lie at ``fraction`` (x) between two models' ``[1, ...]``, to be worn as they are.

    For adapters that is (1 - x) B_a A_a + x B_b A_b, which is itself an adapter, of rank 2 R: A = [A_a; A_b] and
    B = [(1 - x) B_a, x B_b]. Interpolating A and B apart would be another model.
    """
    found = Tree()
    for name, leaf in a.items():
        other = b[name]
        if name.endswith(".A") and name[:-1] + "B" in a:
            found[name] = torch.cat([leaf, other], dim=1)  # [1, 2R, I]
        elif name.endswith(".B") and name[:-1] + "A" in a:
            found[name] = torch.cat([(1 - fraction) * leaf, fraction * other], dim=2)  # [1, O, 2R]
        else:
            found[name] = (1 - fraction) * leaf + fraction * other
    return found


def barrier_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Barriers, whenever expensive probes run."""
    text = select_passages(context.held_out, BARRIER_POSITIONS)
    if not len(text.positions):
        return []
    probe = LossBarriers(context.model, text)
    return [ScheduledProbe("barriers", probe, "expensive", probe.forward_tokens(context.cohort_size))]
