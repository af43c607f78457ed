"""What can be asked of the suite: the scoreboard, and the papers' results at three lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .closed_forms import closed_forms
from .judge import Verdict, scoreboard
from .ours import OURS, Ours
from .outcome import Outcome
from .planted import PLANTED
from .synthetic_results import native_sizes, synthetic_results

Say = Callable[[str], None]


def published(say: Say) -> Iterable[Outcome]:
    """AT-1 to AT-7, the synthetic data with sizes cut at 200: minutes."""
    yield from closed_forms()
    yield from synthetic_results(say=say)


RESULTS: dict[str, Callable[[Say], Iterable[Outcome]]] = {
    "quick": lambda say: closed_forms(),
    "published": published,
    "native": lambda say: native_sizes(say=say),
}


def planted() -> list[tuple[Ours, list[Verdict]]]:
    """Each planted bug, and the verdicts that saw it."""
    return [(bug, [verdict for verdict in scoreboard([bug]) if verdict.holds is False]) for bug in PLANTED]


def bugs_table(seen: Iterable[tuple[Ours, list[Verdict]]]) -> str:
    """The planted bugs as Markdown."""
    rows = [f"| {bug.algorithm} | {bug.name} | {'; '.join(v.problem for v in verdicts) or '**nothing**'} |"
            for bug, verdicts in seen]
    return "\n".join(["| algorithm | planted bug | seen by |", "|---|---|---|", *rows])


__all__ = ["OURS", "RESULTS", "bugs_table", "planted", "published"]
