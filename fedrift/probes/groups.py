"""The groups of probes that ``evaluate.panel`` may name: for each, what looks and when, from a bench.

A module of probes says which group it belongs to, ``GROUP``, and gives its ``looks(bench)``; one line here and it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType

from . import attention, barrier, cost, exact, fairness, general, hidden, language, path, product, subspaces, syntax, text  # noqa: F401
from .bench import Bench
from .panel import After, Look

Looks = Callable[[Bench], list[Look | After]]


def grouped(modules: Iterable[ModuleType]) -> dict[str, Looks]:
    """The modules' looks by group, in the order of the modules."""
    found: dict[str, list[Looks]] = {}
    for module in modules:
        found.setdefault(module.GROUP, []).append(module.looks)

    def together(every: list[Looks]) -> Looks:
        return lambda bench: [look for looks in every for look in looks(bench)]

    return {name: together(every) for name, every in found.items()}


GROUPS: dict[str, Looks] = grouped(part for part in list(globals().values()) if hasattr(part, "GROUP"))
