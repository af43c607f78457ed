"""``python -m fedrift.conform [quick|published|native]``: the scoreboard, or the papers' results, as Markdown.

Without a word: fedrift's algorithms and the planted bugs. ``quick``: AT-2, AT-4 to AT-7 (seconds). ``published``:
these, AT-1 and AT-3 (minutes). ``native``: AT-1 with the sizes as drawn (long). The exit code is 1 if anything fails.
"""

from __future__ import annotations

import sys

from . import OURS, PLANTED, outcome, scoreboard, table
from .closed_forms import closed_forms
from .synthetic_results import native_sizes, synthetic_results


def said(text: str) -> None:
    print(text, file=sys.stderr)


def main(words: list[str]) -> int:
    if not words:
        ours = scoreboard(OURS)
        seen = [bug for bug in PLANTED if any(v.holds is False for v in scoreboard([bug]))]
        print(table(ours))
        names = "; ".join(f"{bug.algorithm}: {bug.name}" for bug in seen)
        print(f"\n{len(seen)} of {len(PLANTED)} planted bugs were seen: {names}.")
        return int(not all(v.holds for v in ours) or len(seen) < len(PLANTED))
    asked = {"quick": closed_forms, "native": lambda: list(native_sizes(say=said)),
             "published": lambda: [*closed_forms(), *synthetic_results(say=said)]}
    if words[0] not in asked:
        said(f"no {words[0]!r}; there are {', '.join(asked)}")
        return 2
    outcomes = asked[words[0]]()
    print(outcome.table(outcomes))
    return int(not all(o.holds for o in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
