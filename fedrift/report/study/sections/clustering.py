"""Sharing one model against sharing by group, where the mitigation is varied."""

from __future__ import annotations

import math

from ..arms import Stage
from ..document import Figure, Missing, Section, Table
from ..dossier import Dossier
from ..numbers import mean, plain
from ..parts import full_name, strip_figure

NUMBERS = (  # title, metric, of clients, last
    ("own text", "loss.worn", True, True),
    ("ARI", "cluster.ari", False, True),
    ("NMI", "cluster.nmi", False, True),
    ("worst client", "fair.worst10", False, True),
)


def section(dossier: Dossier) -> Section | Missing:
    chosen = [stage for stage in dossier.stages if stage.axis("mitigation")]
    if not chosen:
        return Missing("Clustering", "vary `mitigation`, e.g. [Vanilla, {is: ByText}, {is: AtRandom, like: {is: ByText}}]")
    blocks: list[Figure | Table] = []
    loss = dossier.outcome("loss") or {run: end["loss"] for run, end in dossier.endings.items()}
    for stage in chosen:
        made = strip_figure(
            dossier,
            stage,
            "clustering",
            loss,
            "End loss by who shares a model with whom: dots are seeds, the diamond is the mean with its interval.",
            x="end loss, nats per token",
        )
        blocks += [*([made] if made else []), table(dossier, stage, loss)]
    return Section(
        "clustering",
        "Clustering",
        (
            (
                "ARI and NMI hold the groups against the clients' true main domains (0: chance, 1: the same). Groups that "
                "win over one model must also win over random groups of the same sizes."
            ),
        ),
        tuple(blocks),
    )


def table(dossier: Dossier, stage: Stage, loss: dict[str, float]) -> Table:
    more = [
        (title, dossier.per_run(metric, clients, last))
        for title, metric, clients, last in NUMBERS
        if any(domain == "" for domain in dossier.metrics.get(metric, ()))
    ]
    rows = []
    for arm in stage.arms:
        numbers = [mean(of.get(run, math.nan) for run in arm.runs.values()) for of in (loss, *(of for _, of in more))]
        rows.append((full_name(stage, arm), *(plain(number[0]) for number in numbers), str(numbers[0][3])))
    return Table(
        f"clustering-{stage.name}",
        "Groups compared, means over seeds; own text: loss of each client on its own mixture under the model that it uses.",
        ("arm", "end loss", *(title for title, _ in more), "seeds"),
        tuple(rows),
        frozenset(range(1, len(more) + 3)),
        tuple(arm.place for arm in stage.arms),
        long=len(rows) > 12,
    )
