"""``python -m fedrift.conformance [quick|published|native] [module:NAME ...]``: ``fedrift conformance``, where typer is not.

A peer's own environment may lack what fedrift's command line needs; this needs what the algorithms need.
"""

from __future__ import annotations

import sys

from ..core.errors import UserError
from . import judge
from .published import RESULT_SETS
from .subjects import FEDRIFT_SUBJECTS, load_subjects


def print_error(text: str) -> None:
    print(text, file=sys.stderr)


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in RESULT_SETS:
        outcomes = list(RESULT_SETS[arguments[0]](print_error))
        print(judge.expectation_table(outcomes))
        return int(not all(o.holds for o in outcomes))
    asked = [subject for where in arguments for subject in load_subjects(where)] if arguments else FEDRIFT_SUBJECTS
    verdicts = judge.scoreboard(asked)
    print(judge.verdict_table(verdicts))
    return int(any(v.holds is False for v in verdicts))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print_error(str(error))
        sys.exit(2)
