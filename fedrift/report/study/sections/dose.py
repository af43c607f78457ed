"""Dose and response: what the skew costs against how strong it is."""

from __future__ import annotations

from ..document import Figure, Missing, Section
from ..dossier import Dossier
from ..parts import dial_figure

TITLES = {"gap": "gap to the twin, nats", "gap.worst": "gap of the worst domain, nats"}


def section(dossier: Dossier) -> Section | Missing:
    outcomes = {title: dossier.outcome(name) for name, title in TITLES.items() if dossier.outcome(name)}
    figures: list[Figure] = []
    for stage in dossier.stages:
        axis = stage.axis("partition.severity", "partition.alpha", "partition.bits")
        made = (
            dial_figure(
                dossier,
                stage,
                axis,
                "dose",
                outcomes,
                "Loss above the IID twin at the end of training against the strength of "
                "the skew: dots are seeds, the line is their mean with its 95 % t-interval.",
            )
            if axis and outcomes
            else None
        )
        if made:
            figures.append(made)
    if not figures:
        return Missing("Dose-response", "vary `partition.severity`, and keep `gap` among the outcomes with `twins: true`")
    return Section("dose", "Dose and response", (), tuple(figures))
