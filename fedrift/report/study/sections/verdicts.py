"""The question and what its hypotheses came to."""

from __future__ import annotations

import math

from ....statistics import Verdict
from .. import strips
from ..document import Claim, Figure, Missing, Panel, Section, Table
from ..dossier import Dossier
from ..numbers import NONE, between, p_value, plain, signed

COLOURS = {"supported": "#009E73", "refuted": "#D55E00", "inconclusive": "#0072B2"}
UNITS = {
    "difference": "difference",
    "ratio": "ratio",
    "slope": "slope",
    "share": "share recovered",
    "rate": "difference of rates",
}


def claims(dossier: Dossier) -> tuple[Claim, ...]:
    return tuple(Claim(one.name, one.says or one.metric, one.verdict, one.sentence, one.notes) for one in dossier.verdicts)


def section(dossier: Dossier) -> Section | Missing:
    if not dossier.verdicts:
        return Missing("Verdicts", "the study states no hypotheses; write them under `hypotheses:` before it is run")
    panels = tuple(
        Panel(
            f"{one.name}: {one.verdict}",
            strips.forest(
                [(seed, value) for seed, value in one.points if math.isfinite(value)],
                one.low,
                one.high,
                one.effect,
                colour=COLOURS[one.verdict],
                unit=f"{one.metric}, {UNITS.get(one.unit, one.unit)}",
                zero=1.0 if one.unit == "ratio" else 0.0,
            ),
        )
        for one in dossier.verdicts
        if math.isfinite(one.effect)
    )
    blocks: list[Figure | Table] = []
    if panels:
        blocks.append(
            Figure(
                "verdicts",
                "Every hypothesis: rings are seeds, the diamond is the estimate with its interval, the grey "
                "rule is no effect. Hypotheses have scales of their own.",
                panels,
                columns=2,
            )
        )
    blocks.append(table(dossier.verdicts))
    return Section("verdicts", "Verdicts", (), tuple(blocks))


def table(verdicts: tuple[Verdict, ...]) -> Table:
    rows = tuple(
        (
            one.name,
            one.says or one.metric,
            one.verdict,
            signed(one.effect),
            between(one.low, one.high, sign=True),
            p_value(one.p, one.attainable),
            p_value(one.holm, one.attainable),
            smallest(one.detectable),
            str(one.seeds),
            str(one.diverged),
        )
        for one in verdicts
    )
    return Table(
        "verdicts",
        "The hypotheses. p: exact test over paired seeds, Holm inside the family; smallest: the effect that would "
        "have been called with 80 % probability. An inconclusive verdict says no more than that.",
        ("hypothesis", "claim", "verdict", "effect", "interval", "p", "Holm p", "smallest", "seeds", "diverged"),
        rows,
        frozenset(range(3, 10)),
    )


def smallest(value: float) -> str:
    """The minimum detectable effect; infinite where so few seeds can call nothing."""
    return "none" if math.isinf(value) else NONE if math.isnan(value) else plain(value)
