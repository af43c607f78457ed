"""Test that injected failures have their effects in whole runs, that runs are cached, and that a testbed makes all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.calibration.analytic_failures import INJECTED_FAILURES
from benchmarks.calibration.lm_failures import MajorityMix, make_failures, make_null_runs
from benchmarks.calibration.score import PAGE_HEADER, FalseAlarms, Recall, load_calibrations, placebo_rate, render_page, to_dict
from benchmarks.calibration.testbeds import AlternatingClients, RunRequest, Testbed, load_or_run, run_request
from fedrift.config.schema import edit_config
from fedrift.diagnosis.detectors import run_detectors
from fedrift.diagnosis.finding import RunEvidence, RunInfo
from tests import small_experiment

from .runs import falling, run


@pytest.fixture
def testbed(tmp_path):
    asked = small_experiment.experiment(
        tmp_path,
        "evaluation.probes=[hidden, adapters]",
        "evaluation.expensive_interval=1",
        "evaluation.final_blocks_per_domain=0",
        "training.participation_rate=1.0",
        "training.client_weighting=uniform",
        "partition.severity=0.0",
    )
    return Testbed("tiny", asked, small_experiment.make_cache(tmp_path), 0.01, 0.01, tmp_path / "kept")


def test_a_run_without_a_failure_equals_a_normal_run(testbed):
    from fedrift.engine.run import run_experiment as really

    made, facts = run_request(RunRequest(testbed.base), testbed.resources)
    assert list(made.curve("loss")) == list(really(testbed.base, testbed.resources).trajectory().curve("loss"))
    assert facts.local_steps == 2 and len(facts.tokens) == 3 and len(facts.domains) == 3


def test_each_injected_failure_has_its_effect(testbed):
    plain_, _ = testbed.run_cached(RunRequest(testbed.base), 0)
    broken, _ = testbed.run_cached(RunRequest(testbed.base, nan_clients=(1,)), 0)
    assert (broken.client_table("failed")[1:] == [0, 1, 0]).all()
    turned, _ = testbed.run_cached(RunRequest(testbed.base, has_flipped_signs=True), 0)
    assert turned.curve("adapters.error.update")[-1] > 0.5 > plain_.curve("adapters.error.update")[-1]
    drawn, _ = testbed.run_cached(RunRequest(testbed.base, collapse_strength=0.98), 0)
    assert drawn.curve("hidden.rank.ratio", "layer 01")[-1] < 0.6 < plain_.curve("hidden.rank.ratio", "layer 01")[-1]
    alone, _ = testbed.run_cached(RunRequest(testbed.base, client_sampler=AlternatingClients()), 0)
    assert [np.isfinite(row).nonzero()[0].tolist() for row in alone.client_table("train.loss")[1:]] == [[0], [1], [2], [0]]


def test_every_failure_is_injected(testbed):
    """Except the gaps, which are a consequence of other failures, and the failures of test_broken_runs.py, whose limits are derived."""
    calm = run(loss=falling(), loss__a=falling())
    called = {finding.failure for finding in run_detectors(RunEvidence(calm, calm))}
    grown, exact = ({plant.failure for plant in table} for table in (make_failures(testbed), INJECTED_FAILURES))
    assert called - grown - exact == {"loss gap", "domain gap", "dead model", "exploding updates"} and len(grown) >= 11
    assert exact - grown == {"client drift", "oscillation", "server overshoot", "stale control variates"}


def test_runs_are_cached(tmp_path):
    made = []

    def make():
        made.append(1)
        return run(loss=[3.0, float("nan")]), RunInfo(2, ("a",), ((1.0,),))

    (first, facts), (again, same) = load_or_run(tmp_path, "x", make), load_or_run(tmp_path, "x", make)
    load_or_run(tmp_path, "y", make)
    assert len(made) == 2 and facts == same and first.records[0] == again.records[0] and np.isnan(again.curve("loss")[1])
    load_or_run(None, "x", make)
    assert len(made) == 3


def test_a_testbed_has_all_failures_and_healthy_runs(testbed):
    assert len({plant.failure for plant in make_failures(testbed)}) >= 10 and len(make_null_runs(testbed)) == 2


@pytest.mark.parametrize("severity", [0.0, 1.0])
def test_only_the_last_client_holds_the_last_domain(testbed, severity):
    corpus = testbed.resources.get_corpus(testbed.base.dataset, testbed.base.model)
    dealt = MajorityMix(5, severity)(corpus, np.random.default_rng(0))
    held = [set(corpus.label[rows]) for rows in dealt.rows]
    assert sum(map(len, dealt.rows)) == len(corpus)
    assert held[-1] == ({2} if severity else {0, 1, 2}) and (2 in held[0]) == (severity == 0)


def test_exchanged_labels_rarely_confirm_a_failure():
    cases = [RunEvidence(run(loss=falling() + 0.3 + k / 100), run(loss=falling()), seed=k) for k in range(5)]
    assert placebo_rate(cases, "loss gap") <= 1 / 31
    assert np.isnan(placebo_rate([replace(case, iid_baseline=None) for case in cases], "loss gap"))


def test_calibrations_are_written_to_one_page(tmp_path):
    alarms = [FalseAlarms("stalled convergence", 1, 20, 0.001, 0.25, 0, 4, 0.7)]
    recalls = [Recall("slow", "stalled convergence", 5, 5, "confirmed", ("loss gap",), (), 10.0, float("nan"), 0.0)]
    numbers = to_dict("synthetic", alarms, recalls)
    (tmp_path / "calibration-synthetic.json").write_text(__import__("json").dumps(numbers))
    page = render_page(load_calibrations(tmp_path))
    assert page.startswith(PAGE_HEADER[:20]) and "| slow | stalled convergence | 5 of 5 | confirmed | 10 | – | loss gap | – | 0 % |" in page


def test_seeds_give_different_runs(testbed):
    quick = edit_config(testbed.base, {"training__num_rounds": 1, "evaluation__probes": ()})
    assert testbed.run_cached(RunRequest(quick), 1)[0].curve("loss")[1] != testbed.run_cached(RunRequest(quick), 2)[0].curve("loss")[1]
