"""Test docs/conformance.md: its example is a valid subject, and its tables contain every algorithm, problem and bug."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedrift.conformance import FEDRIFT_SUBJECTS, PROBLEMS, scoreboard
from fedrift.conformance.subjects import load_subjects
from tests.mutants import MUTANTS, judge_mutants, mutant_table

CONFORMANCE_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def test_the_example_is_a_subject_and_right(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", CONFORMANCE_PAGE, re.DOTALL)
    (tmp_path / "mine.py").write_text(example)
    verdicts = scoreboard(load_subjects(f"{tmp_path / 'mine.py'}:SUBJECT"))
    assert verdicts and all(verdict.holds for verdict in verdicts)


def test_every_algorithm_and_every_problem_is_in_the_scoreboard():
    for subject in FEDRIFT_SUBJECTS:
        (row,) = re.findall(rf"^\| {subject.algorithm} \| ([^|]*) \| (\d+) of (\d+) \|$", CONFORMANCE_PAGE, re.MULTILINE)
        problems = [problem for problem in PROBLEMS if problem.algorithm == subject.algorithm]
        assert set(row[0].strip().split("; ")) == {problem.name for problem in problems}
        assert row[1] == row[2] == str(len(problems))
    total = sum(problem.algorithm == subject.algorithm for subject in FEDRIFT_SUBJECTS for problem in PROBLEMS)
    assert f": {total} of {total} right" in CONFORMANCE_PAGE


@pytest.mark.slow
def test_the_table_of_detected_bugs_is_up_to_date():
    assert mutant_table(judge_mutants()) in CONFORMANCE_PAGE
    assert "**nothing**" not in CONFORMANCE_PAGE
    assert {bug.algorithm for bug in MUTANTS} == {subject.algorithm for subject in FEDRIFT_SUBJECTS}
