"""Who holds which domain."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .finding import Case, Facts


def holders(facts: Facts, least: float) -> np.ndarray:
    """Who holds which domain, ``[N, J]`` bool."""
    tokens = np.asarray(facts.tokens, dtype=float)
    share = tokens / tokens.sum(axis=1, keepdims=True).clip(1e-12)
    return share >= least * tokens.sum(axis=0) / tokens.sum() - 1e-12 if tokens.size else np.zeros((0, 0), dtype=bool)


def whose(case: Case, domains: Iterable[str]) -> tuple[int, ...]:
    """The clients that hold any of some domains; nobody where that is not known."""
    if not case.facts.tokens:
        return ()
    held, names = holders(case.facts, case.limits["forgetting"]["holder"]), case.facts.domains
    columns = [names.index(name) for name in domains if name in names]
    return tuple(int(client) for client in np.flatnonzero(held[:, columns].any(axis=1))) if columns else ()
