"""An expectation taken from a paper, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ..stats.intervals import mean_ci
from .problems import PROBLEMS, Problem, Subject, Unsupported
from .reference import REFERENCES


@dataclass(frozen=True)
class Expectation:
    """One expectation and what came of it."""

    test: str
    description: str
    expected: str
    observed: str
    holds: bool


def expect_near(test: str, description: str, expected: float, observed: float, tolerance: float = 1e-6) -> Expectation:
    holds = abs(expected - observed) <= tolerance * max(1, abs(expected))
    return Expectation(test, description, f"{expected:.7g}", f"{observed:.7g}", holds)


def expect_every_seed(
    test: str, description: str, expected: str, values: np.ndarray, holds: Callable[[np.ndarray], np.ndarray]
) -> Expectation:
    """An expectation that must hold for every seed."""
    return Expectation(test, description, expected, format_values(values), bool(holds(values).all()))


def expect_positive_mean(test: str, description: str, differences: np.ndarray, note: str = "") -> Expectation:
    """An expectation of the mean over seeds: the 95 % t-interval of the paired ``differences [seeds]`` lies above zero."""
    mean = mean_ci(differences)
    many = f"{(differences > 0).sum()} of {len(differences)} positive"
    found = f"{mean.estimate:+.4f} ({mean.low:+.4f} to {mean.high:+.4f}), {many}"
    return Expectation(test, description, "95 % interval of the mean > 0", found + note, mean.low > 0)


def format_values(values: np.ndarray) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def holds_text(expectation: Expectation) -> str:
    return "holds" if expectation.holds else "does not hold"


def expectation_table(expectations: Iterable[Expectation]) -> str:
    """Expected against found, as Markdown."""
    rows = [
        f"| {o.test} | {o.description} | {o.expected} | {o.observed} | {holds_text(o) if o.holds else f'**{holds_text(o)}**'} |"
        for o in expectations
    ]
    return "\n".join(["| test | what | expected | found | |", "|---|---|---|---|---|", *rows])


# The judge: a subject's path beside the paper's, problem by problem.

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
    observed: float  # NaN where there is none
    message: str


def judge_subject(subject: Subject) -> list[Verdict]:
    """Every problem of the subject's algorithm."""
    if subject.algorithm not in REFERENCES:
        raise KeyError(f"no algorithm {subject.algorithm!r} to be judged by; there are {', '.join(sorted(REFERENCES))}")
    return [judge_problem(subject, problem) for problem in PROBLEMS if problem.algorithm == subject.algorithm]


def judge_problem(subject: Subject, problem: Problem) -> Verdict:
    """One verdict. An exception of the subject's is a finding, not ours to raise."""
    expected = REFERENCES[problem.algorithm](problem)
    scale = TOLERANCE * max(1.0, *(abs(x) for x in expected), abs(problem.x0))

    def verdict(holds: bool | None, round: int, found: float, said: str) -> Verdict:
        return Verdict(subject.name, subject.version, problem.algorithm, problem.name, holds, expected[round], found, said)

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
            return verdict(False, round, found, f"off from round {round + 1} on; made to catch: {problem.detects}")
    return verdict(True, -1, path[-1], "")


def scoreboard(subjects: Iterable[Subject]) -> list[Verdict]:
    """All verdicts on all subjects."""
    return [verdict for subject in subjects for verdict in judge_subject(subject)]


def verdict_table(verdicts: Iterable[Verdict]) -> str:
    """A scoreboard as Markdown."""
    sign = {True: "right", False: "**wrong**", None: "not asked"}
    rows = [
        f"| {v.subject} {v.version} | {v.algorithm} | {v.problem} | {sign[v.holds]} | {v.expected:.6f} | {v.observed:.6f} | {v.message} |"
        for v in verdicts
    ]
    return "\n".join(
        ["| implementation | algorithm | problem | verdict | expected | found | what was said |", "|---|---|---|---|---|---|---|", *rows]
    )
