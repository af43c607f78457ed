"""The sections of a study's report, one file each; here is their order. One that has nothing to show says what it wants."""

from __future__ import annotations

from collections.abc import Callable

from ..document import Missing, Section
from ..dossier import Dossier
from . import (
    adapters,
    atlas,
    clustering,
    cost,
    dose,
    drift,
    forgetting,
    layers,
    losses,
    methods,
    partitions,
    provenance,
    results,
    stability,
    tuning,
    verdicts,
)

SECTIONS: tuple[Callable[[Dossier], Section | Missing], ...] = tuple(
    room.section
    for room in (
        verdicts,
        partitions,
        losses,
        results,
        dose,
        stability,
        drift,
        layers,
        forgetting,
        atlas,
        adapters,
        clustering,
        cost,
        tuning,
        methods,
        provenance,
    )
)
