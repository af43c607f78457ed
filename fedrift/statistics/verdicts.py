"""The verdict on each hypothesis of a study: supported, refuted or inconclusive, by rules that were fixed before the
runs.

Supported: the estimate lies on the side that was foretold, and the p, by Holm inside the family, is at most alpha.
Refuted: it lies on the other side as surely, or the data rule out the smallest effect that was said to matter.
Everything else is inconclusive, and says how small an effect would have been seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from ..errors import UserError
from .evidence import ALPHA
from .families import holm
from .hypotheses import Hypothesis
from .measured import Bar, Measured, nothing
from .sentences import sentence


@dataclass(frozen=True)
class Verdict:
    """One hypothesis, judged. ``effect`` in the ``unit`` that it says; NaN where there is nothing to say."""

    name: str
    says: str
    family: str
    kind: str
    metric: str
    verdict: str  # supported, refuted, inconclusive
    effect: float
    low: float
    high: float
    level: float
    unit: str  # difference, ratio, slope, share, rate
    p: float
    holm: float  # p adjusted for the family
    attainable: float  # the smallest p that these seeds could have given
    test: str
    seeds: int
    incomplete: int  # seeds that lack a run of the comparison
    diverged: int  # runs that diverged, IID twins among them
    tied: int  # seeds in which both sides diverged: left out
    g: float  # paired Hedges g
    detectable: float  # minimum detectable effect; infinite: none, however large
    points: tuple[tuple[int, float], ...]  # seed and its own number
    sentence: str
    notes: tuple[str, ...]


def judge(hypotheses: Sequence[Hypothesis], runs: pd.DataFrame, factors: Sequence[str], alpha: float = ALPHA,
          power: float = 0.8) -> tuple[Verdict, ...]:
    """Every hypothesis, in its order; ``runs`` as ``selection`` describes it, ``factors`` the columns by which runs are
    paired."""
    twice = [name for name, count in Counter(said.name for said in hypotheses).items() if count > 1]
    if twice:
        raise UserError(f"two hypotheses are named {twice[0]!r}; a verdict needs a name of its own")
    sizes = Counter(said.family for said in hypotheses)
    bars = {family: Bar(alpha, power, size) for family, size in sizes.items()}
    found = [said.measure(runs, factors, bars[said.family]) if len(runs)
             else nothing(said.metric, "difference", why="no run has ended") for said in hypotheses]
    adjusted = [math.nan] * len(found)
    for family in sizes:
        members = [place for place, said in enumerate(hypotheses) if said.family == family]
        for place, value in zip(members, holm([found[place].p.value for place in members]), strict=True):
            adjusted[place] = float(value)
    return tuple(verdict(said, measured, value, bars[said.family])
                 for said, measured, value in zip(hypotheses, found, adjusted, strict=True))


def verdict(said: Hypothesis, found: Measured, adjusted: float, bar: Bar) -> Verdict:
    """One hypothesis, once its family is known."""
    grade = graded(found, adjusted, bar)
    return Verdict(
        name=said.name, says=said.says, family=said.family, kind=type(said).__name__, metric=said.metric, verdict=grade,
        effect=found.interval.estimate, low=found.interval.low, high=found.interval.high, level=found.interval.level,
        unit=found.unit, p=found.p.value, holm=adjusted, attainable=found.p.attainable, test=found.p.test, seeds=found.p.seeds,
        incomplete=found.incomplete, diverged=found.diverged, tied=found.tied, g=found.g, detectable=found.detectable,
        points=found.points, sentence=sentence(said.name, grade, found, adjusted, bar), notes=found.notes)


def graded(found: Measured, adjusted: float, bar: Bar) -> str:
    sure = found.p.below(bar.alpha) and adjusted <= bar.alpha
    if sure and found.favours and not found.excluded:
        return "supported"
    if found.excluded or (sure and not found.favours):
        return "refuted"
    return "inconclusive"


def table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row a verdict; a p that the seeds could not have given is left out."""
    rows = [asdict(one) for one in verdicts]
    frame = pd.DataFrame(rows, columns=list(Verdict.__dataclass_fields__))
    hidden = (frame["attainable"] > ALPHA) & (frame["p"] <= frame["attainable"].clip(lower=ALPHA))
    frame.loc[hidden & (frame["p"] < frame["attainable"]), ["p", "holm"]] = math.nan
    return frame
