"""The loss gap: the run ends above its IID twin, in all or in one domain.

Called above a limit and above what the scatter of the last evaluations gives by chance. No failure mode of its own but the
price of whatever happened; without it the other findings have done no harm yet.
"""

from __future__ import annotations

import math

import numpy as np

from .curves import chance, end_gap, percent, together
from .dead import death
from .divergence import runaway
from .finding import Case, Finding, judged, not_measured, series
from .holding import whose


def gap(case: Case) -> list[Finding]:
    both, ours, theirs = together(case.run, case.twin)
    common = case.limits["common"]
    if len(both) < common["shortest"]:
        return not_measured("loss gap", f"{common['shortest']:.0f} evaluations that the run and an IID twin have in common")
    if runaway(case.run, case.limits)[0]:
        return not_measured("loss gap", "a run that has not diverged")
    if death(case.twin, case.limits)[0]:
        return not_measured("loss gap", "an IID baseline whose model is not dead")
    return [whole(case, both, ours, theirs), *domain(case)]


def whole(case: Case, both: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> Finding:
    above, limit = end_gap(case.run, case.twin, last=int(case.limits["common"]["last"])), case.limits["gap"]["all"]
    limit = max(limit, chance(ours - theirs, int(case.limits["common"]["last"])))
    said = (f"the end loss is {above:.3f} nats above the IID twin's ({percent(above):+.1f}% perplexity)" if above > limit else
            "the end loss is not above the IID twin's by more than the limit")
    return judged("loss gap", above, 0.0, limit, "nats", positive=above > limit, said=said, shown=False,
                  since=since(both, ours - theirs, limit) if above > limit else None,
                  evidence=(series("loss", both, ours), series("loss of the twin", both, theirs)))


def domain(case: Case) -> list[Finding]:
    gaps = {name: end_gap(case.run, case.twin, name, int(case.limits["common"]["last"])) for name in case.run.domains_of("loss")}
    known = {name: value for name, value in gaps.items() if math.isfinite(value)}
    if not known:
        return []
    worst, limit = max(known, key=lambda name: known[name]), case.limits["gap"]["domain"]
    both, ours, theirs = together(case.run, case.twin, "loss", worst)
    last = int(case.limits["common"]["last"])
    limit = max(limit, chance(ours - theirs, last, len(known)))  # the worst of many looks
    over = known[worst] > limit
    back = -min(known.values())  # how far the twin's worst domain lies above the run: what choosing the worst gives by itself
    where = tuple(sorted((name for name in known if known[name] > limit), key=lambda name: -known[name]))
    said = f"{worst} ends {known[worst]:.3f} nats above the twin" if over else "no domain ends above the twin by much"
    return [judged("domain gap", known[worst], back, limit, "nats", positive=over, said=said, shown=back > limit,
                   since=since(both, ours - theirs, limit) if over else None,
                   where=where, clients=whose(case, where),
                   evidence=(series(f"loss of {worst}", both, ours), series(f"loss of {worst} in the twin", both, theirs)))]


def since(rounds: np.ndarray, above: np.ndarray, limit: float) -> int:
    """The round from which on a difference stays above a limit; the last if it does not stay."""
    under = np.flatnonzero(~(above > limit))
    first = under[-1] + 1 if len(under) else 0
    return int(rounds[min(first, len(rounds) - 1)])
