"""The groups of probes that ``evaluate.panel`` may name: for each, what looks and when, from a bench."""

from __future__ import annotations

from collections.abc import Callable

from . import attention, barrier, cost, exact, fairness, general, hidden, language, path, product, subspaces, syntax, text
from .bench import Bench
from .panel import After, Look


def updates(bench: Bench) -> list[Look | After]:
    """The server's way, the changes of products, and what the algorithm itself knows."""
    return [*path.looks(bench), *product.looks(bench), Look("evidence", bench.algorithm.evidence)]


def adapters(bench: Bench) -> list[Look | After]:
    """The directions that adapters use, and what averaging their factors costs."""
    return [*subspaces.looks(bench), *exact.looks(bench)]


GROUPS: dict[str, Callable[[Bench], list[Look | After]]] = {
    "language": language.looks, "updates": updates, "fairness": fairness.looks, "cost": cost.looks,
    "hidden": hidden.looks, "attention": attention.looks, "barriers": barrier.looks, "adapters": adapters,
    "general": general.looks, "syntax": syntax.looks, "text": text.looks,
}
