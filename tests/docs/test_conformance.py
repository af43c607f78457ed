"""The page on conformance: its example is a subject, and nothing that is judged is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

from fedrift.conform import OURS, PLANTED, PROBLEMS, scoreboard
from fedrift.conform.subjects import subjects
from fedrift.conform.suite import bugs_table, planted

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def test_the_example_is_a_subject_and_right(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "mine.py").write_text(example)
    verdicts = scoreboard(subjects(f"{tmp_path / 'mine.py'}:SUBJECT"))
    assert verdicts and all(verdict.holds for verdict in verdicts)


def test_every_algorithm_and_every_problem_is_in_the_scoreboard():
    for subject in OURS:
        (row,) = re.findall(rf"^\| {subject.algorithm} \| ([^|]*) \| (\d+) of (\d+) \|$", PAGE, re.MULTILINE)
        asked = [problem for problem in PROBLEMS if problem.algorithm == subject.algorithm]
        assert set(row[0].strip().split("; ")) == {problem.name for problem in asked}
        assert row[1] == row[2] == str(len(asked))
    whole = sum(problem.algorithm == subject.algorithm for subject in OURS for problem in PROBLEMS)
    assert f": {whole} of {whole} right" in PAGE


def test_the_table_of_planted_bugs_is_todays():
    assert bugs_table(planted()) in PAGE
    assert "**nothing**" not in PAGE
    assert {bug.algorithm for bug in PLANTED} == {subject.algorithm for subject in OURS}
