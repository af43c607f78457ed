"""Update geometry of low-rank adapters in the space that matters: the changes of B A, not those of B and of A.

The same B A can be written with many B and A, so angles between factors depend on how it is written; those of products
do not. A client's change is s (B_k A_k - B A) = s (B_k (A_k - A) + (B_k - B) A), which is again two thin factors,
``[O, 2R]`` and ``[2R, I]``, and <U V, X Y> = sum (U^T X) * (V Y^T): nothing larger than ``[C 2R, C 2R]`` is built, and no
difference of large numbers is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..tree import Tree, wide
from ..values import Round
from .bench import Bench
from .panel import After, Look, Past, number
from .probe import Reading
from .update import agreement, layer_of, scattered

GROUP = "updates"


@dataclass(frozen=True, eq=False)
class Products:
    """Each client ``[C]``: ``product.norm``, ``product.cosine`` with the mean change. The federation: ``product.consensus``,
    ``product.diversity``, both by layer too, and ``product.pairwise``, as ``update.*`` are in the space of the factors;
    ``product.step`` and ``product.travelled``, how far the server's products moved in the round and since w_0;
    ``product.turn``: cosine of the server's change with its last one; all three means over the clients of the model that each
    shares. Nothing without adapters; of the server nothing where an aggregate merges changes under the adapters (FedEx,
    FLoRA), for what is merged is not in here.
    """

    scale: float  # s = alpha / r
    start: Tree = field(default_factory=Tree)  # [1, ...] w_0

    def __call__(self, done: Round) -> Reading:
        before, report = done.before.server.params, done.report
        modules = adapted(before)
        sound = ~report.failed & (report.steps > 0)
        if not modules or not sound.any():
            return {}
        rows = sound.nonzero().flatten()
        start = before.rows(done.before.group[done.cohort[rows]])
        moves = report.delta.rows(rows.to(report.group.device))
        grams = {layer: self.scale**2 * gram for layer, gram in products_by_layer(start, moves).items()}
        said = agreement(torch.stack(list(grams.values())).sum(0))
        reading: Reading = {"product.norm": scattered(said.norm, sound), "product.cosine": scattered(said.cosine, sound),
                            "product.consensus": said.consensus, "product.diversity": said.diversity}
        if len(rows) > 1:
            reading["product.pairwise"] = said.pairwise
        for layer, own in grams.items():
            if layer and bool(own.diagonal().any()):
                part = agreement(own)
                reading["product.consensus", layer], reading["product.diversity", layer] = part.consensus, part.diversity
        if self.start and not done.after.server.base:
            reading |= {"product.step": self.far(done, before), "product.travelled": self.far(done, self.start)}
        last = done.before.moved
        if last and not done.before.server.base and len(last[modules[0] + ".A"]) == done.after.server.models:
            turns = torch.stack([turn(done, number) for number in range(done.after.server.models)])
            reading["product.turn"] = turns[done.after.group.cpu()].nanmean()
        return reading

    def far(self, done: Round, since: Tree) -> Tensor:
        """|s (B A - B' A')| from the products at ``since``, ``[M, ...]`` or ``[1, ...]``; the mean over the clients' models."""
        now = done.after.server.params
        if len(next(iter(since.values()))) != done.after.server.models:
            since = since.rows(torch.zeros(done.after.server.models, dtype=torch.long))
        return self.scale * products(since, now - since).diagonal().clamp_min(0).sqrt()[done.after.group.cpu()].mean()


def turn(done: Round, model: int) -> Tensor:
    """Cosine of the change of one model's products with the change before it; NaN where it stood still."""
    one, before = torch.tensor([model]), done.before.server.params
    now, last = done.after.moved.rows(one), done.before.moved.rows(one)
    start = Tree({name: torch.cat([leaf, (before.rows(one) - last)[name]]) for name, leaf in before.rows(one).items()})
    gram = products(start, Tree({name: torch.cat([leaf, last[name]]) for name, leaf in now.items()}))
    return gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt()


def adapted(tree: Tree) -> list[str]:
    """The modules that wear an adapter."""
    return [name.removesuffix(".A") for name in tree if name.endswith(".A") and name[:-1] + "B" in tree]


def products(start: Tree, moves: Tree) -> Tensor:
    """Inner products of the changes of B A of n clients that begin at ``start`` and move by ``moves``, both ``[n, ...]``, over
    all modules, ``[n, n]`` float64 on the CPU."""
    return torch.stack(list(products_by_layer(start, moves).values())).sum(0)


def products_by_layer(start: Tree, moves: Tree) -> dict[str, Tensor]:
    """The same layer by layer; "" is what is in no layer."""
    count, grams = len(next(iter(start.values()))), dict[str, Tensor]()
    for module in adapted(start):
        down, up = wide(start[module + ".A"]), wide(start[module + ".B"])  # [n, R, I], [n, O, R]
        by_down, by_up = wide(moves[module + ".A"]), wide(moves[module + ".B"])
        tall = torch.cat([up + by_up, by_up], 2).transpose(0, 1).flatten(1)  # [O, n 2R]: B_k, B_k - B
        flat = torch.cat([by_down, down], 1).flatten(0, 1)  # [n 2R, I]: A_k - A, A
        each = (tall.mT @ tall) * (flat @ flat.mT)  # [n 2R, n 2R]
        gram, layer = each.unflatten(0, (count, -1)).unflatten(2, (count, -1)).sum((1, 3)).cpu().double(), layer_of(module + ".")
        grams[layer] = grams.get(layer, 0.0) + gram
    return grams


def efficiency(reading: Reading, past: Past) -> Reading:
    """``product.efficiency``: the distance travelled over the length of the path, as ``update.efficiency`` for the factors."""
    step, far = number(reading, "product.step"), number(reading, "product.travelled")
    length = past.total.get(("product.step", ""), 0.0) + step
    return {"product.efficiency": far / length} if length > 0 else {}


def looks(bench: Bench) -> list[Look | After]:
    if not adapted(bench.start):
        return []
    return [Look("products", Products(float(bench.model.tune.scale), bench.start)), After("products", efficiency)]
