"""Verdicts in plain English."""

from __future__ import annotations

import math

from .evidence import counted, seeds_needed, short
from .measured import Bar, Measured


def sentence(name: str, grade: str, found: Measured, adjusted: float, bar: Bar) -> str:
    """What was found, how sure it is, and what would have been missed."""
    lead = f"{name} is {grade}."
    if not found.p.seeds or math.isnan(found.interval.estimate):
        why = f": {found.notes[0]}" if found.notes else ""
        return " ".join([f"{lead} Nothing to judge in {found.said}{why}.", *left_out(found)])
    what = found.said[0].upper() + found.said[1:]
    said = f"{lead} {what}: {effect(found)} over {counted(found.p.seeds)}, {how_sure(found, adjusted, bar)}."
    return " ".join([said, *missed(grade, found, bar)])


def effect(found: Measured) -> str:
    """``+0.123 (95 % interval +0.05 to +0.2)``, in the sign of its unit."""
    plus = "" if found.unit in ("ratio", "share") else "+"
    i = found.interval
    if found.unit == "share":
        text, ends = f"{i.estimate:.0%}", f"{i.low:.0%} to {i.high:.0%}" if math.isfinite(i.high - i.low) else "without bounds"
    else:
        text, ends = f"{i.estimate:{plus}.3g}", f"{i.low:{plus}.3g} to {i.high:{plus}.3g}"
    per, of = (" per unit", " of the seeds' slopes") if found.unit == "slope" else ("", "")
    what = "a ratio of " if found.unit == "ratio" else ""
    return f"{what}{text}{per}" + ("" if math.isnan(i.level) else f" ({i.level * 100:.3g} % interval{of} {ends})")


def how_sure(found: Measured, adjusted: float, bar: Bar) -> str:
    """The p with its test, or why there is none."""
    if found.p.attainable > bar.alpha or math.isnan(found.p.value):
        return str(found.p) if not math.isnan(found.p.value) else "no p"
    corrected = f", {short(adjusted)} by Holm over {bar.family}" if bar.family > 1 else ""
    return f"{found.p} ({found.p.test}{corrected})"


def missed(grade: str, found: Measured, bar: Bar) -> list[str]:
    """What the seeds could not have shown, and what was left out."""
    told: list[str] = []
    if math.isinf(found.detectable):
        needed = f"{seeds_needed(bar.alpha, bar.family)}" + (f" in a family of {bar.family}" if bar.family > 1 else "")
        told.append(f"No effect, however large, can be called by {counted(found.p.seeds)}: it takes {needed}.")
    elif grade == "inconclusive" and not math.isnan(found.detectable):
        size = f"{found.detectable:.0%}" if found.unit == "share" else f"{found.detectable:.3g}"
        told.append(f"An effect of {size} would have been called with {bar.power:.0%} probability; a smaller one may be there.")
    elif grade == "inconclusive" and found.unit == "slope":
        told.append("The p is of ranks and the interval of slopes: no smallest effect that would have been called is known.")
    return [*told, *left_out(found)]


def left_out(found: Measured) -> list[str]:
    """Runs that diverged, and seeds that do not count."""
    told: list[str] = []
    if found.diverged:
        one = found.diverged == 1
        worst = found.unit != "rate" and (not found.tied or any(math.isinf(value) for _, value in found.points))
        told.append(f"{found.diverged} run{'' if one else 's'} diverged"
                    + (f" and count{'s' if one else ''} as the worst" * worst) + ".")
    if found.tied and found.points:
        told.append(f"In {counted(found.tied)} both sides diverged: no difference, and left out.")
    if found.incomplete:
        told.append(f"{counted(found.incomplete).capitalize()} not complete.")
    return told
