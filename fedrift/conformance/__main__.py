"""Run the conformance tests without typer: ``python -m fedrift.conformance [quick|published|native] [module:NAME ...]``.

This works in an environment of another framework that lacks the dependencies of fedrift's command line. It only needs those of the
algorithms.
"""

from __future__ import annotations

import sys

from ..core.errors import UserError
from . import judge
from .published import RESULT_SETS
from .subjects import FEDRIFT_SUBJECTS, load_subjects


def print_error(text: str) -> None:
    """Print a line to the standard error stream."""
    print(text, file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Run the tests that the arguments select and return the exit code: 1 if a verdict is wrong."""
    if arguments and arguments[0] in RESULT_SETS:
        outcomes = list(RESULT_SETS[arguments[0]](print_error))
        print(judge.expectation_table(outcomes))
        return int(not all(o.holds for o in outcomes))
    subjects = [subject for path in arguments for subject in load_subjects(path)] if arguments else FEDRIFT_SUBJECTS
    verdicts = judge.scoreboard(subjects)
    print(judge.verdict_table(verdicts))
    return int(any(v.holds is False for v in verdicts))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print_error(str(error))
        sys.exit(2)
