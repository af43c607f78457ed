"""Measure linear mode connectivity: the loss barrier on the straight line between the weights of two models.

Frankle, Dziugaite, Roy & Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020, arXiv:1912.05671.
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

BARRIER_POSITIONS = 512  # evaluated tokens


@dataclass(frozen=True, eq=False)
class LossBarriers:
    """Loss barriers between models of a round, in nats per token of the passages.

    - ``barrier.server`` ``[C]``: between each client's trained model and the server's new model; NaN for a client that failed.
    - ``barrier.clients``: mean over pairs of clients. Each client is paired with the next one in the cohort.

    The barrier is max_x L((1 - x) w_a + x w_b) - ((1 - x) L(w_a) + x L(w_b)). The values of x are ``num_points`` equally spaced
    points from 0 to 1. The barrier is never negative, because it is 0 at both ends. Complete weights are interpolated, not the factors of
    adapters; see ``interpolate``.

    One evaluation with C clients and M server models processes the passages C + M + (C + number of pairs)(``num_points`` - 2) times.
    The number of pairs is C, or 1 for two clients. With 5 points, 5 clients and 540 tokens this is 19,400 tokens. Only one
    interpolated model is in memory at a time.
    """

    model: LossModel
    passages: Passages
    num_points: int = 5

    def __call__(self, result: RoundResult) -> MetricValues:
        """Compute the barriers of a round; empty if no client trained."""
        trained = trained_mask(result)
        rows = trained.nonzero().flatten().tolist()
        if not rows:
            return {}
        client_models = {row: client_model(result, row) for row in rows}
        client_losses = {row: self.mean_loss(model) for row, model in client_models.items()}
        cluster_ids = result.after.cluster_ids[result.cohort].tolist()
        server = server_models(result.after)
        server_by_cluster = {cluster: server.take(slice(cluster, cluster + 1)) for cluster in {cluster_ids[row] for row in rows}}
        server_losses = {cluster: self.mean_loss(model) for cluster, model in server_by_cluster.items()}
        metrics: MetricValues = {
            "barrier.server": scatter_clients(
                torch.tensor(
                    [
                        self.barrier_between(
                            client_models[row], server_by_cluster[cluster_ids[row]], client_losses[row], server_losses[cluster_ids[row]]
                        )
                        for row in rows
                    ],
                    dtype=torch.float64,
                ),
                trained,
            )
        }
        pairs = list(zip(rows, rows[1:] + rows[:1], strict=True))[: len(rows) if len(rows) > 2 else len(rows) - 1]
        if pairs:
            barriers = [
                self.barrier_between(client_models[first], client_models[second], client_losses[first], client_losses[second])
                for first, second in pairs
            ]
            metrics["barrier.clients"] = sum(barriers) / len(barriers)
        return metrics

    def forward_tokens(self, num_clients: int) -> float:
        """Count the tokens that one evaluation with ``num_clients`` clients and one server model processes."""
        pairs = num_clients if num_clients > 2 else num_clients - 1
        return float(self.passages.tokens.numel() * (num_clients + 1 + (num_clients + pairs) * (self.num_points - 2)))

    def barrier_between(self, a: Tree, b: Tree, loss_a: float, loss_b: float) -> float:
        """Compute the barrier between two models ``[1, ...]`` with known losses."""
        inner_losses = [self.mean_loss(interpolate(a, b, x)) for x in torch.linspace(0, 1, self.num_points).tolist()[1:-1]]
        return barrier_height(torch.tensor([loss_a, *inner_losses, loss_b], dtype=torch.float64)).item()

    def mean_loss(self, params: Tree) -> float:
        """Compute the loss of one model ``[1, ...]`` on the passages."""
        return passage_loss(self.model, params, self.passages)


@torch.no_grad()
def passage_loss(model: LossModel, params: Tree, text_passages: Passages) -> float:
    """Compute the loss of one model ``[1, ...]`` on the passages, in nats per evaluated token."""
    device = params.device
    total, _ = model.sequence_losses(params, text_passages.tokens[None].to(device), text_passages.mask[None].to(device))
    return total.double().sum().item() / int(text_passages.mask[:, 1:].sum())


def barrier_height(losses: Tensor) -> Tensor:
    """Compute the largest height of losses ``[K]``, at equally spaced points of a line, above the chord between the ends."""
    x = torch.linspace(0, 1, len(losses), dtype=losses.dtype)
    return (losses - ((1 - x) * losses[0] + x * losses[-1])).amax()


def interpolate(a: Tree, b: Tree, fraction: float) -> Tree:
    """Interpolate the complete weights of two models.

    For adapters, the result is (1 - x) B_a A_a + x B_b A_b. This is an adapter of rank 2 R, with A = [A_a; A_b] and
    B = [(1 - x) B_a, x B_b]. Interpolating A and B separately would give a different model.

    Args:
        a: First model, ``[1, ...]``.
        b: Second model, ``[1, ...]``.
        fraction: Position x on the line, from 0 (``a``) to 1 (``b``).

    Returns:
        The interpolated model, ``[1, ...]``. Its adapters are used with the same scale.
    """
    model = Tree()
    for name, leaf in a.items():
        other = b[name]
        if name.endswith(".A") and name[:-1] + "B" in a:
            model[name] = torch.cat([leaf, other], dim=1)  # [1, 2R, I]
        elif name.endswith(".B") and name[:-1] + "A" in a:
            model[name] = torch.cat([(1 - fraction) * leaf, fraction * other], dim=2)  # [1, O, 2R]
        else:
            model[name] = (1 - fraction) * leaf + fraction * other
    return model


def barrier_probes(context: ProbeContext) -> list[ScheduledProbe | DerivedMetric]:
    """Measure the loss on the line between two models, with the expensive probes; without text nothing is measured."""
    passages = select_passages(context.held_out, BARRIER_POSITIONS)
    if not len(passages.positions):
        return []
    probe = LossBarriers(context.model, passages)
    return [ScheduledProbe("barriers", probe, "expensive", probe.forward_tokens(context.cohort_size))]
