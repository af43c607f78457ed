"""Plants in whole runs do what they say, runs are kept, and a ground grows all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrift.calibrate.grounds import Ground
from fedrift.calibrate.grown import Majority, healthy, plants
from fedrift.calibrate.kept import kept
from fedrift.calibrate.page import HEAD, markdown, plain, recorded
from fedrift.calibrate.plants import PLANTS
from fedrift.calibrate.score import Alarms, Recall, placebo
from fedrift.calibrate.whole import Asked, InTurn, carry_out
from fedrift.detectors import findings
from fedrift.detectors.finding import Case, Facts
from fedrift.experiment import edit
from tests import worlds

from .runs import falling, run


@pytest.fixture
def ground(tmp_path):
    asked = worlds.experiment(tmp_path, "evaluate.panel=[hidden, adapters]", "evaluate.deep=1", "evaluate.final=0",
                              "plan.participation=1.0", "plan.weighting=uniform", "partition.severity=0.0")
    return Ground("tiny", asked, worlds.stock(tmp_path), 0.01, 0.01, tmp_path / "kept")


def test_the_plain_run_is_the_real_one(ground):
    from fedrift.run import carry_out as really

    made, facts = carry_out(Asked(ground.base), ground.stock)
    assert list(made.curve("loss")) == list(really(ground.base, ground.stock).trajectory().curve("loss"))
    assert facts.steps == 2 and len(facts.tokens) == 3 and len(facts.domains) == 3


def test_each_plant_shows_where_it_was_planted(ground):
    plain_, _ = ground.grown(Asked(ground.base), 0)
    broken, _ = ground.grown(Asked(ground.base, broken=(1,)), 0)
    assert (broken.table("failed")[1:] == [0, 1, 0]).all()
    turned, _ = ground.grown(Asked(ground.base, turned=True), 0)
    assert turned.curve("adapters.error.update")[-1] > 0.5 > plain_.curve("adapters.error.update")[-1]
    drawn, _ = ground.grown(Asked(ground.base, drawn=0.98), 0)
    assert drawn.curve("hidden.rank.ratio", "layer 01")[-1] < 0.6 < plain_.curve("hidden.rank.ratio", "layer 01")[-1]
    alone, _ = ground.grown(Asked(ground.base, draw=InTurn()), 0)
    assert [np.isfinite(row).nonzero()[0].tolist() for row in alone.table("train.loss")[1:]] == [[0], [1], [2], [0]]


def test_every_failure_is_planted(ground):
    """All but the gaps, which are the price of whatever happened, and what test_broken.py plants, whose limits are derived."""
    calm = run(loss=falling(), loss__a=falling())
    called = {finding.failure for finding in findings(Case(calm, calm))}
    grown, exact = ({plant.failure for plant in table} for table in (plants(ground), PLANTS))
    assert called - grown - exact == {"loss gap", "domain gap", "dead model", "exploding updates"} and len(grown) >= 11
    assert exact - grown == {"client drift", "oscillation", "server overshoot", "stale controls"}


def test_runs_are_kept_and_not_made_again(tmp_path):
    made = []

    def make():
        made.append(1)
        return run(loss=[3.0, float("nan")]), Facts(2, ("a",), ((1.0,),))

    (first, facts), (again, same) = kept(tmp_path, "x", make), kept(tmp_path, "x", make)
    kept(tmp_path, "y", make)
    assert len(made) == 2 and facts == same and first.records[0] == again.records[0] and np.isnan(again.curve("loss")[1])
    kept(None, "x", make)
    assert len(made) == 3


def test_a_ground_has_all_plants_and_its_healthy_runs(ground):
    assert len({plant.failure for plant in plants(ground)}) >= 10 and len(healthy(ground)) == 2


@pytest.mark.parametrize("severity", [0.0, 1.0])
def test_the_last_client_holds_the_last_domain_alone(ground, severity):
    corpus = ground.stock.corpus(ground.base.corpus, ground.base.model)
    dealt = Majority(5, severity)(corpus, np.random.default_rng(0))
    held = [set(corpus.label[rows]) for rows in dealt.rows]
    assert sum(map(len, dealt.rows)) == len(corpus)
    assert held[-1] == ({2} if severity else {0, 1, 2}) and (2 in held[0]) == (severity == 0)


def test_exchanged_tags_confirm_a_real_failure_hardly_ever():
    cases = [Case(run(loss=falling() + 0.3 + k / 100), run(loss=falling()), seed=k) for k in range(5)]
    assert placebo(cases, "loss gap") <= 1 / 31
    assert np.isnan(placebo([replace(case, twin=None) for case in cases], "loss gap"))


def test_calibrations_are_told_on_one_page(tmp_path):
    alarms = [Alarms("stall", 1, 20, 0.001, 0.25, 0, 4, 0.7)]
    recalls = [Recall("slow", "stall", 5, 5, "confirmed", ("loss gap",), (), 10.0, float("nan"), 0.0)]
    numbers = plain("sandbox", alarms, recalls)
    (tmp_path / "calibration-sandbox.json").write_text(__import__("json").dumps(numbers))
    page = markdown(recorded(tmp_path))
    assert page.startswith(HEAD[:20]) and "| slow | stall | 5 of 5 | confirmed | 10 | – | loss gap | – | 0% |" in page


def test_seeds_make_other_runs(ground):
    quick = edit(ground.base, {"plan__rounds": 1, "evaluate__panel": ()})
    assert ground.grown(Asked(quick), 1)[0].curve("loss")[1] != ground.grown(Asked(quick), 2)[0].curve("loss")[1]
