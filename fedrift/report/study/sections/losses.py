"""Loss against the round beside the IID twin, and what the skew costs in each round."""

from __future__ import annotations

from ..document import Missing, Section
from ..dossier import Dossier
from ..parts import curve_figures


def section(dossier: Dossier) -> Section | Missing:
    loss = curve_figures(
        dossier,
        "loss",
        "loss",
        "Test loss against the round: mean over seeds with its 95 % t-interval, their IID twins dashed.",
        title="nats per token",
        loss=True,
    )
    if not loss:
        return Missing("Loss curves", "no run has been evaluated yet")
    gaps = curve_figures(
        dossier,
        "gap",
        "loss",
        "What the skew costs: loss above the run's own IID twin, paired by seed, mean with its "
        "95 % t-interval. At the rule the skew costs nothing.",
        title="nats above the twin",
        gap=True,
        loss=True,
    )
    text = [
        "Losses are nats per token on held-out text that no client trains on. A band that is wide in the first figure and narrow"
        " in the second is a difference between seeds, not between arms: runs of one seed share model, documents and cohorts."
    ]
    if dossier.thinned:
        text.append("Curves are thinned to fewer rounds than were evaluated; all numbers in tables are from all rounds.")
    return Section("loss", "Loss beside the IID twin", tuple(text), (*loss, *gaps))
