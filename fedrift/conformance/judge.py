"""Verdicts on implementations, and expectations that are taken from papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ..stats.effects import mean_ci
from .problems import PROBLEMS, Problem, Subject, Unsupported
from .reference import REFERENCES


@dataclass(frozen=True)
class Expectation:
    """Hold an expectation from a paper and the observed result."""

    test: str  # name of the test, such as ``AT-2``
    description: str  # the quantity that is measured
    expected: str  # the expected value or range, as text
    observed: str  # the observed value, as text
    holds: bool  # whether the observed value meets the expectation


def expect_near(test: str, description: str, expected: float, observed: float, tolerance: float = 1e-6) -> Expectation:
    """Expect a value within a tolerance, which is relative for expected values above 1."""
    holds = abs(expected - observed) <= tolerance * max(1, abs(expected))
    return Expectation(test, description, f"{expected:.7g}", f"{observed:.7g}", holds)


def expect_every_seed(
    test: str, description: str, expected: str, values: np.ndarray, holds: Callable[[np.ndarray], np.ndarray]
) -> Expectation:
    """Expect a property of the value of every seed.

    Args:
        test: Name of the test.
        description: The quantity that is measured.
        expected: The property, as text.
        values: Values to check, [S].
        holds: Function that checks the values and returns booleans.
    """
    return Expectation(test, description, expected, format_values(values), bool(holds(values).all()))


def expect_positive_mean(test: str, description: str, differences: np.ndarray, note: str = "") -> Expectation:
    """Expect that the 95 % t-interval of the mean over seeds lies above zero.

    Args:
        test: Name of the test.
        description: The quantity that is measured.
        differences: Paired difference of each seed, [S].
        note: Text that is appended to the observed value.
    """
    mean = mean_ci(differences)
    positive = f"{(differences > 0).sum()} of {len(differences)} positive"
    observed = f"{mean.estimate:+.4f} ({mean.low:+.4f} to {mean.high:+.4f}), {positive}"
    return Expectation(test, description, "95 % interval of the mean > 0", observed + note, mean.low > 0)


def format_values(values: np.ndarray) -> str:
    """Format values with three significant digits."""
    return " ".join(f"{value:.3g}" for value in values)


def holds_text(expectation: Expectation) -> str:
    """Return ``holds`` or ``does not hold``."""
    return "holds" if expectation.holds else "does not hold"


def expectation_table(expectations: Iterable[Expectation]) -> str:
    """Return expected and observed values as a Markdown table."""
    rows = [
        f"| {e.test} | {e.description} | {e.expected} | {e.observed} | {holds_text(e) if e.holds else f'**{holds_text(e)}**'} |"
        for e in expectations
    ]
    return "\n".join(["| test | description | expected | observed | |", "|---|---|---|---|---|", *rows])


TOLERANCE = 1e-4  # relative to the largest |x|; rounding in single precision stays below it, and all known bugs exceed it


@dataclass(frozen=True)
class Verdict:
    """Hold the verdict on one implementation and one problem.

    Attributes:
        subject: Name of the implementation.
        version: Its version.
        algorithm: Name of the algorithm, as in ``REFERENCES``.
        problem: Name of the problem.
        holds: Whether the implementation agrees with the reference; None if its interface cannot express the problem.
        expected: Solution of the reference in the first round that differs, or after the last round.
        observed: Solution of the implementation in this round; NaN if there is none.
        message: Explanation of a verdict that is not positive.
    """

    subject: str
    version: str
    algorithm: str
    problem: str
    holds: bool | None
    expected: float
    observed: float
    message: str


def judge_subject(subject: Subject) -> list[Verdict]:
    """Judge an implementation on every problem of its algorithm.

    Raises:
        KeyError: There is no reference for the algorithm.

    Example:
        ```python
        from fedrift.conformance import FEDRIFT_SUBJECTS, judge_subject, verdict_table

        print(verdict_table(judge_subject(FEDRIFT_SUBJECTS[0])))
        ```
    """
    if subject.algorithm not in REFERENCES:
        raise KeyError(f"there is no reference for the algorithm {subject.algorithm!r}; choose one of {', '.join(sorted(REFERENCES))}")
    return [judge_problem(subject, problem) for problem in PROBLEMS if problem.algorithm == subject.algorithm]


def judge_problem(subject: Subject, problem: Problem) -> Verdict:
    """Judge an implementation on one problem. An exception of the implementation is a negative verdict and is not raised."""
    expected = REFERENCES[problem.algorithm](problem)
    tolerance = TOLERANCE * max(1.0, *(abs(x) for x in expected), abs(problem.x0))

    def make_verdict(holds: bool | None, round: int, observed: float, message: str) -> Verdict:
        return Verdict(subject.name, subject.version, problem.algorithm, problem.name, holds, expected[round], observed, message)

    try:
        path = subject.run(problem)
    except Unsupported as reason:
        return make_verdict(None, -1, math.nan, str(reason))
    except Exception as error:
        return make_verdict(False, -1, math.nan, f"raised {type(error).__name__}: {error}"[:200])
    if len(path) != len(expected):
        return make_verdict(False, -1, math.nan, f"returned {len(path)} values for {len(expected)} rounds")
    for round, (observed, reference) in enumerate(zip(path, expected, strict=True)):
        if not abs(observed - reference) <= tolerance:
            return make_verdict(
                False, round, observed, f"differs from the reference from round {round + 1} on; the problem detects: {problem.detects}"
            )
    return make_verdict(True, -1, path[-1], "")


def scoreboard(subjects: Iterable[Subject]) -> list[Verdict]:
    """Judge several implementations on all problems of their algorithms."""
    return [verdict for subject in subjects for verdict in judge_subject(subject)]


def verdict_table(verdicts: Iterable[Verdict]) -> str:
    """Return verdicts as a Markdown table."""
    labels = {True: "right", False: "**wrong**", None: "not tested"}
    rows = [
        f"| {v.subject} {v.version} | {v.algorithm} | {v.problem} | {labels[v.holds]} | {v.expected:.6f} | {v.observed:.6f} | {v.message} |"
        for v in verdicts
    ]
    return "\n".join(
        ["| implementation | algorithm | problem | verdict | expected | observed | message |", "|---|---|---|---|---|---|---|", *rows]
    )
