"""What several sections are made of: curves by panel, dials, strips and the legends that belong to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..rows import RUN, TWIN, Row
from . import charts, strips
from .arms import Arm, Axis, Stage, named
from .document import Figure, Key, Panel
from .dossier import Dossier, each_row
from .numbers import mean

MOST = 24  # panels of one figure; what is above is told
KINDS = {"run": RUN, "twin": TWIN}
GONE = "no finite number in every seed from here on"
CEILING = 1.5  # times the highest start, above which a loss is off the scale


def legend(stage: Stage, twins: bool = False, mark: str = "line") -> tuple[Key, ...]:
    keys = [Key(level, colour, mark) for level, colour in stage.colours.items() if stage.colour]  # type: ignore[arg-type]
    return (*keys, Key("its IID twin", "", "dash")) if twins else tuple(keys)


def curve_figures(
    dossier: Dossier,
    key: str,
    metric: str,
    caption: str,
    *,
    title: str,
    clients: bool = False,
    gap: bool = False,
    loss: bool = False,
) -> list[Figure]:
    """A metric against the round, beside the twin or less it: a figure for each stage, a panel for each cell of the rest."""
    frame = dossier.gaps(metric, clients) if gap else dossier.curves(metric, clients)
    domains = tuple(sorted(frame["domain"].unique())) if loss else ("",)
    frame = frame[frame["domain"].isin(domains)]
    if not len(frame):
        return []
    found = []
    for stage in dossier.stages:
        panels, twins = [], False
        cells = {name: arms for name, arms in stage.panels().items() if frame["arm"].isin([arm.place for arm in arms]).any()}
        for name, arms in list(cells.items())[:MOST]:
            rows, lost = curve_rows(frame, stage, arms, loss and not gap)
            twins |= any(row["which"] == TWIN for row in rows)
            panels.append(Panel(name, charts.lines(rows, lost, stage.colours, title=title, zero=gap, domain=loss)))
        if panels:
            found.append(
                Figure(
                    f"{key}-{stage.name}",
                    staged(dossier, stage, caption),
                    tuple(panels),
                    legend(stage, twins),
                    columns=min(3, len(panels)),
                    note=left_out(len(cells)),
                    domains=domains if loss else (),
                )
            )
    return found


def curve_rows(frame: pd.DataFrame, stage: Stage, arms: Sequence[Arm], capped: bool) -> tuple[list[Row], list[Row]]:
    """The rows of some arms, and where each curve is lost: no finite number, or far above where it began."""
    rows: list[Row] = []
    lost: list[Row] = []
    by_place = {arm.place: arm for arm in arms}
    chosen = frame[frame["arm"].isin(list(by_place))]
    keys = [name for name in ("arm", "kind", "domain") if name in chosen]
    for group, part in chosen.groupby(keys, sort=False):
        told: dict[str, Any] = dict(zip(keys, group, strict=True))
        known = part["mean"].dropna()
        top = CEILING * float(known.iloc[0]) if capped and len(known) else math.inf
        gone = False
        common = {
            "arm": int(told["arm"]),
            "of": stage.shade(by_place[told["arm"]]),
            "which": KINDS[told.get("kind", "run")],
            "domain": told["domain"],
        }
        for each in each_row(part):
            off = math.isnan(each.mean) or each.mean > top
            if off and not gone:
                lost.append({**common, "round": int(each.round), "note": GONE if math.isnan(each.mean) else "off the scale"})
            gone = off
            rows.append(
                {
                    **common,
                    "round": int(each.round),
                    "value": None if off else charts.small(each.mean),
                    "low": None if off else charts.small(each.low),
                    "high": None if off else charts.small(min(each.high, top)),
                    "seeds": int(each.seeds),
                }
            )
    return rows, lost


def dial_figure(
    dossier: Dossier,
    stage: Stage,
    axis: Axis,
    key: str,
    outcomes: Mapping[str, Mapping[str, float]],
    caption: str,
    zero: bool = True,
) -> Figure | None:
    """Numbers of runs along a dial; ``outcomes``: title -> run -> number. A panel for each cell of the rest, and each outcome."""
    colour = None if stage.colour == axis else stage.colour
    shades = stage.colours if colour else {"all": charts.GRADES["none"][0]}
    panels = []
    cells = stage.panels(without=[axis])
    for title, numbers in outcomes.items():
        for name, arms in cells.items():
            dots: list[Row] = []
            means: list[Row] = []
            for arm in arms:
                of = stage.shade(arm) if colour else "all"
                seeds = {seed: numbers.get(run, math.nan) for seed, run in arm.runs.items()}
                common = {"arm": arm.place, "of": of, "x": float(arm.values[axis.name])}
                dots += [
                    {**common, "seed": seed, "value": charts.small(value)}
                    for seed, value in seeds.items()
                    if math.isfinite(value)
                ]
                middle, low, high, count = mean(seeds.values())
                if count:
                    means.append(
                        {
                            **common,
                            "value": charts.small(middle),
                            "low": charts.small(low),
                            "high": charts.small(high),
                            "seeds": count,
                        }
                    )
            if dots:
                means.sort(key=lambda row: float(row["x"]))
                panels.append(
                    Panel(name if len(cells) > 1 else title, charts.dial(dots, means, shades, x=axis.label, y=title, zero=zero))
                )
    keys = legend(stage, mark="dot") if colour else ()
    return (
        Figure(
            f"{key}-{stage.name}-{axis.label}",
            staged(dossier, stage, caption),
            tuple(panels[:MOST]),
            keys,
            columns=min(3, len(panels)),
            note=left_out(len(panels)),
        )
        if panels
        else None
    )


def strip_figure(
    dossier: Dossier, stage: Stage, key: str, numbers: Mapping[str, float], caption: str, *, x: str, zero: bool = False
) -> Figure | None:
    """Numbers of runs, arm below arm; a panel for each cell of what does not colour."""
    panels = []
    cells = stage.panels()
    for name, arms in cells.items():
        dots: list[Row] = []
        means: list[Row] = []
        for arm in arms:
            common = {"arm": arm.place, "of": stage.shade(arm), "row": stage.shade(arm) if stage.colour else "all"}
            seeds = {seed: numbers.get(run, math.nan) for seed, run in arm.runs.items()}
            dots += [
                {**common, "seed": seed, "value": charts.small(value)} for seed, value in seeds.items() if math.isfinite(value)
            ]
            middle, low, high, count = mean(seeds.values())
            if count and not math.isnan(middle):
                means.append(
                    {
                        **common,
                        "value": charts.small(middle),
                        "low": charts.small(low),
                        "high": charts.small(high),
                        "seeds": count,
                    }
                )
        if dots:
            panels.append(
                Panel(
                    name,
                    strips.strip(
                        dots,
                        means,
                        stage.colours,
                        [row for row in stage.colours if row in {dot["row"] for dot in dots}],
                        x=x,
                        zero=zero,
                    ),
                )
            )
    return (
        Figure(
            f"{key}-{stage.name}",
            staged(dossier, stage, caption),
            tuple(panels[:MOST]),
            columns=min(2, len(panels)),
            note=left_out(len(panels)),
        )
        if panels
        else None
    )


def full_name(stage: Stage, arm: Arm) -> str:
    return named(arm, stage.axes) or "all"


def staged(dossier: Dossier, stage: Stage, caption: str) -> str:
    return caption if len(dossier.stages) == 1 else f"Stage {stage.name}. {caption}"


def left_out(panels: int) -> str:
    return f"The first {MOST} of {panels} panels; the tables have all arms." if panels > MOST else ""


def shown(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
