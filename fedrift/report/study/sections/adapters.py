"""What separate means of the two factors of an adapter lose."""

from __future__ import annotations

from ..document import Figure, Missing, Section
from ..dossier import Dossier
from ..parts import curve_figures, dial_figure

DIALS = ("plan.steps", "plan.epochs", "partition.severity", "tune.rank", "plan.participation")


def section(dossier: Dossier) -> Section | Missing:
    if not dossier.has("adapters.error.update"):
        return Missing("LoRA aggregation error", "runs that tune LoRA record it by themselves; there are none yet")
    figures: list[Figure] = curve_figures(
        dossier,
        "adapters",
        "adapters.error.update",
        "Error of averaging A and B apart, as a share of the round's update: runs solid, IID twins dashed.",
        title="share of the update",
    )
    numbers = {"share of the update": dossier.per_run("adapters.error.update")}
    for stage in dossier.stages:
        for axis in (axis for axis in stage.dials if axis.name in DIALS):
            made = dial_figure(
                dossier, stage, axis, "adapters-dial", numbers, f"The same, mean over rounds, against {axis.label}.", zero=False
            )
            figures += [made] if made else []
    return Section(
        "adapters",
        "LoRA aggregation error",
        ("The mean of products B A is not the product of the means; this is the difference.",),
        tuple(figures),
    )
