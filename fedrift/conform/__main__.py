"""``python -m fedrift.conform [quick|published|native] [module:NAME ...]``: ``fedrift conform``, where typer is not.

A peer's own environment may lack what fedrift's command line needs; this needs what the algorithms need.
"""

from __future__ import annotations

import sys

from ..errors import UserError
from . import judge, outcome
from .subjects import subjects
from .suite import OURS, RESULTS, bugs_table, planted


def said(text: str) -> None:
    print(text, file=sys.stderr)


def main(words: list[str]) -> int:
    if words and words[0] in RESULTS:
        outcomes = list(RESULTS[words[0]](said))
        print(outcome.table(outcomes))
        return int(not all(o.holds for o in outcomes))
    if words:
        verdicts = [verdict for where in words for verdict in judge.scoreboard(subjects(where))]
        print(judge.table(verdicts))
        return int(any(v.holds is False for v in verdicts))
    ours, seen = judge.scoreboard(OURS), planted()
    print(judge.table(ours), bugs_table(seen), sep="\n\n")
    return int(not all(v.holds for v in ours) or not all(verdicts for _, verdicts in seen))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        said(str(error))
        sys.exit(2)
