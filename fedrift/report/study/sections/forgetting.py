"""Which domains lose what, and when: the loss of each above its twin round by round, and what was forgotten at the end."""

from __future__ import annotations

import pandas as pd

from .. import charts, maps
from ..arms import Stage
from ..document import Figure, Missing, Panel, Section
from ..dossier import Dossier, each_row
from ..parts import full_name, staged

ARMS = 12
DOMAINS = 16


def section(dossier: Dossier) -> Section | Missing:
    if not dossier.has("loss", domains=True):
        return Missing("Forgetting by domain", "the corpus has no domains, or no run has been evaluated")
    figures: list[Figure] = []
    gaps = dossier.gaps("loss")
    for stage in dossier.stages:
        figures += by_round(dossier, stage, gaps)
    text = [
        "Averages hide forgetting: a domain whose clients sit out rises and falls back. Stripes are that; a column that stays"
        " orange is lost for good."
    ]
    if dossier.has("forgetting", domains=True):
        curves = dossier.curves("forgetting")
        for stage in dossier.stages:
            figures += at_the_end(dossier, stage, curves)
    else:
        text.append(
            "Not recorded: `forgetting`, the loss of a domain above its own lowest so far; it comes with `language` in"
            " `evaluate.panel`."
        )
    if not figures:
        return Missing("Forgetting by domain", "a run beside its IID twin with losses by domain")
    return Section("forgetting", "Forgetting", tuple(text), tuple(figures))


def by_round(dossier: Dossier, stage: Stage, gaps: pd.DataFrame) -> list[Figure]:
    frame = gaps[(gaps["domain"] != "") & gaps["arm"].isin([arm.place for arm in stage.arms])]
    known = frame["mean"].dropna()
    if not len(known):
        return []
    most = float(known.abs().quantile(0.99)) or 1.0
    there = [arm for arm in stage.arms if (frame["arm"] == arm.place).any()]
    domains = sorted(frame["domain"].unique())[:DOMAINS]
    panels = []
    for arm in there[:ARMS]:
        part = frame[(frame["arm"] == arm.place) & frame["domain"].isin(domains)]
        rows = [
            {
                "arm": arm.place,
                "x": each.domain,
                "y": str(int(each.round)),
                "value": charts.small(each.mean),
                "note": "no finite number",
            }
            for each in each_row(part)
        ]
        rounds = sorted(part["round"].unique())
        panels.append(
            Panel(
                full_name(stage, arm),
                maps.matrix(
                    rows,
                    x=domains,
                    y=list(map(str, rounds)),
                    ytitle="round",
                    value="nats above the twin",
                    scheme=charts.DIVERGING,
                    extent=(-most, most),
                    form="+.2f",
                    text=len(rounds) <= 12,
                    step=20 if len(rounds) <= 12 else max(5, 200 // len(rounds)),
                    angle=-40,
                ),
            )
        )
    more = f" The first {ARMS} of {len(there)} arms." if len(there) > ARMS else ""
    return [
        Figure(
            f"domains-{stage.name}",
            staged(
                dossier,
                stage,
                "Loss of each domain above the IID twin's, round by round, mean over paired seeds; blue below 0, "
                f"orange above, up to ±{most:.2g} nats.{more}",
            ),
            tuple(panels),
            columns=min(3, len(panels)),
        )
    ]


def at_the_end(dossier: Dossier, stage: Stage, curves: pd.DataFrame) -> list[Figure]:
    frame = curves[(curves["domain"] != "") & curves["arm"].isin([arm.place for arm in stage.arms])]
    frame = frame[frame["round"] == frame.groupby(["arm", "kind"])["round"].transform("max")]
    domains = sorted(frame["domain"].unique())[:DOMAINS]
    names = {arm.place: full_name(stage, arm) for arm in stage.arms}
    known = frame["mean"].dropna()
    if not len(known):
        return []
    panels = []
    for kind, title in (("run", "the arms"), ("twin", "their IID twins")):
        part = frame[(frame["kind"] == kind) & frame["domain"].isin(domains)]
        if len(part):
            rows = [
                {
                    "arm": int(each.arm),
                    "x": each.domain,
                    "y": names[each.arm],
                    "value": charts.small(each.mean),
                    "note": "no finite number",
                }
                for each in each_row(part)
            ]
            panels.append(
                Panel(
                    title,
                    maps.matrix(
                        rows,
                        x=domains,
                        y=[name for place, name in names.items() if (part["arm"] == place).any()],
                        value="nats",
                        extent=(0.0, float(known.max())),
                        form=".2f",
                        angle=-40,
                    ),
                )
            )
    return [
        Figure(
            f"forgetting-{stage.name}",
            staged(
                dossier, stage, "What was forgotten at the end: loss of each domain above its own lowest, nats, mean over seeds."
            ),
            tuple(panels),
            columns=1 if len(names) > 8 else len(panels),
        )
    ]
