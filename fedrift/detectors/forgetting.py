"""Forgetting of what was there before: general text, and grammar.

General text is in no client's pool; its loss rises above its start, and above what the twin's rose. Grammar is asked by minimal
pairs: the share decided rightly, or the margin of their log-probabilities, falls more than in the twin. A rise of the
loss alone is no loss of grammar.
"""

from __future__ import annotations

import math

import numpy as np

from ..records import Trajectory
from .curves import chance, evaluated, together
from .divergence import runaway
from .finding import Case, Finding, judged, not_measured, series


def forgetting_pretrained(case: Case) -> list[Finding]:
    rounds, loss = evaluated(case.run, "general.loss")
    if len(loss) < 2 or runaway(case.run, case.limits)[0]:
        return not_measured("forgetting of general text", "`general.loss`, text that no client holds, and no divergence")
    limit, base = case.limits["forgetting"]["general"], lost(case.twin, "general.loss", case)
    rise = lost(case.run, "general.loss", case)
    positive = rise > limit and not rise - base <= max(limit, scatter(case, "general.loss"))
    said = (f"text that no client holds costs {rise:.3f} nats a token more than before training" +
            (f" ({base:.3f} in the twin)" if math.isfinite(base) else "") if positive else "general text is not forgotten")
    over = np.flatnonzero(loss - loss[0] > limit)
    return [judged("forgetting of general text", rise, base, limit, "nats", positive=positive, said=said,
                   shown=None if math.isnan(base) else base > limit,
                   since=int(rounds[over[0]]) if positive and len(over) else None,
                   evidence=(series("general.loss", rounds, loss),))]


def forgetting_syntax(case: Case) -> list[Finding]:
    rounds, right = evaluated(case.run, "syntax.accuracy")
    at, margin = evaluated(case.run, "syntax.margin")
    if len(right) < 2 and len(margin) < 2:
        return not_measured("forgetting of syntax", "`syntax.accuracy` or `syntax.margin`: minimal pairs")
    limit = case.limits["forgetting"]
    pairs = {name: (-lost(case.run, f"syntax.{name}", case), -lost(case.twin, f"syntax.{name}", case))
             for name in ("accuracy", "margin")}
    first = abs(float(margin[0])) or math.nan if len(margin) else math.nan
    scaled = {"accuracy": pairs["accuracy"], "margin": (pairs["margin"][0] / first, pairs["margin"][1] / first)}
    noise = {"accuracy": scatter(case, "syntax.accuracy"), "margin": scatter(case, "syntax.margin") / first}
    called = {name: beyond(*scaled[name], limit[name], noise[name]) for name in scaled}
    worst = max(scaled, key=lambda name: -math.inf if math.isnan(scaled[name][0]) else scaled[name][0] / limit[name])
    (drop, base), positive = scaled[worst], any(called.values())
    what = {"accuracy": "of the minimal pairs are lost", "margin": "of the minimal pairs' margin is lost"}[worst]
    said = f"{drop:.1%} {what}" if positive else "syntax is not forgotten"
    said += f" ({base:.1%} in the twin)" if positive and math.isfinite(base) else ""
    curves = {"accuracy": (rounds, right), "margin": (at, margin / first)}
    shown = None if math.isnan(base) else any(scaled[name][1] > limit[name] for name in scaled)
    return [judged("forgetting of syntax", drop, base, limit[worst], f"share of {worst}", positive=positive, said=said,
                   shown=shown, where=phenomena(case, limit["accuracy"]) if positive else (),
                   since=first_below(*curves[worst], limit[worst]) if positive else None,
                   evidence=(series("syntax.accuracy", rounds, right), series("syntax.margin", at, margin)))]


def first_below(rounds: np.ndarray, values: np.ndarray, limit: float) -> int | None:
    """The first round in which a curve lies below its beginning by a limit."""
    under = np.flatnonzero(values < values[0] - limit) if len(values) else np.zeros(0, dtype=int)
    return int(rounds[under[0]]) if len(under) else None


def beyond(drop: float, base: float, limit: float, noise: float) -> bool:
    """Whether something was lost, and more than in the twin where there is one, by more than chance."""
    return drop > limit and not drop - base <= (limit if math.isnan(noise) else max(limit, noise))


def scatter(case: Case, metric: str) -> float:
    """What the differences from the twin at the end give by chance."""
    _, ours, theirs = together(case.run, case.twin, metric)
    return chance(ours - theirs, min(int(case.limits["common"]["last"]), max(1, len(ours) // 4)))


def phenomena(case: Case, limit: float) -> tuple[str, ...]:
    """The phenomena that lost most, the worst first."""
    drops = {name: -lost(case.run, "syntax.accuracy", case, name) for name in case.run.domains_of("syntax.accuracy")} \
        if "syntax.accuracy" in case.run.metrics else {}
    return tuple(sorted((name for name in drops if drops[name] > limit), key=lambda name: -drops[name]))


def lost(run: Trajectory | None, metric: str, case: Case, domain: str = "") -> float:
    """How much a curve rose from its first value to the mean of its last (one where there are few)."""
    values = evaluated(run, metric, domain)[1]
    if len(values) < 2:
        return math.nan
    last = min(int(case.limits["common"]["last"]), max(1, len(values) // 4))
    return float(values[-last:].mean() - values[0])
