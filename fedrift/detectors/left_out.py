"""Clients left out: their update was not a number, so the server quarantined it and their text was not heard."""

from __future__ import annotations

import numpy as np

from .curves import table
from .finding import Case, Finding, judged, not_measured, series


def left_out(case: Case) -> list[Finding]:
    ours, theirs = table(case.run, "failed"), table(case.twin, "failed")
    if not len(ours):
        return not_measured("left out", "`failed` of the clients")
    who = np.flatnonzero((ours > 0).any(axis=0))
    when = case.run.rounds[(ours > 0).any(axis=1)]
    said = f"client {', '.join(map(str, who))} failed, first in round {when[0]}" if len(who) else "every update could be used"
    limit = case.limits["left_out"]["clients"]
    count, base = float((ours > 0).sum()), float((theirs > 0).sum())
    known = case.twin is not None and len(theirs) > 0
    return [judged("left out", count, base if known else np.nan, limit, "client-rounds", positive=count > limit, said=said,
                   shown=base > limit if known else None, since=int(when[0]) if len(when) else None, clients=tuple(map(int, who)),
                   event=True, evidence=(series("failed clients", case.run.rounds, np.nansum(ours, axis=1)),))]
