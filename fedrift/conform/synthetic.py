"""Synthetic(alpha, beta): the logistic regressions on which FedProx was shown, many federations side by side.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127, section 5.1. Devices and cohorts
are those of the authors' code (github.com/litian96/FedProx, data/synthetic_* and flearn/trainers/fedbase.py), draw by draw;
the split, the batches and the stragglers are drawn by fedrift's names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..seeds import numpy_stream
from ..streams import torch_stream
from ..tree import Tree

INPUTS, CLASSES, DEVICES = 60, 10, 30


@dataclass(frozen=True)
class World:
    """One federation of 30 devices, each with its first ``cap`` examples. ``alpha``, which is also beta, None is IID."""

    alpha: float | None
    seed: int
    cap: int = 200


def devices(world: World) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each device's inputs ``[n, 60]`` and labels ``[n]``.

    n_k = int(lognormal(4, 2)) + 50, u_k ~ N(0, alpha), B_k ~ N(0, beta), v_k ~ N(B_k, 1), W_k and b_k ~ N(u_k, 1),
    x ~ N(v_k, diag(j^-1.2)), y = argmax(x W_k + b_k); alpha and beta are standard deviations in the authors' code, variances
    in the paper. IID: one W and b ~ N(0, 1), v = 0. The order of the draws is theirs; they leave the seed open.
    """
    rng = np.random.RandomState(world.seed)
    sizes = rng.lognormal(4, 2, DEVICES).astype(int) + 50
    spread = np.arange(1, INPUTS + 1) ** -0.6  # standard deviations: the variances are j^-1.2
    if world.alpha is None:
        one = rng.normal(0, 1, (INPUTS, CLASSES)), rng.normal(0, 1, CLASSES)
        rules, centres = (one for _ in sizes), np.zeros((DEVICES, INPUTS))
    else:
        u, centre = rng.normal(0, world.alpha, DEVICES), rng.normal(0, world.alpha, DEVICES)
        centres = rng.normal(centre[:, None], 1, (DEVICES, INPUTS))
        rules = ((rng.normal(mean, 1, (INPUTS, CLASSES)), rng.normal(mean, 1, CLASSES)) for mean in u)  # drawn device by device
    made = []
    for size, v, (w, b) in zip(sizes, centres, rules, strict=True):
        x = rng.normal(v, spread, (size, INPUTS))[:world.cap]
        made.append((x.astype(np.float32), np.argmax(x @ w + b, 1)))
    return made


