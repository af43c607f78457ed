"""The judge: a subject's path beside the paper's, problem by problem."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .problem import Problem, Subject, Unsupported
from .problems import PROBLEMS
from .reference import REFERENCES

TOLERANCE = 1e-4  # of the largest |x| of the path: single precision passes, no known error does


@dataclass(frozen=True)
class Verdict:
    """One subject, one problem. ``holds`` is None where the subject cannot be asked."""

    subject: str
    version: str
    algorithm: str
    problem: str
    holds: bool | None
    expected: float  # the server's x where they part, or after the last round
    found: float  # NaN where there is none
    said: str


def score(subject: Subject) -> list[Verdict]:
    """Every problem of the subject's algorithm."""
    if subject.algorithm not in REFERENCES:
        raise KeyError(f"no algorithm {subject.algorithm!r} to be judged by; there are {', '.join(sorted(REFERENCES))}")
    return [judged(subject, problem) for problem in PROBLEMS if problem.algorithm == subject.algorithm]


def judged(subject: Subject, problem: Problem) -> Verdict:
    """One verdict. An exception of the subject's is a finding, not ours to raise."""
    expected = REFERENCES[problem.algorithm](problem)
    scale = TOLERANCE * max(1.0, *(abs(x) for x in expected), abs(problem.x))

    def verdict(holds: bool | None, round: int, found: float, said: str) -> Verdict:
        return Verdict(subject.name, subject.version, problem.algorithm, problem.name, holds, expected[round], found,
                       said)

    try:
        path = subject.run(problem)
    except Unsupported as reason:
        return verdict(None, -1, math.nan, str(reason))
    except Exception as error:
        return verdict(False, -1, math.nan, f"raised {type(error).__name__}: {error}"[:200])
    if len(path) != len(expected):
        return verdict(False, -1, math.nan, f"{len(path)} rounds for {len(expected)}")
    for round, (found, right) in enumerate(zip(path, expected, strict=True)):
        if not abs(found - right) <= scale:
            return verdict(False, round, found, f"off from round {round + 1} on; made to catch: {problem.catches}")
    return verdict(True, -1, path[-1], "")


def scoreboard(subjects: Iterable[Subject]) -> list[Verdict]:
    """All verdicts on all subjects."""
    return [verdict for subject in subjects for verdict in score(subject)]


def table(verdicts: Iterable[Verdict]) -> str:
    """A scoreboard as Markdown."""
    sign = {True: "right", False: "**wrong**", None: "not asked"}
    rows = [f"| {v.subject} {v.version} | {v.algorithm} | {v.problem} | {sign[v.holds]} | {v.expected:.6f} "
            f"| {v.found:.6f} | {v.said} |" for v in verdicts]
    return "\n".join(["| implementation | algorithm | problem | verdict | expected | found | what was said |",
                      "|---|---|---|---|---|---|---|", *rows])
