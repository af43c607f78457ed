"""The aggregation error of low-rank adapters: what is lost when B and A are averaged apart."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tree import wide
from ..values import Round
from .probe import Reading


def aggregation_error(done: Round) -> Reading:
    """How far the product of the means is from the mean of the products, in this round.

    E = sum_k p_k B_k A_k - B̄ Ā = sum_k p_k (B_k - B̄)(A_k - Ā), exactly: the covariance of the clients' factors.
    ``adapters.error`` is |E| / |sum p_k B_k A_k|, of the adapters as they are, and ``adapters.error.update``
    |E| / |sum p_k B_k A_k - B A|, of what the round has changed: Frobenius norms over all modules and models.
    It is there without heterogeneity too and grows with the local steps; only beyond the IID twin's is it non-IID's.
    An aggregate that avoids the loss (FedEx, FLoRA, Svd) is shown what separate means would have lost.
    No ``[O, I]`` matrix is built: |U V|^2 is the sum of U^T U times V V^T, element by element, ``[nR, nR]``.
    Without adapters, or where nobody trained, the reading is empty.
    """
    before, report = done.before.server.params, done.report
    sums = torch.zeros(3, dtype=torch.float64)
    for module in [name.removesuffix(".A") for name in before if name.endswith(".A") and name[:-1] + "B" in before]:
        for model in range(done.before.server.models):
            mine = ((report.group == model) & (report.weight > 0)).nonzero().flatten()
            if not len(mine):
                continue
            share = (wide(report.weight)[mine] / wide(report.weight)[mine].sum()).view(-1, 1, 1)
            down, up = wide(before[module + ".A"][model]), wide(before[module + ".B"][model])
            downs = down + wide(report.delta[module + ".A"])[mine]  # [n, R, I] A_k
            ups = up + wide(report.delta[module + ".B"])[mine]  # [n, O, R] B_k
            apart = square(share * (ups - (share * ups).sum(0)), downs - (share * downs).sum(0))
            whole = square(share * ups, downs)
            moved = square(torch.cat([share * ups, -up.unsqueeze(0)]), torch.cat([downs, down.unsqueeze(0)]))
            sums += torch.stack([apart, whole, moved]).cpu().double()
    apart, whole, moved = sums.clamp_min(0).sqrt().tolist()
    sizes = {"adapters.error": whole, "adapters.error.update": moved}
    return {name: apart / size for name, size in sizes.items() if size > 0}


def square(ups: Tensor, downs: Tensor) -> Tensor:
    """|sum_k ups_k downs_k|^2, from ``[n, O, R]`` and ``[n, R, I]``."""
    tall, flat = ups.transpose(0, 1).flatten(1), downs.flatten(0, 1)  # [O, nR], [nR, I]
    return ((tall.mT @ tall) * (flat @ flat.mT)).sum()
