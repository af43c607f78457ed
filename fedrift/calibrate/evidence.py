"""What the server's moves and the algorithms' own state say in a round, as the panel's probes record it."""

from __future__ import annotations

import torch

from ..algorithms import FedAvg, FedDyn, Scaffold
from ..probes import Reading
from ..tree import Tree
from ..values import Round


def evidence(done: Round, algorithm: FedAvg) -> Reading:
    """`update.step`, `update.turn`; `control.*` of Scaffold; `server.correction` of FedDyn, `server.momentum` of others."""
    now, before = flat(done.after.moved), flat(done.before.moved)
    reading: Reading = {"update.step": float(now.norm())}
    if len(before) and before.norm() > 0 and now.norm() > 0:
        reading["update.turn"] = float(now @ before / (now.norm() * before.norm()))
    if isinstance(algorithm, Scaffold):
        memory, c = done.after.memory, flat(done.after.server.shared)
        controls = torch.stack([flat(memory.rows(torch.tensor([k]))) for k in range(len(done.after.group))])
        reading["control.imbalance"] = float((c - controls.mean(0)).norm() / controls.norm(dim=1).mean().clamp_min(1e-300))
        here = done.before.last if len(done.before.last) else torch.zeros(len(done.after.group), dtype=torch.long)
        old = torch.stack([flat(done.before.memory.rows(torch.tensor([k]))) for k in done.cohort.tolist()])
        slope = torch.stack([flat(done.report.gradient.rows(torch.tensor([row]))) for row in range(len(done.cohort))])
        took_part = here[done.cohort] > 0
        reading["control.age"] = torch.where(took_part, (done.after.round - here[done.cohort]).double(), torch.nan)
        distance = (old - slope).norm(dim=1) / slope.norm(dim=1).clamp_min(1e-300)
        reading["control.staleness"] = torch.where(took_part, distance, torch.nan)
    elif len(done.after.server.moments):
        alpha = algorithm.alpha if isinstance(algorithm, FedDyn) else 0.0
        length = float(flat(done.after.server.moments).norm())
        reading.update({"server.correction": length / alpha} if alpha else {"server.momentum": length})
    return reading


def flat(tree: Tree) -> torch.Tensor:
    """All of a tree as one vector, of all its rows, float64."""
    return torch.cat([leaf.flatten() for leaf in tree.values()]).double() if len(tree) else torch.zeros(0, dtype=torch.float64)
