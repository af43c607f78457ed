"""How far clients pull apart, round by round and against local work and participation."""

from __future__ import annotations

from ..document import Figure, Missing, Section
from ..dossier import Dossier
from ..parts import curve_figures, dial_figure

DIALS = ("plan.steps", "plan.epochs", "plan.participation", "partition.clients", "plan.batch")
METRICS = {"update.consensus": "consensus of updates", "update.pairwise": "mean pairwise cosine of updates"}


def section(dossier: Dossier) -> Section | Missing:
    if not any(dossier.has(metric) for metric in METRICS):
        return Missing("Drift", "no update has been recorded: no run has finished a round")
    figures: list[Figure] = []
    numbers = {title: dossier.per_run(metric) for metric, title in METRICS.items() if dossier.has(metric)}
    gap = dossier.outcome("gap")
    outcomes = {**numbers, **({"gap to the twin, nats": gap} if gap else {})}
    varied = False
    for stage in dossier.stages:
        for axis in (axis for axis in stage.dials if axis.name in DIALS):
            made = dial_figure(
                dossier,
                stage,
                axis,
                "drift",
                outcomes,
                f"Agreement of the clients' updates and cost of the skew against {axis.label}.",
                zero=False,
            )
            figures += [made] if made else []
            varied = True
    if dossier.has("update.consensus"):
        figures += curve_figures(
            dossier,
            "consensus",
            "update.consensus",
            "Consensus of the clients' updates, |mean| over mean |.|: 1 if all "
            "agree, about 1/√C where they have nothing in common. IID twins dashed.",
            title="consensus",
        )
    text = ["Small batches make updates noisy, and noise alone lowers consensus: what counts is the distance to the twin."]
    if not varied:
        text.append("Local steps and participation are not varied here; `plan.steps` and `plan.participation` are the factors.")
    return Section("drift", "Drift", tuple(text), tuple(figures))
