"""Test the hypotheses of a study file on studies of known truth."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fedrift import stats as s
from fedrift.config.loader import Registry, dump_value, parse_value
from fedrift.core.errors import UserError
from fedrift.stats import hypotheses
from fedrift.stats.hypotheses import (
    All,
    ContrastTerm,
    Equivalent,
    Greater,
    Hypothesis,
    Interaction,
    Less,
    LinearContrast,
    MatchedDifference,
    RateGreater,
    RecoveredFraction,
    Trend,
)

from .frames import FACTORS, diverge, make_arms, study, with_baselines

ROOMS = Registry({Hypothesis: hypotheses})
SCAFFOLD = {"metric": "loss", "group": {"algorithm": "Scaffold"}, "reference": {"algorithm": "FedAvg"}}
GAP = {"metric": "loss", "contrast": "iid_baseline", "group": {"partition.severity": 1.0}}


def true_loss(algorithm, severity, participation):
    """Return the true loss: FedAvg loses .2 nats per severity, Scaffold half of that, and each has its own level."""
    return (0.2 if algorithm == "FedAvg" else 0.1) * severity + (0.0 if algorithm == "FedAvg" else 0.3)


def evaluate_one(said, runs, **more):
    return s.evaluate_hypotheses([said], runs, FACTORS, **more)[0]


def test_every_kind_of_hypothesis_is_read_from_yaml():
    said = [
        {
            "type": "Trend",
            "name": "H1",
            "metric": "loss",
            "contrast": "iid_baseline",
            "predictor": "partition.severity",
            "where": {"algorithm": "FedAvg"},
        },
        {
            "type": "Less",
            "name": "H2",
            "metric": "boundary",
            "contrast": "iid_baseline",
            "scale": "ratio",
            "group": {"partition.severity": 1.0},
        },
        {
            "type": "Interaction",
            "name": "H3",
            "metric": "oscillation",
            "group": {"training.participation_rate": 0.2},
            "reference": {"training.participation_rate": 1.0},
            "inside": {"iid": False},
            "outside": {"iid": True},
        },
        {"type": "Equivalent", "name": "H5", "metric": "syntax.accuracy", "margin": 0.01, "contrast": "iid_baseline", "worst_end": "low"},
        {"type": "RateGreater", "name": "H6", "metric": "diverged", "group": {"partition.severity": 1.0}},
        {
            "type": "RecoveredFraction",
            "name": "H7",
            "metric": "loss",
            "group": {"algorithm": "Exact"},
            "reference": {"algorithm": "FedAvg"},
        },
        {
            "type": "All",
            "name": "H8",
            "parts": [{"type": "Less", "name": "a", "metric": "loss"}, {"type": "Greater", "name": "b", "metric": "loss"}],
        },
    ]
    found = parse_value(tuple[Hypothesis, ...], said, ROOMS, "hypotheses")
    assert [type(h).__name__ for h in found] == [h["type"] for h in said]
    assert parse_value(tuple[Hypothesis, ...], dump_value(found, ROOMS), ROOMS, "hypotheses") == found
    with pytest.raises(UserError, match="did you mean 'Trend'"):
        parse_value(tuple[Hypothesis, ...], [{"type": "Trends", "name": "x"}], ROOMS, "hypotheses")


def test_an_existing_difference_is_supported_and_its_opposite_refuted():
    runs = study(true_loss)
    sides = {**SCAFFOLD, "where": {"partition.severity": 1.0}}
    up, down = evaluate_one(Greater(name="up", **sides), runs), evaluate_one(Less(name="down", **sides), runs)
    assert (up.verdict, down.verdict) == ("supported", "refuted")
    assert up.effect == pytest.approx(0.2, abs=0.02) and up.low < 0.2 < up.high
    assert (up.p, up.min_attainable_p, up.seeds, up.test) == (2 / 1024, 2 / 1024, 10, "exact sign-flip")
    assert len(up.points) == 10 and "supported" in up.sentence and "10 seeds" in up.sentence


def test_a_contrast_with_baselines_is_a_difference_in_differences():
    """Scaffold is worse by .3 everywhere and loses half as much to heterogeneity; the baseline removes the .3."""
    found = evaluate_one(
        Less(
            name="H",
            metric="loss",
            contrast="iid_baseline",
            group={"algorithm": "Scaffold"},
            reference={"algorithm": "FedAvg"},
            where={"partition.severity": 1.0},
        ),
        study(true_loss),
    )
    assert found.verdict == "supported" and found.effect == pytest.approx(-0.1, abs=0.02)


def test_without_a_reference_the_gap_itself_is_tested():
    found = evaluate_one(Greater(name="H", where={"algorithm": "FedAvg"}, margin=0.1, **GAP), study(true_loss))
    assert found.verdict == "supported" and found.effect == pytest.approx(0.2, abs=0.02)
    assert evaluate_one(Greater(name="H", where={"algorithm": "FedAvg"}, margin=0.3, **GAP), study(true_loss)).verdict == "refuted"


def test_five_seeds_are_inconclusive_and_the_required_number_is_stated():
    found = evaluate_one(Greater(name="H", **GAP), study(true_loss, seeds=5, noise=1e-6))
    assert found.verdict == "inconclusive" and found.min_attainable_p == 0.0625 and found.detectable == math.inf
    assert "5 seeds cannot give a p below 0.062" in found.sentence and "at least 6 are needed" in found.sentence


def test_each_family_is_corrected_separately():
    """With seven seeds p = 2/128 = .016 is sufficient for one hypothesis, but not for one of four."""
    runs = study(true_loss, seeds=7, noise=1e-4)
    said = [Greater(name=str(k), family=family, **GAP) for k, family in enumerate(["a", "b", "b", "b", "b"])]
    found = s.evaluate_hypotheses(said, runs, FACTORS)
    assert [v.verdict for v in found] == ["supported"] + ["inconclusive"] * 4
    assert found[0].p_holm == 2 / 128 and found[1].p_holm == pytest.approx(4 * 2 / 128) and found[1].detectable == math.inf


def test_an_effect_too_small_to_matter_is_ruled_out():
    runs = study(lambda *condition: 0.0)
    sides = {"metric": "loss", "group": {"algorithm": "Scaffold"}, "reference": {"algorithm": "FedAvg"}}
    assert evaluate_one(Greater(name="H", min_effect=0.05, **sides), runs).verdict == "refuted"
    loose = evaluate_one(Greater(name="H", **sides), runs)
    assert loose.verdict == "inconclusive" and 0 < loose.detectable < 0.05 and "would have been detected" in loose.sentence


def test_a_diverged_run_has_the_worst_rank_and_is_not_excluded():
    runs = study(true_loss, algorithms=("FedAvg", "Scaffold"))
    bad = (runs["algorithm"] == "Scaffold") & (runs["partition.severity"] == 1.0) & (runs["seed"] < 3)
    found = evaluate_one(
        Greater(
            name="H", metric="loss", group={"algorithm": "Scaffold"}, reference={"algorithm": "FedAvg"}, where={"partition.severity": 1.0}
        ),
        diverge(runs, bad),
    )
    assert (found.verdict, found.seeds, found.diverged, found.test) == ("supported", 10, 3, "exact signed-rank")
    assert sorted(value for _, value in found.points)[-3:] == [math.inf] * 3
    assert math.isfinite(found.effect) and "3 runs diverged" in found.sentence


BOTH = {"metric": "loss", "group": {"algorithm": "Scaffold"}, "reference": {"algorithm": "FedAvg"}, "where": {"partition.severity": 1.0}}
KINDS = [
    Greater(name="H", **BOTH),
    Less(name="H", **GAP),
    Equivalent(name="H", margin=0.1, **BOTH),
    RecoveredFraction(name="H", **BOTH),
    Interaction(
        name="H",
        metric="loss",
        group=BOTH["group"],
        reference=BOTH["reference"],
        inside={"partition.severity": 1.0},
        outside={"partition.severity": 0.5},
    ),
]


@pytest.mark.parametrize("said", KINDS, ids=lambda said: type(said).__name__)
def test_seeds_in_which_both_sides_diverged_are_excluded(said):
    """The result does not change without these seeds, but they and their runs are counted."""
    runs = study(true_loss)
    found, less = evaluate_one(said, diverge(runs, runs["seed"] < 2)), evaluate_one(said, runs[runs["seed"] >= 2])
    assert (found.effect, found.low, found.high, found.p, found.seeds) == (less.effect, less.low, less.high, less.p, 8)
    assert found.both_diverged == 2 and found.diverged > 0 and 0 not in dict(found.points)
    assert "In 2 seeds both sides diverged" in found.sentence and "count as the worst" not in found.sentence


@pytest.mark.parametrize(
    "said",
    [*KINDS, Trend(name="H", predictor="partition.severity", metric="loss", contrast="iid_baseline")],
    ids=lambda said: type(said).__name__,
)
def test_if_every_run_diverged_no_effect_is_reported(said):
    runs = study(true_loss, seeds=3)
    found = evaluate_one(said, diverge(runs, runs["seed"] >= 0))
    assert found.verdict == "inconclusive" and math.isnan(found.effect)
    assert (found.seeds, found.both_diverged, found.incomplete) == (0, 3, 0)
    assert "both sides diverged in all of 3 seeds" in found.sentence and "diverged." in found.sentence
    assert "+0" not in found.sentence


def test_diverged_baselines_are_counted_and_each_run_once():
    """Six runs of three seeds diverged, as at a very high learning rate: three runs and their baselines."""
    runs = study(true_loss, seeds=3, algorithms=("FedAvg",), severities=(1.0,))
    assert evaluate_one(Greater(name="H", **GAP), diverge(runs, runs["seed"] >= 0)).diverged == 6
    assert evaluate_one(Greater(name="H", **GAP), diverge(runs, runs["iid"])).diverged == 3


def test_a_diverged_run_has_the_worst_rank_for_accuracies_and_losses():
    """A low accuracy is bad; with the opposite order a broken model would be the most accurate one."""
    runs = study(true_loss, seeds=7).rename(columns={"loss": "syntax.accuracy"}).assign(loss=0.0)
    bad = diverge(runs, (runs["partition.severity"] == 1.0) & (runs["seed"] < 4))
    condition = {"partition.severity": 1.0, "algorithm": "FedAvg"}
    found = evaluate_one(Less(name="H", metric="syntax.accuracy", contrast="iid_baseline", group=condition), bad)
    assert [value for _, value in found.points][:4] == [-math.inf] * 4 and found.effect == -math.inf
    assert evaluate_one(Less(name="H", metric="syntax.accuracy", worst_end="high", group=condition), bad).points[0][1] == math.inf
    assert (s.default_worst_end("loss"), s.default_worst_end("text.rougeL"), s.default_worst_end("text.repetition")) == (
        "high",
        "low",
        "high",
    )


def test_equal_seeds_are_reported():
    runs = study(true_loss, noise=0.0).assign(loss=lambda r: r["loss"].where(r["seed"] > 2, 1.0))
    found = evaluate_one(Greater(name="H", **BOTH), runs)
    assert "3 of 10 seeds do not differ at all" in found.notes and found.seeds == 10 and found.both_diverged == 0


def test_an_unfinished_seed_is_excluded_and_reported():
    runs = study(true_loss)
    lost = runs[~((runs["seed"] == 4) & (runs["partition.severity"] == 0.5) & (runs["algorithm"] == "Scaffold"))]
    found = evaluate_one(Greater(name="H", metric="loss", group={"algorithm": "Scaffold"}, reference={"algorithm": "FedAvg"}), lost)
    assert (found.seeds, found.incomplete) == (9, 1) and 4 not in dict(found.points) and "1 seed is incomplete" in found.sentence


def test_studies_and_levels_without_runs_are_inconclusive():
    said = Greater(name="H", metric="loss", group={"partition.severity": 0.9})
    for runs in (study(true_loss), study(true_loss).iloc[:0]):
        found = evaluate_one(said, runs)
        assert found.verdict == "inconclusive" and found.seeds == 0 and "There are no results to test" in found.sentence
    with pytest.raises(UserError, match="did you mean 'loss'"):
        evaluate_one(Greater(name="H", metric="los"), study(true_loss))
    with pytest.raises(UserError, match="no factor 'algoritm'"):
        evaluate_one(Greater(name="H", metric="loss", group={"algoritm": "FedAvg"}), study(true_loss))
    with pytest.raises(UserError, match="two hypotheses are named"):
        s.evaluate_hypotheses([said, said], study(true_loss), FACTORS)


def test_factors_of_only_one_side_keep_the_pairs():
    runs = study(true_loss).assign(**{"algorithm.alpha": lambda r: np.where(r["algorithm"] == "Scaffold", 0.5, np.nan)})
    found = s.evaluate_hypotheses(
        [Greater(name="H", metric="loss", group={"algorithm": "Scaffold"}, reference={"algorithm": "FedAvg"})],
        runs,
        [*FACTORS, "algorithm.alpha"],
    )[0]
    assert found.seeds == 10


def test_a_trend_is_found_with_its_slope_and_a_flat_one_is_not():
    runs = study(true_loss, severities=(0.25, 0.5, 0.75, 1.0))
    said = Trend(name="H1", metric="loss", contrast="iid_baseline", predictor="partition.severity", where={"algorithm": "FedAvg"})
    found = evaluate_one(said, runs)
    assert found.verdict == "supported" and found.effect == pytest.approx(0.2, abs=0.02) and found.test == "Page's L"
    down = Trend(name="H1", metric="loss", direction="down", contrast="iid_baseline", predictor="partition.severity")
    assert evaluate_one(down, runs).verdict == "refuted"
    assert evaluate_one(said, study(lambda *condition: 0.0, severities=(0.25, 0.5, 0.75, 1.0))).verdict == "inconclusive"


@pytest.mark.parametrize("direction, verdict", [("up", "supported"), ("down", "refuted")])
def test_two_levels_are_tested_by_their_paired_contrast(direction, verdict):
    """Test, interval and power are those of the upper minus the lower level; all seven seeds rise, so p = 2/128."""
    runs = study(true_loss, seeds=7, severities=(0.5, 1.0), algorithms=("FedAvg",))
    found = evaluate_one(Trend(name="H", metric="loss", contrast="iid_baseline", predictor="partition.severity", direction=direction), runs)
    gaps = s.outcome_values(runs, "loss", {}, "iid_baseline").pivot(index="seed", columns="partition.severity", values="value")
    d = (gaps[1.0] - gaps[0.5]).to_numpy()
    assert (found.verdict, found.test, found.unit, found.p) == (verdict, "exact sign-flip", "difference", 2 / 128)
    assert (found.effect, found.low, found.high) == pytest.approx((s.mean_ci(d).estimate, s.mean_ci(d).low, s.mean_ci(d).high))
    assert found.detectable == pytest.approx(s.min_detectable_effect(7, d.std(ddof=1)))
    assert "1 minus 0.5" in found.sentence and "not a trend" in found.notes[0]


def test_a_rank_test_of_trend_reports_no_power():
    runs = study(lambda *condition: 0.0, severities=(0.25, 0.5, 1.0))
    found = evaluate_one(Trend(name="H", metric="loss", contrast="iid_baseline", predictor="partition.severity"), runs)
    assert found.test == "Page's L" and math.isnan(found.detectable) and "would have been detected with" not in found.sentence
    assert "of the per-seed slopes" in found.sentence and "The p-value comes from a rank test" in found.sentence
    with pytest.raises(UserError, match="levels are numbers; the levels of 'algorithm' are FedAvg, Scaffold"):
        evaluate_one(Trend(name="H", metric="loss", predictor="algorithm"), runs)


def test_a_trend_inside_two_seeds_is_not_replicated():
    found = evaluate_one(
        Trend(name="H", metric="loss", contrast="iid_baseline", predictor="partition.severity"),
        study(true_loss, seeds=2, severities=(0.2, 0.4, 0.6, 0.8, 1.0), noise=1e-6),
    )
    assert found.verdict == "inconclusive" and "not replicated" in " ".join(found.notes)


def test_the_turning_point_of_a_trend_is_reported():
    bend = {0.0: 0.0, 0.25: 0.1, 0.5: 0.3, 0.75: 0.2, 1.0: 0.5}
    found = evaluate_one(
        Trend(name="H", metric="loss", contrast="iid_baseline", predictor="partition.severity"),
        study(lambda a, severity, p: bend[severity], severities=(0.25, 0.5, 0.75, 1.0)),
    )
    assert found.verdict == "supported" and any("0.5 to 0.75" in note for note in found.notes)


def test_a_measured_factor_is_tested_by_spearman():
    runs = study(true_loss, severities=(0.25, 0.5, 0.75, 1.0)).assign(measured=lambda r: r["partition.severity"] ** 2 + r["seed"] / 1e4)
    found = evaluate_one(Trend(name="H", metric="loss", contrast="iid_baseline", predictor="measured", where={"algorithm": "FedAvg"}), runs)
    assert found.verdict == "supported" and found.test.startswith("Spearman") and found.seeds == 10


def test_an_interaction_is_a_difference_between_differences():
    """Lower participation costs .2 on non-IID data and nothing on IID data."""

    def truth(algorithm, severity, participation):
        return 0.2 * severity * (participation < 1)

    runs = study(truth, participations=(0.2, 1.0), severities=(1.0,))
    sides = {"metric": "loss", "group": {"training.participation_rate": 0.2}, "reference": {"training.participation_rate": 1.0}}
    found = evaluate_one(Interaction(name="H3", inside={"iid": False}, outside={"iid": True}, **sides), runs)
    assert found.verdict == "supported" and found.effect == pytest.approx(0.2, abs=0.02)
    same = evaluate_one(Interaction(name="H3", inside={"algorithm": "FedAvg"}, outside={"algorithm": "Scaffold"}, **sides), runs)
    assert same.verdict == "inconclusive" and abs(same.effect) < 0.02


def test_equivalence_is_shown_refuted_or_open():
    sides = {"metric": "loss", "group": {"algorithm": "Scaffold"}, "reference": {"algorithm": "FedAvg"}}
    assert evaluate_one(Equivalent(name="H", margin=0.05, **sides), study(lambda *condition: 0.0)).verdict == "supported"
    assert evaluate_one(Equivalent(name="H", margin=0.05, **sides), study(true_loss)).verdict == "refuted"
    assert evaluate_one(Equivalent(name="H", margin=0.05, **sides), study(lambda *condition: 0.0, noise=0.3)).verdict == "inconclusive"


def test_the_recovered_share_is_relative_to_baselines_and_to_an_oracle():
    """Scaffold's gap is half of FedAvg's after subtraction of its own level; Oracle has no gap."""

    def truth(algorithm, severity, participation):
        return {"FedAvg": 0.2, "Half": 0.1, "Oracle": 0.0}[algorithm] * severity

    runs = study(truth, algorithms=("FedAvg", "Half", "Oracle"), severities=(1.0,), noise=0.005)
    sides = {"metric": "loss", "group": {"algorithm": "Half"}, "reference": {"algorithm": "FedAvg"}}
    for whole in ({}, {"algorithm": "Oracle"}):
        found = evaluate_one(RecoveredFraction(name="H", min_fraction=0.3, target=whole, **sides), runs)
        assert found.verdict == "supported" and found.effect == pytest.approx(0.5, abs=0.05)
        assert evaluate_one(RecoveredFraction(name="H", min_fraction=0.8, target=whole, **sides), runs).verdict == "refuted"


def test_a_share_of_a_gap_of_zero_is_inconclusive():
    found = evaluate_one(RecoveredFraction(name="H", **SCAFFOLD), study(lambda *condition: 0.0))
    assert found.verdict == "inconclusive" and "nothing to recover" in " ".join(found.notes)


def test_rates_are_compared_with_baselines_of_the_same_seeds():
    runs = study(true_loss, algorithms=("FedAvg",), severities=(1.0,))
    said = RateGreater(name="H", metric="diverged", group={"partition.severity": 1.0})
    found = evaluate_one(said, diverge(runs, ~runs["iid"] & (runs["seed"] < 8)))
    assert found.verdict == "supported" and found.effect == pytest.approx(0.8) and found.p == 2 / 256
    few = evaluate_one(said, diverge(runs, ~runs["iid"] & (runs["seed"] < 3)))
    assert few.verdict == "inconclusive" and few.p == 0.25


def test_all_parts_must_hold():
    worse = Greater(name="worse", metric="loss", group={"algorithm": "Scaffold"}, reference={"algorithm": "FedAvg"})
    hurt = Greater(name="hurt", **GAP)
    wrong = Less(name="wrong", **GAP)
    runs = study(true_loss)
    assert evaluate_one(All(name="H", parts=(worse, hurt)), runs).verdict == "supported"
    assert evaluate_one(All(name="H", parts=(worse, wrong)), runs).verdict == "refuted"
    assert evaluate_one(All(name="H", parts=(worse, hurt)), study(lambda *condition: 0.0)).verdict == "inconclusive"


def test_boundaries_are_compared_as_ratios():
    runs = study(lambda a, severity, p: 0.0).assign(boundary=lambda r: np.exp(r["loss"]) * np.where(r["iid"], 0.381, 0.2176))
    found = evaluate_one(
        Less(name="H2", metric="boundary", contrast="iid_baseline", scale="ratio", group={"partition.severity": 1.0}), runs
    )
    assert found.verdict == "supported" and found.unit == "ratio" and found.effect == pytest.approx(0.2176 / 0.381, rel=0.02)
    assert found.low < 0.2176 / 0.381 < found.high < 1


def test_the_table_hides_a_p_value_that_the_seeds_cannot_reach():
    found = s.evaluate_hypotheses(
        [Equivalent(name="H", metric="loss", margin=1.0, group={"algorithm": "Scaffold"}, reference={"algorithm": "FedAvg"})],
        study(lambda *condition: 0.0, seeds=3),
        FACTORS,
    )
    assert found[0].verdict == "inconclusive" and math.isnan(s.verdict_table(found)["p"][0])
    assert isinstance(s.verdict_table(()), pd.DataFrame)


def judge(said, runs, factors=("arm",), **more):
    return s.evaluate_hypotheses([said], runs, list(factors), **more)[0]


ARMS = {"group": {"arm": "a"}, "reference": {"arm": "b"}}


@pytest.mark.parametrize(
    "metric",
    ["classification.accuracy", "gain", "baseline.gain", "hidden.rank", "hidden.rank.ratio", "update.efficiency", "product.efficiency",
     "update.turn", "adapters.angle"],
)  # fmt: skip
def test_high_values_of_gains_ranks_and_accuracies_are_good(metric):
    assert s.default_worst_end(metric) == "low"
    runs = with_baselines(make_arms({"a": 0.5, "b": 0.8}, metric=metric))
    lost = runs["run"].str.startswith("iid") if metric == "baseline.gain" else runs["arm"].eq("a")
    found = judge(Greater(name="H", metric=metric, **(ARMS if metric != "baseline.gain" else {})), runs.assign(diverged=lost))
    assert found.verdict == "refuted" and {value for _, value in found.points} == {-math.inf}


def test_a_share_of_an_accuracy_is_recovered():
    runs = make_arms({"plain": 0.6, "repaired": 0.75, "oracle": 0.8}, metric="classification.accuracy")
    sides = {"group": {"arm": "repaired"}, "reference": {"arm": "plain"}, "target": {"arm": "oracle"}}
    found = judge(RecoveredFraction(name="H", metric="classification.accuracy", min_fraction=0.5, **sides), runs)
    assert found.verdict == "supported" and found.effect == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("metric", ["gap", "gap.worst", "gap.relative"])
@pytest.mark.parametrize(("run_seeds", "baseline_seeds"), [(8, 8), (0, 2), (2, 0), (3, 2)])
def test_a_gap_ranks_diverged_runs_as_the_contrast_with_the_baseline_does(metric, run_seeds, baseline_seeds):
    """The outcome ``gap`` and the contrast of the losses state the same."""
    runs = with_baselines(make_arms({"a": 4.2}, noise=0.0), loss=4.0)
    runs = runs.assign(diverged=runs["seed"] < np.where(runs["iid"], baseline_seeds, run_seeds))
    runs = runs.assign(**{metric: np.where(runs["seed"] < max(run_seeds, baseline_seeds), np.nan, 0.2)})
    gap, contrast = (
        judge(Greater(name="H", margin=0.03, **said), runs) for said in ({"metric": metric}, {"metric": "loss", "contrast": "iid_baseline"})
    )
    for field in ("verdict", "seeds", "incomplete", "diverged", "both_diverged", "min_attainable_p"):
        assert getattr(gap, field) == getattr(contrast, field), field
    assert (gap.p == contrast.p or math.isnan(gap.p)) and dict(gap.points) == pytest.approx(dict(contrast.points))
    assert gap.both_diverged == min(run_seeds, baseline_seeds) and gap.incomplete == 0


@pytest.mark.parametrize(
    ("metric", "lost", "ranked"), [("start", "a 0", 0), ("baseline.absence", "a 0", 0), ("baseline.absence", "iid 0", 1)]
)
def test_an_outcome_that_is_not_the_runs_own_does_not_change_if_the_run_diverged(metric, lost, ranked):
    runs = with_baselines(make_arms({"a": 0.0}, metric=metric))
    found = judge(Greater(name="H", metric=metric, margin=0.1), runs.assign(diverged=runs["run"] == lost))
    assert found.seeds == 8 and found.diverged == ranked and sum(math.isinf(value) for _, value in found.points) == ranked
    same = judge(Equivalent(name="H", metric=metric, margin=0.02), runs.assign(diverged=runs["run"] == lost))
    assert same.verdict == ("inconclusive" if ranked else "supported")


@pytest.mark.parametrize("status", ["missing", "failed", "running"])
def test_a_run_that_did_not_finish_may_yet_diverge(status):
    runs = make_arms({"a": math.nan, "b": math.nan}, seeds=6)
    runs = runs.assign(diverged=runs["arm"] == "a", status=np.where(runs["arm"] == "a", "finished", status))
    said = RateGreater(name="H", metric="diverged", **ARMS)
    found = judge(said, runs)
    assert (found.verdict, found.seeds, found.incomplete) == ("inconclusive", 0, 6)
    assert judge(said, runs.assign(status="finished")).verdict == "supported"


def make_cells(rows, seeds: int = 8, noise: float = 0.002) -> pd.DataFrame:
    """Return one run of each (arm, cell, loss) in each seed; a baseline with loss 4 is shared by all."""
    rng = np.random.default_rng(0)
    runs = [
        {"run": f"{arm} {cell} {seed}", "seed": seed, "iid": False, "diverged": False, "arm": arm, "place": cell,
         "loss": loss + noise * rng.normal()}
        for seed in range(seeds)
        for arm, cell, loss in rows
    ]  # fmt: skip
    return with_baselines(pd.DataFrame(runs), loss=4.0)


@pytest.mark.parametrize("target", [{}, {"arm": "oracle"}])
@pytest.mark.parametrize("lost", [False, True])
def test_a_recovered_share_is_one_of_the_same_cells(target, lost):
    """FedAvg loses .1 at severity .5 and .4 at severity 1, where FedProx loses .2: it recovers half, and not 80 % of the mean of .25."""
    rows = [("FedAvg", 0.5, 4.1), ("FedAvg", 1.0, 4.4), ("FedProx", 1.0, 4.2), ("oracle", 0.5, 4.0), ("oracle", 1.0, 4.0)]
    runs = make_cells(rows + [("FedProx", 0.5, math.nan)] * lost)
    said = RecoveredFraction(
        name="H", metric="loss", group={"arm": "FedProx"}, reference={"arm": "FedAvg"}, target=target, min_fraction=0.6
    )
    found = judge(said, runs, ["arm", "place"])
    assert found.verdict == "refuted" and found.effect == pytest.approx(0.5, abs=0.02)
    assert ("1 of 2 conditions has no value in any seed and is left out" in found.notes) == lost


def test_seeds_that_lack_different_cells_are_incomplete():
    """The group is better by 0, .1 and .2 in three cells; each seed lacks another one, and the mean of the others is no effect."""
    rows = [("a", cell, cell / 10) for cell in range(3)] + [("b", cell, 0.0) for cell in range(3)]
    runs = make_cells(rows, seeds=6)
    runs["loss"] = runs["loss"].mask((runs["arm"] == "a") & (runs["place"] == runs["seed"] % 3))
    found = judge(Greater(name="H", metric="loss", **ARMS), runs, ["arm", "place"])
    assert (found.verdict, found.seeds, found.incomplete) == ("inconclusive", 0, 6)


@pytest.mark.parametrize(
    ("said", "note"),
    [
        (Greater(name="H", metric="loss", where={"arm": ["a", "b"]}), "2 of 8 conditions have"),
        (Equivalent(name="H", metric="loss", margin=9.0, where={"arm": "b"}), "2 of 4 conditions have"),
        (Less(name="H", metric="loss", **ARMS), "2 of 4 conditions have"),
        (LinearContrast(name="H", metric="loss", terms=(ContrastTerm(weight=1.0, select={"arm": "b"}),)), "2 of 4 conditions have"),
        (
            Interaction(name="H", metric="loss", inside={"arm": "b"}, outside={"arm": "a"}, group={"kind": 1}, reference={"kind": 0}),
            "1 of 2 conditions has",
        ),
        (Trend(name="H", metric="loss", predictor="kind", where={"arm": "b"}), "1 of 2 conditions has"),
        (Trend(name="H", metric="loss", predictor="place", where={"arm": "b"}), "1 of 3 levels has"),
    ],
    ids=lambda said: type(said).__name__,
)
def test_a_condition_that_no_seed_has_is_named(said, note):
    cells = (0, 1, 2) if "levels" in note else (0, 1)
    rows = [(arm, cell, 4.0 + cell) for arm in "ab" for cell in cells]
    runs = pd.concat([make_cells(rows).assign(kind=kind, run=lambda one, kind=kind: one["run"] + str(kind)) for kind in (0, 1)])
    lost = runs.assign(loss=runs["loss"].mask((runs["arm"] == "b") & (runs["place"] == cells[-1])))
    assert any(one.startswith(f"{note} no value in any seed") for one in judge(said, lost, ["arm", "place", "kind"]).notes)
    assert not any("left out" in one for one in judge(said, runs, ["arm", "place", "kind"]).notes)


@pytest.mark.parametrize(
    ("seeds", "family", "verdict", "needed"),
    [(4, 1, "inconclusive", 5), (5, 1, "supported", 0), (5, 2, "inconclusive", 6), (6, 2, "supported", 0)],
)
def test_equivalence_needs_as_many_seeds_as_the_sentence_says(seeds, family, verdict, needed):
    said = [Equivalent(name=f"H{index}", metric="loss", margin=0.02, **ARMS) for index in range(family)]
    found = s.evaluate_hypotheses(said, make_arms({"a": 4.0, "b": 4.0}, seeds, noise=0.001), ["arm"])[0]
    assert found.verdict == verdict and found.p_holm >= found.min_attainable_p
    assert (f"at least {needed} are needed" in found.sentence) == (verdict == "inconclusive") and "No effect, however" not in found.sentence


def test_a_sentence_keeps_the_name_of_a_metric_and_never_states_a_p_of_zero():
    runs = make_levels(seeds=12).assign(**{"loss.clients": lambda frame: frame["loss"]})
    said = [Trend(name=f"H{index}", metric="loss.clients", predictor="place") for index in range(2)]
    found = s.evaluate_hypotheses(said, runs, ["place"])[0]
    assert found.p_holm < 0.0001 and "< 0.0001 after Holm" in found.sentence and "0.0000" not in found.sentence
    said = Greater(name="H", metric="loss.clients", group={"place": 5}, reference={"place": 1})
    found = s.evaluate_hypotheses([said], runs, ["place"])[0]
    assert "supported. loss.clients of place 5" in found.sentence
    said = Greater(name="H", metric="loss", group={"place": 5}, reference={"place": 1})
    assert "supported. Loss of place 5" in s.evaluate_hypotheses([said], runs, ["place"])[0].sentence


def make_levels(seeds: int = 8) -> pd.DataFrame:
    """Return runs whose loss rises by .1 per unit of ``place``."""
    return make_cells([("a", level, level / 10) for level in (1, 2, 5)], seeds, noise=0.01)


def test_a_trend_needs_as_many_seeds_as_the_sentence_says():
    said = Trend(name="H", metric="loss", predictor="place")
    few, enough = (judge(said, make_levels(seeds), ["place"]) for seeds in (2, 3))
    assert (few.verdict, enough.verdict) == ("inconclusive", "supported")
    assert "at least 3 are needed" in few.sentence and "below 1.00" not in few.sentence


@pytest.mark.parametrize("lost", [1, 8])
def test_a_trend_with_diverged_runs_has_the_slope_of_the_other_seeds(lost):
    runs = make_levels()
    runs = runs.assign(diverged=(runs["place"] == 5) & (runs["seed"] < lost))
    found = judge(Trend(name="H", metric="loss", predictor="place"), runs, ["place"])
    assert found.verdict == "supported" and "no results" not in found.sentence and found.diverged == lost
    assert any(f"{lost} of 8 seeds {'has' if lost == 1 else 'have'} no slope, because a run diverged" in note for note in found.notes)
    assert found.effect == pytest.approx(0.1, abs=0.01) if lost < 8 else math.isnan(found.effect)


def test_a_slope_belongs_to_the_seed_that_has_it():
    """Seed 0 has one run and therefore no slope; the loss of the other seeds rises by the number of the seed."""
    rows = [
        {"run": f"{seed} {k}", "seed": seed, "iid": False, "diverged": False, "x": float(k), "loss": float(k * seed)}
        for seed in range(4)
        for k in range(3 if seed else 1)
    ]
    found = judge(Trend(name="H", metric="loss", predictor="x"), pd.DataFrame(rows), [])
    assert found.points == ((1, 1.0), (2, 2.0), (3, 3.0)) and found.incomplete == 1


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_the_detectable_effect_exceeds_the_margin(margin):
    """Of 400 simulated studies in which the true effect is the detectable one, about 80 % support the hypothesis."""
    runs = make_arms({"a": 0.06}, metric="gap", noise=0.05)
    effect, sd = judge(Greater(name="H", metric="gap", margin=margin), runs).detectable, float(runs["gap"].std(ddof=1))
    draws = effect + sd * np.random.default_rng(5).standard_normal((400, 8))
    assert np.mean([s.sign_flip_test(d - margin).value <= 0.05 and d.mean() > margin for d in draws]) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("seeds", [6, 8, 20])
def test_the_detectable_rate_is_detected_with_the_stated_power(seeds):
    runs = make_arms({"a": 4.0, "b": 4.0}, seeds=seeds)
    rate = judge(
        RateGreater(name="H", metric="diverged", **ARMS), runs.assign(diverged=(runs["arm"] == "a") & (runs["seed"] < 2))
    ).detectable
    assert 1 - sum(math.comb(seeds, k) * rate**k * (1 - rate) ** (seeds - k) for k in range(6)) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize(
    "said", [Greater(name="H", metric="rounds.to:4.2", **ARMS), Equivalent(name="H", metric="rounds.to:4.2", margin=1.0, **ARMS)]
)
@pytest.mark.parametrize("first", [0, 4])
def test_a_target_that_is_not_reached_is_not_called_divergence(said, first):
    runs = make_arms({"a": 9.0, "b": 9.0}, metric="rounds.to:4.2")
    runs["rounds.to:4.2"] = runs["rounds.to:4.2"].mask((runs["arm"] == "a") | (runs["seed"] >= first), math.inf)
    found = judge(said, runs)
    text = " ".join((found.sentence, *found.notes))
    assert text.count("diverged") == text.count("diverged or never reached the target") > 0


def test_ratios_need_positive_values_of_the_compared_runs_only():
    said = Greater(name="H", metric="syntax.accuracy", scale="ratio", **ARMS)
    runs = make_arms({"a": 0.8, "b": 0.7, "c": 0.0}, metric="syntax.accuracy", noise=0.0)
    assert judge(said, runs).verdict == "supported"
    found = judge(said, runs.assign(diverged=(runs["arm"] == "b") & (runs["seed"] == 0)))
    assert found.verdict == "supported" and dict(found.points)[0] == math.inf
    for lost in (Greater(name="H", metric="syntax.accuracy", scale="ratio", group={"arm": "c"}, reference={"arm": "b"}),):
        with pytest.raises(UserError, match="above 0, but the smallest is 0"):
            judge(lost, runs)
    with pytest.raises(UserError, match="above 0"):
        s.outcome_values(runs, "syntax.accuracy", scale="ratio")
    assert len(s.outcome_values(runs, "syntax.accuracy", {"arm": "a"}, scale="ratio")) == 8
    relative = with_baselines(runs, **{"syntax.accuracy": 0.0})
    with pytest.raises(UserError, match="above 0"):
        judge(Greater(name="H", metric="syntax.accuracy", contrast="iid_baseline", scale="ratio", group={"arm": "a"}), relative)


@pytest.mark.parametrize(
    "said",
    [
        Greater(name="H", metric="gapp"),
        Less(name="H", metric="gapp", group={"arm": "a"}),
        All(name="H", parts=(Greater(name="one", metric="loss"), Greater(name="other", metric="gapp"))),
        MatchedDifference(name="H", metric="loss", match="gapp", direction="greater", **ARMS),
        Greater(name="H", metric="here", where={"arm": ["a", "b"]}),
    ],
)
def test_a_metric_that_no_run_has_gives_no_effect(said):
    """Half of the runs diverged, and nothing was measured: their infinite rank is no effect. ``here`` is a metric of other runs."""
    runs = make_arms({"a": 4.0, "b": 4.0, "c": 4.0}).assign(gapp=math.nan, here=lambda one: one["loss"].where(one["arm"] == "c"))
    runs = runs.assign(diverged=(runs["arm"] == "a") | ((runs["arm"] == "b") & (runs["seed"] < 7)))
    found = judge(said, runs)
    name = "here" if said.metric == "here" else "gapp"
    assert found.verdict == "inconclusive" and math.isnan(found.effect) and found.seeds == 0
    assert f"no run that ended without diverging has a value of {name!r}" in found.sentence


def test_a_shared_baseline_belongs_to_every_stage_of_its_runs():
    first = with_baselines(make_arms({"a": 4.2}), loss=4.0)
    second = make_arms({"b": 4.2}).assign(stage="second", iid_baseline=[f"iid {seed}" for seed in range(8)])
    runs = pd.concat([first, second, make_arms({"c": 4.0}).assign(stage="third")], ignore_index=True)
    said = {stage: Greater(name=stage, metric="loss", group={"iid": False}, reference={"iid": True}, where={"stage": stage})
            for stage in ("main", "second", "third")}  # fmt: skip
    found = {stage: judge(one, runs, []) for stage, one in said.items()}
    assert [found[stage].effect for stage in ("main", "second")] == pytest.approx([0.2, 0.2], abs=0.01)
    assert found["third"].seeds == 0
    assert set(s.select_runs(runs, {"stage": "second"}, {"iid": True})["run"]) == {f"iid {seed}" for seed in range(8)}


def exact_arms(differences, seeds=8, reference=4.1):
    """Return runs of the arms "b" (``reference``) and "a" (``reference`` plus the difference), both without noise."""
    return make_arms({"a": reference + differences, "b": reference}, seeds, noise=0.0)


@pytest.mark.parametrize("reference", [0.1, 0.7, 1.1, 3.3, 4.1, 7.3])
@pytest.mark.parametrize("margin", [0.01, 0.05, 0.1, 0.3])
def test_a_difference_equal_to_its_margin_up_to_rounding_shows_nothing(margin, reference):
    """``(reference + margin) - reference`` is often a little above or below ``margin``; the verdict must not depend on it."""
    sides = {"metric": "loss", "group": {"arm": "a"}, "reference": {"arm": "b"}}
    up, down = exact_arms(margin, reference=reference), exact_arms(-margin, reference=reference)
    for runs, directed in ((up, Greater), (down, Less)):
        verdict = s.evaluate_hypotheses([directed(name="H", margin=margin, **sides)], runs, ["arm"])[0]
        assert (verdict.verdict, verdict.p) == ("inconclusive", 1.0)
        smallest = s.evaluate_hypotheses([directed(name="H", min_effect=margin, **sides)], runs, ["arm"])[0]
        assert smallest.verdict == "supported"  # an effect of this size is not ruled out
        within = s.evaluate_hypotheses([Equivalent(name="H", margin=margin, **sides)], runs, ["arm"])[0]
        assert (within.verdict, within.p >= 0.5) == ("inconclusive", True)


def test_a_difference_clearly_beside_its_margin_still_counts():
    sides = {"metric": "loss", "group": {"arm": "a"}, "reference": {"arm": "b"}}
    above, below = exact_arms(0.050001), exact_arms(0.049999)
    assert s.evaluate_hypotheses([Greater(name="H", margin=0.05, **sides)], above, ["arm"])[0].verdict == "supported"
    assert s.evaluate_hypotheses([Equivalent(name="H", margin=0.05, **sides)], above, ["arm"])[0].verdict == "refuted"
    assert s.evaluate_hypotheses([Equivalent(name="H", margin=0.05, **sides)], below, ["arm"])[0].verdict == "supported"


def test_a_sum_that_is_zero_up_to_rounding_has_no_sign():
    runs = make_arms({"a": 0.3, "b": 0.1, "c": 0.2}, noise=0.0)
    terms = (ContrastTerm(weight=1.0, select={"arm": "b"}), ContrastTerm(weight=1.0, select={"arm": "c"}))
    claim = LinearContrast(name="H", metric="loss", terms=(*terms, ContrastTerm(weight=-1.0, select={"arm": "a"})))
    verdict = s.evaluate_hypotheses([claim], runs, ["arm"])[0]
    assert 0.1 + 0.2 > 0.3  # only by rounding
    assert (verdict.verdict, verdict.effect, verdict.p) == ("inconclusive", 0.0, 1.0)


def test_an_event_at_its_threshold_up_to_rounding_is_none():
    runs = make_arms({"a": 0.1 + 0.2, "b": 0.2}, noise=0.0)
    claim = RateGreater(name="H", metric="loss", threshold=0.3, group={"arm": "a"}, reference={"arm": "b"})
    assert s.evaluate_hypotheses([claim], runs, ["arm"])[0].effect == 0.0


def test_a_recovered_share_equal_to_its_bound_up_to_rounding_is_not_above_it():
    runs = make_arms({"start": 1.1, "fixed": 1.1 - 0.1, "goal": 1.1 - 0.2}, noise=0.0)
    claim = RecoveredFraction(
        name="H", metric="loss", group={"arm": "fixed"}, reference={"arm": "start"}, target={"arm": "goal"}, min_fraction=0.5
    )
    assert s.evaluate_hypotheses([claim], runs, ["arm"])[0].verdict == "inconclusive"


def test_levels_that_are_equal_up_to_rounding_are_no_trend():
    runs = study(lambda *_: 0.0, noise=0.0, severities=(0.25, 0.5, 1.0), algorithms=("FedAvg",))
    rounding = runs["partition.severity"].rank(method="dense") * 2e-16
    runs = runs.assign(loss=4.0 * (1 + rounding))
    claim = Trend(name="H", metric="loss", predictor="partition.severity")
    assert runs["loss"].nunique() > 1
    assert evaluate_one(claim, runs).verdict == "inconclusive"


def test_a_measured_value_at_the_end_of_the_ladder_is_on_it():
    rungs = [
        {"run": f"{arm} {seed}", "seed": seed, "iid": False, "diverged": False, "iid_baseline": "", "stage": "main", "condition": arm,
         "arm": arm, "loss": loss, "norm": norm}
        for arm, loss, norm in (("low", 1.0, 0.1), ("high", 2.0, 0.3), ("group", 2.5, 0.1 + 0.2))
        for seed in range(8)
    ]  # fmt: skip
    claim = MatchedDifference(
        name="H", metric="loss", match="norm", direction="greater", group={"arm": "group"}, reference={"arm": ["low", "high"]}
    )
    verdict = s.evaluate_hypotheses([claim], pd.DataFrame(rungs), ["arm"])[0]
    assert (verdict.verdict, verdict.incomplete) == ("supported", 0)
    assert verdict.effect == pytest.approx(0.5)
