"""Layer by layer: representations against the pretrained ones and each other's, and the entropy of attention."""

from __future__ import annotations

import pandas as pd

from ...rows import Row
from .. import charts, maps
from ..arms import Stage
from ..document import Figure, Missing, Panel, Section
from ..dossier import Dossier, each_row
from ..parts import full_name, left_out, staged

ARMS = 12
METRICS = {
    "hidden.cka.pretrained": "Linear CKA of hidden states with the pretrained model's (1: unchanged)",
    "hidden.cka.clients": "Linear CKA between clients of a round (1: alike)",
    "attention.entropy": "Attention entropy over its most (1: uniform)",
}


def section(dossier: Dossier) -> Section | Missing:
    figures = [
        figure
        for metric, title in METRICS.items()
        if dossier.has(metric, domains=True)
        for stage in dossier.stages
        for figure in drawn(dossier, stage, metric, title)
    ]
    if not figures:
        return Missing("Layers: CKA and attention entropy", "add `hidden` and `attention` to `evaluate.panel`")
    return Section(
        "layers",
        "Layer by layer",
        ("Each map is an arm less its IID twin, mean over paired seeds: what the skew alone did to the layer.",),
        tuple(figures),
    )


def drawn(dossier: Dossier, stage: Stage, metric: str, title: str) -> list[Figure]:
    frame = dossier.gaps(metric)
    frame = frame[frame["domain"].str.startswith("layer") & frame["arm"].isin([arm.place for arm in stage.arms])]
    known = frame["mean"].dropna()
    if not len(known):
        return []
    most = float(known.abs().max())
    panels = []
    there = [arm for arm in stage.arms if (frame["arm"] == arm.place).any()]
    for arm in there[:ARMS]:
        part = frame[frame["arm"] == arm.place]
        panels.append(
            Panel(
                full_name(stage, arm),
                maps.matrix(
                    grid(part, arm.place),
                    x=list(map(str, sorted(part["round"].unique()))),
                    y=sorted(part["domain"].unique(), reverse=True),
                    xtitle="round",
                    value=f"{metric} less the twin's",
                    scheme=charts.DIVERGING,
                    extent=(-most, most),
                    form="+.2g",
                    text=part["round"].nunique() <= 6,
                    step=20,
                ),
            )
        )
    more = f" The first {ARMS} of {len(there)} arms." if len(there) > ARMS else ""
    return [
        Figure(
            f"{metric.replace('.', '-')}-{stage.name}",
            staged(
                dossier,
                stage,
                f"{title}, less the IID twin's: orange above, blue below, up to ±{most:.2g}.{more}".replace(
                    "orange above, blue below", "blue below 0, orange above"
                ),
            ),
            tuple(panels),
            columns=min(3, len(panels)),
            note=left_out(len(panels)),
        )
    ]


def grid(part: pd.DataFrame, arm: int) -> list[Row]:
    return [
        {"arm": arm, "x": str(int(each.round)), "y": each.domain, "value": charts.small(each.mean), "note": "no finite number"}
        for each in each_row(part)
    ]
