"""What a run came to, as numbers fixed before the study is run: never the best round, always the mean of the last five.

Round 0, which no training has touched, is no part of an end, nor of a moment.

- ``loss``, or any recorded metric: the mean of its last five evaluations; ``metric@domain`` of one domain, layer or
  phenomenon; a metric that only clients have is first averaged over the clients that took part. ``metric:mean``,
  ``:max``, ``:min`` and ``:last`` take other moments of the run.
- ``gap``: ``loss`` above the IID twin's over the evaluations that both have; ``gap.worst``: of the worst domain.
- ``oscillation``: the oscillation index, sum of upward moves of the loss after three tenths of the run, by its whole descent.
- ``movement``: mean absolute change of a domain's loss between evaluations, in the second half; a fast fall is movement too.
  Studies made before 2026-11-29 call it ``swing``, which is still read. What reports and detectors call a swing is movement
  there and back, the net change taken off (``fedrift.detectors.curves.swing``).
- ``rounds.to:4.2``: the first evaluated round with a loss not above 4.2; infinite if there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from ..detectors.divergence import READ, runaway
from ..detectors.finding import LIMITS
from ..errors import UserError
from ..records import Trajectory, at_the_end

LAST = 5  # evaluations in the end of a run
BURN_IN = 0.3  # share of a run before oscillation counts
MOMENTS: dict[str, Callable[[np.ndarray], float]] = {"mean": np.nanmean, "max": np.nanmax, "min": np.nanmin,
                                                     "last": lambda values: values[-1]}
FORMER = {"swing": "movement"}  # names of outcomes in stored studies
OF_LOSS = ("gap", "gap.worst", "oscillation", "movement", *FORMER)


def needed(outcomes: Iterable[str]) -> list[str]:
    """The recorded metrics that some outcomes are made of, those included that tell whether a run diverged."""
    return sorted({*READ, *(plain(name)[0] for name in outcomes if name not in OF_LOSS and not name.startswith("rounds.to:"))})


def plain(outcome: str) -> tuple[str, str, str]:
    """``metric@domain:moment`` taken apart."""
    rest, _, moment = outcome.partition(":")
    metric, _, domain = rest.partition("@")
    if moment and moment not in MOMENTS:
        raise UserError(f"outcomes: {outcome!r} ends in {moment!r}; there are {', '.join(MOMENTS)}, "
                        "and without one the mean of the last five evaluations")
    return metric, domain, moment


def outcome(name: str, run: Trajectory, twin: Trajectory | None = None) -> float:
    """One outcome of a run; NaN where it has no such number."""
    name = FORMER.get(name, name)
    if name == "gap":
        return gap(run, twin)
    if name == "gap.worst":
        gaps = [gap(run, twin, domain) for domain in (run.domains_of("loss") if "loss" in run.metrics else ())]
        return max((value for value in gaps if not math.isnan(value)), default=math.nan)
    if name == "oscillation":
        return oscillation(evaluated(run)[1])
    if name == "movement":
        return movement(run)
    if name.startswith("rounds.to:"):
        return rounds_to(run, target(name))
    metric, domain, moment = plain(name)
    rounds, values = series(run, metric, domain)
    if not len(values):
        return math.nan
    if moment:
        trained = values[at_the_end(rounds, len(rounds))]
        return float(MOMENTS[moment](trained)) if not np.isnan(trained).all() else math.nan
    return float(values[at_the_end(rounds, LAST)].mean())


def series(run: Trajectory, metric: str, domain: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The rounds in which a metric was written and its values; of clients the mean over those that took part."""
    if run.has(metric, domain):
        written = run.seen(metric, domain)
        return run.rounds[written], run.curve(metric, domain)[written]
    if domain or not run.has_table(metric):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    table = run.table(metric)
    seen: np.ndarray = ~np.isnan(table).all(axis=1)
    return run.rounds[seen], np.nanmean(table[seen], axis=1) if seen.any() else np.zeros(0)


def evaluated(run: Trajectory, domain: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The rounds with a loss, and the loss, NaN where it was written as NaN."""
    if not run.has("loss", domain):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    seen = run.seen("loss", domain)
    return run.rounds[seen], run.curve("loss", domain)[seen]


def gap(run: Trajectory, twin: Trajectory | None, domain: str = "") -> float:
    """The end loss above the twin's, over the last evaluations that both have."""
    if twin is None:
        return math.nan
    (ours, loss), (theirs, base) = evaluated(run, domain), evaluated(twin, domain)
    both = np.intersect1d(ours, theirs)
    both = both[at_the_end(both, LAST)]
    if not len(both):
        return math.nan
    return float(loss[np.searchsorted(ours, both)].mean() - base[np.searchsorted(theirs, both)].mean())


def oscillation(loss: np.ndarray) -> float:
    """The oscillation index; NaN where the loss never fell."""
    if len(loss) < 3 or not np.isfinite(loss).all() or loss[0] <= loss.min():
        return math.nan
    late = loss[int(BURN_IN * len(loss)):]
    return float(np.maximum(np.diff(late), 0).sum() / (loss[0] - loss.min()))


def movement(run: Trajectory) -> float:
    """The mean absolute change of a domain's loss between evaluations, in the second half of a run."""
    rounds, _ = evaluated(run)
    late = np.isin(run.rounds, rounds[len(rounds) // 2:])
    changes = [np.abs(np.diff(run.curve("loss", domain)[late])) for domain in (run.domains_of("loss") if len(rounds) else ())]
    every = np.concatenate(changes) if changes else np.zeros(0)
    every = every[np.isfinite(every)]
    return float(every.mean()) if len(every) else math.nan


def rounds_to(run: Trajectory, wanted: float) -> float:
    rounds, loss = evaluated(run)
    there = rounds[loss <= wanted]
    return float(there[0]) if len(there) else math.inf if len(rounds) else math.nan


def target(name: str) -> float:
    try:
        return float(name.removeprefix("rounds.to:"))
    except ValueError:
        raise UserError(f"outcomes: {name!r} wants a loss, e.g. rounds.to:4.2") from None


def diverged(run: Trajectory) -> bool:
    """Whether a run diverged or its model died, by the rules and thresholds of the detectors.

    A run that merely ends above its start has not: its end loss is in the table.
    """
    return bool(runaway(run, LIMITS)[0])
