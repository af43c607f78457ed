"""Test that fedrift passes the conformance problems, that every injected bug is detected, and that other subjects can be tested."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest

from fedrift.conformance import FEDRIFT_SUBJECTS, PROBLEMS, Problem, Unsupported, judge_subject, verdict_table
from fedrift.conformance.reference import REFERENCES
from tests.mutants import MUTANTS


@pytest.mark.parametrize("subject", FEDRIFT_SUBJECTS, ids=lambda s: s.algorithm)
def test_the_algorithms_of_fedrift_equal_those_of_the_papers(subject):
    verdicts = judge_subject(subject)
    assert verdicts
    assert all(v.holds for v in verdicts), [v for v in verdicts if not v.holds]


@pytest.mark.sample(10)
@pytest.mark.parametrize("subject", MUTANTS, ids=lambda s: f"{s.algorithm}-{s.name}")
def test_every_injected_bug_is_detected(subject):
    assert any(v.holds is False for v in judge_subject(subject))


def test_every_reference_has_a_problem_and_every_problem_a_reference():
    assert {p.algorithm for p in PROBLEMS} == set(REFERENCES) == {s.algorithm for s in FEDRIFT_SUBJECTS}


def test_the_references_equal_the_published_numbers():
    paths = {p.algorithm: REFERENCES[p.algorithm](p) for p in reversed(PROBLEMS) if p.name == "two clients"}
    assert paths["fedavg"][:3] == pytest.approx([1.3837893354, 0.7424090671, 0.6286522408])
    assert paths["scaffold"][:6] == pytest.approx([1.3837893354, 0.6699790781, 0.6283130012, 0.6922771306, 0.7443112481, 0.7737159831])


def test_adapter_problems_have_rectangular_modules_and_unequal_weights():
    """Otherwise a transposed residual and unweighted means would pass."""
    for problem in PROBLEMS:
        if problem.adapters:
            rows, columns = len(problem.adapters.up), len(problem.adapters.down[0])
            assert rows != columns
            assert len(set(problem.num_examples)) == problem.num_clients
            assert all(len(target) == rows and len(target[0]) == columns for target in problem.adapters.targets)


def test_exact_aggregators_agree_in_the_first_round_and_separate_means_differ():
    """FedEx, FLoRA and FlexLoRA (of sufficient rank) all give sum_k p_k B_k A_k."""
    first = {p.algorithm: REFERENCES[p.algorithm](p)[0] for p in reversed(PROBLEMS) if p.adapters and p.evaluated_client < 0}
    assert first["fedex"] == pytest.approx(first["flora"], abs=1e-12)
    assert abs(first["lora"] - first["fedex"]) > 1e-3


def test_personalized_models_are_evaluated_for_their_client():
    asked = [p for p in PROBLEMS if p.evaluated_client >= 0]
    assert {p.algorithm for p in asked} == {"ditto", "fine_tuned", "pfedme", "fedper"}
    for problem in asked:
        others = {REFERENCES[problem.algorithm](replace(problem, evaluated_client=k))[-1] for k in range(problem.num_clients)}
        assert len(others) == problem.num_clients


@dataclass(frozen=True)
class NanSubject:
    name: str = "mine"
    version: str = "1"
    algorithm: str = "fedavg"
    error: type[Exception] | None = None

    def run(self, problem: Problem) -> list[float]:
        if self.error:
            raise self.error("no such thing")
        return [math.nan] * len(problem.cohorts)


def test_a_subject_can_pass_fail_raise_or_decline():
    assert {v.holds for v in judge_subject(NanSubject())} == {False}
    assert all("ZeroDivisionError" in v.message and v.holds is False for v in judge_subject(NanSubject(error=ZeroDivisionError)))
    assert {v.holds for v in judge_subject(NanSubject(error=Unsupported))} == {None}
    assert verdict_table(judge_subject(NanSubject())).count("**wrong**") == len(judge_subject(NanSubject()))
    with pytest.raises(KeyError, match="fedprox"):
        judge_subject(NanSubject(algorithm="fedmagic"))
