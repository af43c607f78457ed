"""The figures of a partition: who differs from whom, and by which words."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from .figures import OKABE_ITO, Chart, Width

LABELLED = 12  # clients up to which cells carry their numbers


def divergence(pairwise: np.ndarray, *, width: Width = "container") -> Chart:
    """Divergence of every two clients' words, [N, N] bits."""
    count = len(pairwise)
    rows = [{"one": one, "other": other, "bits": float(f"{pairwise[one, other]:.3g}")}
            for one in range(count) for other in range(count) if one != other]
    most = max((row["bits"] for row in rows), default=0.0)
    step = 30 if count <= LABELLED else 18 if count <= 30 else max(4, 540 // count)
    axis = alt.Axis(labelOverlap="greedy", labelSeparation=8, labelAngle=0)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("other:O", title="client", axis=axis),
        y=alt.Y("one:O", title="client", axis=alt.Axis(labelOverlap=True, titleAngle=0, titleAlign="right")))
    cells = base.mark_rect().encode(
        color=alt.Color("bits:Q", scale=alt.Scale(scheme="viridis", domain=[0, most or 1]), legend=None),
        tooltip=[alt.Tooltip("one:O", title="client"), alt.Tooltip("other:O", title="and client"),
                 alt.Tooltip("bits:Q", format=".3f")])
    layers = [cells]
    if count <= LABELLED:
        layers.append(base.mark_text(fontSize=10).encode(
            text=alt.Text("bits:Q", format=".2f"),
            color=alt.condition(f"datum.bits > {0.6 * most}", alt.value("black"), alt.value("white"))))
    return alt.layer(*layers).properties(width=width, height=max(step * count, 60))


def telling(words: Sequence[tuple[str, float]], longest: float, chance: float, *, width: Width = "container") -> Chart:
    """One client's most characteristic words, bars of z on a scale that all clients share; grey up to ``chance``."""
    rows = [{"word": word, "z": round(z, 2)} for word, z in words]
    shade = alt.condition(f"datum.z > {chance}", alt.value(OKABE_ITO[0]), alt.value("#9aa5b0"))
    bars = alt.Chart(alt.InlineData(values=rows)).mark_bar(height=11).encode(
        x=alt.X("z:Q", title=None, scale=alt.Scale(domain=[0, longest], nice=False),
                axis=alt.Axis(tickCount=3, grid=False)),
        y=alt.Y("word:N", title=None, sort=None, axis=alt.Axis(labelLimit=110, ticks=False, domain=False)),
        color=shade, tooltip=[alt.Tooltip("word:N"), alt.Tooltip("z:Q", format=".1f")])
    return alt.layer(bars).properties(width=width, height=17 * max(len(rows), 1))


def budgets(amounts: np.ndarray, unit: str, *, width: Width = "container") -> Chart:
    """How much each client holds, [N]."""
    rows = [{"client": client, "amount": float(amount)} for client, amount in enumerate(amounts)]
    step = 24 if len(rows) <= 40 else 9
    bars = alt.Chart(alt.InlineData(values=rows)).mark_bar(color=OKABE_ITO[0]).encode(
        x=alt.X("amount:Q", title=unit, axis=alt.Axis(tickCount=4, grid=False, format="~s")),
        y=alt.Y("client:O", title="client", axis=alt.Axis(labelOverlap=True, titleAngle=0, titleAlign="right")),
        tooltip=[alt.Tooltip("client:O"), alt.Tooltip("amount:Q", format=",.0f", title=unit)])
    return alt.layer(bars).properties(width=width, height=step * len(rows))