@dataclass(frozen=True, eq=False)
class Deal:
    """All devices of all worlds, padded: training data ``[N, n, ...]`` with its sizes, test data pooled by world."""

    x: Tensor  # [N, n, 60]
    y: Tensor  # [N, n]
    size: Tensor  # [N]
    test: list[tuple[Tensor, Tensor]]  # one a world
    seeds: tuple[int, ...]  # [N] of the world
    batch: int = 10

    def epochs(self, round: int, client: int) -> int:
        return 20

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        plans = [self.plan(round, client) for client in cohort.tolist()]
        most = max((len(plan) for plan in plans), default=0)
        index = np.full((len(plans), most, self.batch), -1)
        for row, plan in enumerate(plans):
            index[row, :len(plan)] = plan
        rows_of, count = torch.from_numpy(index), np.array([len(plan) for plan in plans])
        for step in range(most):
            rows = torch.from_numpy(np.flatnonzero(count > step))
            take = rows_of[rows, step]  # [A, B]
            who = cohort[rows].unsqueeze(1)
            keep = take >= 0
            yield {"rows": rows, "x": self.x[who, take.clamp_min(0)], "y": self.y[who, take.clamp_min(0)], "keep": keep,
                   "weight": keep.sum(1) / max(self.epochs(round, 0), 1), "held": self.size[cohort[rows]]}

    def plan(self, round: int, client: int) -> np.ndarray:
        """Which examples each step of a client takes, ``[S, B]``, -1 beyond the end of an epoch."""
        size = int(self.size[client])
        draw = numpy_stream(self.seeds[client], "order", client % DEVICES, round)
        steps = -(-size // self.batch)
        plan = np.full((self.epochs(round, client), steps * self.batch), -1)
        for epoch in plan:
            epoch[:size] = draw.permutation(size)
        return plan.reshape(-1, self.batch)


@dataclass(frozen=True, eq=False)
class Stragglers(Deal):
    """Nine of ten devices of a round manage 1 to 19 of 20 epochs; ``keep``: their work counts, else it is dropped."""

    keep: bool = True

    def epochs(self, round: int, client: int) -> int:
        rng = numpy_stream(self.seeds[client], "straggle", round, client % DEVICES)
        late, done = rng.random() < 0.9, int(rng.integers(1, 20))
        return 20 if not late else done if self.keep else 0


def deal(worlds: list[World], kind: type[Deal] = Deal, **options: object) -> Deal:
    """The worlds' devices one after the other, 90 % for training."""
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    tests: list[tuple[Tensor, Tensor]] = []
    for world in worlds:
        test = []
        for x, y in devices(world):
            cut = int(0.9 * len(y))
            order = numpy_stream(world.seed, "split", len(xs) % DEVICES).permutation(len(y))
            xs.append(torch.from_numpy(x[order[:cut]]))
            ys.append(torch.from_numpy(y[order[:cut]]))
            test.append((x[order[cut:]], y[order[cut:]]))
        tests.append((torch.from_numpy(np.concatenate([x for x, _ in test])),
                      torch.from_numpy(np.concatenate([y for _, y in test]))))
    seeds = tuple(world.seed for world in worlds for _ in range(DEVICES))
    pad = torch.nn.utils.rnn.pad_sequence
    return kind(pad(xs, True), pad(ys, True), torch.tensor([len(y) for y in ys]), tests, seeds, **options)  # type: ignore[arg-type]


def first_params(seed: int = 0) -> Tree:
    """Glorot-uniform weights and zero biases, ``[1, ...]``."""
    bound = (6 / (INPUTS + CLASSES)) ** 0.5
    weight = torch.empty(1, INPUTS, CLASSES).uniform_(-bound, bound, generator=torch_stream(seed, "glorot"))
    return Tree(w=weight, b=torch.zeros(1, CLASSES))


def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of each client's batch, ``[C]``; no L2, as in the authors' code."""
    logits = torch.baddbmm(params["b"].unsqueeze(1), batch["x"], params["w"])  # [C, B, K]
    each = F.cross_entropy(logits.flatten(0, 1), batch["y"].flatten(), reduction="none").view_as(batch["y"])
    return (each * batch["keep"]).sum(1) / batch["keep"].sum(1)


def measured(params: Tree, deal: Deal) -> dict[str, Tensor]:
    """Of each world's model: training loss by examples, pooled test accuracy, mean |g_k - g|^2; all ``[M]``."""
    models = len(deal.test)
    group = torch.arange(models).repeat_interleave(DEVICES)
    keep = torch.arange(deal.x.shape[1]) < deal.size.unsqueeze(1)  # [N, n]
    w, b = params["w"][group], params["b"][group]
    log = torch.baddbmm(b.unsqueeze(1), deal.x, w).log_softmax(2)
    losses = -log.gather(2, deal.y.unsqueeze(2)).squeeze(2) * keep
    share = deal.size / torch.zeros(models).index_add(0, group, deal.size.float())[group]
    off = (log.exp() - F.one_hot(deal.y, CLASSES)) * keep.unsqueeze(2) / deal.size.view(-1, 1, 1)
    slope = torch.cat([deal.x.mT @ off, off.sum(1, keepdim=True)], 1).flatten(1)
    slope = slope.unflatten(0, (models, DEVICES))  # [M, 30, .]
    mean = (slope * share.view(models, DEVICES, 1)).sum(1, keepdim=True)
    right = torch.stack([((x @ params["w"][m] + params["b"][m]).argmax(1) == y).float().mean()
                         for m, (x, y) in enumerate(deal.test)])
    return {"loss": (losses.sum(1) / deal.size * share).unflatten(0, (models, DEVICES)).sum(1), "accuracy": right,
            "dissimilarity": (slope - mean).square().sum(2).mean(1)}


def cohort(worlds: list[World], round: int, take: int = 10) -> Tensor:
    """Ten devices of every world, ``[M * 10]``: by the round alone, the same in all, as the authors' server draws them."""
    drawn = np.sort(np.random.RandomState(round).choice(DEVICES, take, replace=False))
    return torch.from_numpy(np.concatenate([drawn + place * DEVICES for place in range(len(worlds))]))
