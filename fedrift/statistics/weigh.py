"""How each kind of hypothesis is weighed: from the frame of runs to one number a seed, and to a test of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .equivalence import margin_for, tost
from .evidence import Interval, seeds_needed
from .measured import Bar, Measured, detectable_of, directed, dotted, nothing
from .paired import differences, paired_t, ties
from .rates import clopper_pearson, mcnemar
from .selection import ALWAYS, PerSeed, Selection, bad_end, need, per_seed, select, shared_factors, told, values
from .share import fieller
from .signflip import sign_flip

if TYPE_CHECKING:
    from .hypotheses import All, Equivalent, Greater, Hypothesis, Interaction, RateGreater, Share


def difference(said: Hypothesis, runs: pd.DataFrame, factors: Sequence[str], of: Selection, than: Selection, *also: Selection,
               scale: str = "difference") -> tuple[PerSeed, int]:
    """``of`` less ``than`` by seed (``of`` alone where ``than`` is empty), and how many of all the runs diverged."""
    table = values(runs, said.metric, None, said.contrast, said.worst, "ratio" if scale == "ratio" else "difference",
                   twins=True)
    left = select(table, said.where, of, *also)
    right = select(table, said.where, than, *also) if than else None
    named = {*of, *than, *(name for selection in also for name in selection)}
    pairing = [f for f in factors if f not in named] if right is None else shared_factors(left, right, factors, list(named))
    return per_seed(left, right, pairing), diverged_among(runs, said.contrast, left, *([] if right is None else [right]))


def diverged_among(runs: pd.DataFrame, contrast: str, *sides: pd.DataFrame) -> int:
    """How many runs of some sides diverged, and with ``contrast: twin`` of their IID twins too; each run counts once."""
    names = set().union(*(side["run"] for side in sides), *(side["twin"] for side in sides if contrast == "twin"))
    return int(runs.drop_duplicates("run").set_index("run")["diverged"].reindex(sorted(map(str, names))).eq(True).sum())


def metric(said: Hypothesis) -> str:
    return said.metric + (" less the IID twin's" if said.contrast == "twin" else "")


def beside(of: Selection, than: Selection) -> str:
    """The two sides in words."""
    first = f" of {told(of)}" if of else ""
    return f"{first} against {told(than)}" if than else first


def sides(said: Greater, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
    """Greater, Less: one paired difference."""
    d, diverged = difference(said, runs, factors, said.of, said.than, scale=said.scale)
    found = directed(d, said.sign, said.margin, said.smallest, bar, metric(said) + beside(said.of, said.than), "difference",
                     diverged)
    return as_ratio(found) if said.scale == "ratio" else found


def as_ratio(found: Measured) -> Measured:
    """Logarithms taken back."""
    i = found.interval
    return replace(found, unit="ratio", interval=Interval(np.exp(i.estimate), np.exp(i.low), np.exp(i.high), i.level),
                   detectable=float(np.exp(found.detectable)), points=tuple((seed, float(np.exp(v))) for seed, v in found.points))


def interaction(said: Interaction, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
    """A difference of two paired differences, by seed."""
    inside, bad = difference(said, runs, factors, said.of, said.than, said.inside)
    outside, bad_there = difference(said, runs, factors, said.of, said.than, said.outside)
    seeds = inside.numbers.index.intersection(outside.numbers.index)
    a, b = inside.numbers[seeds].to_numpy(float), outside.numbers[seeds].to_numpy(float)
    both = ties(a, b)
    d = PerSeed(pd.Series(differences(a, b)[~both], index=seeds[~both]), max(inside.incomplete, outside.incomplete),
                max(inside.tied, outside.tied) + int(both.sum()))
    words = f"{metric(said)}{beside(said.of, said.than)}, in {told(said.inside)} less in {told(said.outside)}"
    sign = 1 if said.direction == "greater" else -1
    return directed(d, sign, 0.0, said.smallest, bar, words, "difference", bad + bad_there)


def equivalent(said: Equivalent, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
    """TOST; refuted where the interval lies wholly beyond the margin."""
    (d, incomplete, tied), diverged = difference(said, runs, factors, said.of, said.than)
    words = f"{metric(said)}{beside(said.of, said.than)} within {said.within:g}"
    if not len(d):
        return nothing(words, "difference", incomplete, diverged=diverged, tied=tied)
    numbers = d.to_numpy(float)
    if not np.isfinite(numbers).all():
        return replace(nothing(words, "difference", incomplete, "a run diverged on one side only: not equivalent there",
                               diverged, tied), points=dotted(d))
    found, wide = tost(numbers, said.within, bar.alpha), paired_t(numbers, 1 - 2 * bar.each)
    beyond = (wide.low > said.within or wide.high < -said.within) and found.p.attainable <= bar.each
    sd = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
    inside = bool(abs(numbers.mean()) < said.within)
    return Measured(words, "difference", found.interval, found.p, inside, bool(beyond), incomplete, diverged,
                    detectable=margin_for(len(numbers), sd, bar.each, bar.power), points=dotted(d), tied=tied)


def share(said: Share, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
    """(than - of) / (than - whole) by the sign-flip of (than - of) - least (than - whole), its interval by Fieller."""
    (gain, missing, tied), bad = difference(said, runs, factors, said.than, said.of)
    target = replace(said, contrast="twin") if not said.whole else said
    (whole, missing_there, tied_there), bad_there = difference(target, runs, factors, said.than, said.whole)
    tied = max(tied, tied_there)
    goal = told(said.whole) or "its IID twin"
    words = f"share of {said.metric} that {told(said.of)} recovers, from {told(said.than)} to {goal}"
    seeds = gain.index.intersection(whole.index)
    incomplete = max(missing, missing_there)
    if not len(seeds):
        return nothing(words, "share", incomplete, diverged=bad + bad_there, tied=tied)
    part, full = gain[seeds].to_numpy(float), whole[seeds].to_numpy(float)
    if not (np.isfinite(part).all() and np.isfinite(full).all()):
        return nothing(words, "share", incomplete, "a run diverged, and there is no share of an infinite loss", bad + bad_there,
                       tied)
    sign = 1.0 if (said.worst or bad_end(said.metric)) == "high" else -1.0  # what is lost is above 0 where high is bad
    there, left = sign_flip(full), part - said.least * full
    p, notes = sign_flip(left), [f"more than {said.least:.0%} was foretold"] if said.least else []
    p = replace(p, value=max(p.value, there.value))
    if sign * full.mean() <= 0 or not there.below(bar.each):
        notes.insert(0, f"there may be nothing to recover a share of: the whole is {full.mean():.3g} ({there})")
    if sign * full.mean() <= 0:
        p = replace(p, value=1.0)
    found, favours = fieller(part, full, 1 - bar.alpha), bool(sign * left.mean() > 0)
    points = tuple((int(seed), float(a / b)) for seed, a, b in zip(seeds, part, full, strict=True) if b)
    seen = said.least + detectable_of(left, bar) / abs(full.mean()) if full.mean() else math.inf
    return Measured(words, "share", found, p, favours, False, incomplete, bad + bad_there, detectable=seen, points=points,
                    notes=tuple(notes), tied=tied)


def rates(said: RateGreater, runs: pd.DataFrame, factors: Sequence[str], bar: Bar) -> Measured:
    """Seeds that the event strikes on one side and not on the other; a seed is struck if any of its runs is."""
    need(runs, [said.metric, "twin", *ALWAYS])
    struck = runs[said.metric].astype(float) if said.above is None else (runs[said.metric] > said.above).astype(float)
    diverged = runs["diverged"].astype(bool)
    struck = struck.where(runs[said.metric].notna(), np.nan).where(~diverged, 1.0)  # diverged: struck, whatever it last said
    events = runs.assign(event=struck)
    left = select(events, said.where, said.of)
    right = select(events, said.where, said.than) if said.than else events[events["run"].isin(set(left["twin"]))]
    beyond = "" if said.above is None else f" above {said.above:g}"
    words = f"seeds with {said.metric}{beyond}{beside(said.of, said.than or {'iid': True})}"
    first, second = (rows.groupby("seed")["event"].agg(lambda e: e.max(skipna=False)).dropna() for rows in (left, right))
    seeds = first.index.intersection(second.index)
    incomplete = len(set(left["seed"])) - len(seeds)
    if not len(seeds):
        return nothing(words, "rate", incomplete)
    a, b = first[seeds].to_numpy(bool), second[seeds].to_numpy(bool)
    count, here, there = len(seeds), clopper_pearson(int(a.sum()), len(seeds)), clopper_pearson(int(b.sum()), len(seeds))
    needed = seeds_needed(bar.alpha, bar.family)
    shown = (f"{int(a.sum())} of {count} ({here.low:.2f} to {here.high:.2f}) against "
             f"{int(b.sum())} of {count} ({there.low:.2f} to {there.high:.2f})")
    return Measured(words, "rate", Interval(here.estimate - there.estimate, math.nan, math.nan, math.nan), mcnemar(a, b),
                    bool(a.sum() > b.sum()), False, incomplete, int(left["diverged"].sum() + right["diverged"].sum()),
                    detectable=needed / count if needed <= count else math.inf,
                    points=tuple((int(s), float(x) - float(y)) for s, x, y in zip(seeds, a, b, strict=True)), notes=(shown,))


def together(said: All, parts: Sequence[Measured]) -> Measured:
    """Intersection-union: all must hold; one that points the other way is what refutes."""
    against = [part for part in parts if not part.favours]
    if against:
        weakest = min(against, key=lambda part: part.p.value if not math.isnan(part.p.value) else 2.0)
        p = replace(weakest.p, value=min(1.0, weakest.p.value * len(parts)))
    else:
        weakest = max(parts, key=lambda part: part.p.value)
        p = replace(weakest.p, attainable=max(part.p.attainable for part in parts))
    notes = tuple(f"{inner.name}: {part.said} {part.interval.estimate:.3g} ({part.p})"
                  for inner, part in zip(said.parts, parts, strict=True))
    return replace(weakest, p=p, favours=not against, excluded=any(part.excluded for part in parts),
                   incomplete=max(part.incomplete for part in parts), diverged=max(part.diverged for part in parts),
                   detectable=max(part.detectable for part in parts), notes=notes, tied=max(part.tied for part in parts),
                   said=f"the weakest of {len(parts)} parts, {weakest.said}")
