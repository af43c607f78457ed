"""Where training holds and where it breaks: learning rate against another dial."""

from __future__ import annotations

import math

from .. import charts, maps
from ..arms import Axis, Stage
from ..document import Figure, Missing, Panel, Section
from ..dossier import Dossier
from ..numbers import mean
from ..parts import MOST, left_out, staged

RATES = ("plan.optimizer.lr", "algorithm.server.lr")


def section(dossier: Dossier) -> Section | Missing:
    figures = []
    for stage in dossier.stages:
        rate = stage.axis(*RATES)
        other = next((axis for axis in stage.dials if rate and axis != rate), None) or (
            stage.colour if rate != stage.colour else None
        )
        if rate and other:
            figures += drawn(dossier, stage, rate, other)
    if not figures:
        return Missing(
            "Stability maps", "vary `plan.optimizer.lr` together with `partition.severity`, `plan.steps` or the algorithm"
        )
    return Section(
        "stability",
        "Stability",
        (
            (
                "A run counts as diverged where its loss is not finite, or stays above both 1.5 times its start and ln 4 "
                "over its lowest for three evaluations. A cross: a seed diverged, and there is no mean."
            ),
        ),
        tuple(figures),
    )


def drawn(dossier: Dossier, stage: Stage, rate: Axis, other: Axis) -> list[Figure]:
    loss = dossier.outcome("loss")
    broke = dict(zip(dossier.frame["run"], dossier.frame["diverged"], strict=True))
    axes = [axis for axis in stage.axes if axis not in (rate, other)]
    cells: dict[str, list] = {}  # type: ignore[type-arg]
    for arm in stage.arms:
        cells.setdefault(
            ", ".join(arm.levels[axis.name] if not axis.numbers else f"{axis.label} {arm.levels[axis.name]}" for axis in axes), []
        ).append(arm)
    ends = [
        value
        for value in (mean(loss.get(run, math.nan) for run in arm.runs.values())[0] for arm in stage.arms)
        if math.isfinite(value)
    ]
    found = []
    for title, what in (("share of seeds that diverged", "diverged"), ("end loss, mean over seeds", "loss")):
        panels = []
        for name, arms in list(cells.items())[:MOST]:
            rows = []
            for arm in arms:
                ended = [run for run in arm.runs.values() if run in dossier.endings]
                value = (
                    (sum(bool(broke.get(run)) for run in ended) / len(ended) if ended else math.nan)
                    if what == "diverged"
                    else mean(loss.get(run, math.nan) for run in arm.runs.values())[0]
                )
                rows.append(
                    {
                        "arm": arm.place,
                        "x": arm.levels[rate.name],
                        "y": arm.levels[other.name],
                        "value": charts.small(value),
                        "note": "none",
                    }
                )
            panels.append(
                Panel(
                    name,
                    maps.matrix(
                        rows,
                        x=rate.levels,
                        y=other.levels[::-1],
                        xtitle=rate.label,
                        ytitle=other.label,
                        value=title,
                        step=34,
                        extent=(0.0, 1.0) if what == "diverged" else (min(ends), max(ends)) if ends else None,
                        form=".0%" if what == "diverged" else ".3f",
                    ),
                )
            )
        found.append(
            Figure(
                f"stability-{what}-{stage.name}",
                staged(dossier, stage, f"{title[0].upper()}{title[1:]}, by {rate.label} and {other.label}."),
                tuple(panels),
                columns=min(3, len(panels)),
                note=left_out(len(cells)),
            )
        )
    return found
