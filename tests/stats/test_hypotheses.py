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
from fedrift.stats.hypotheses import All, Equivalent, Greater, Hypothesis, Interaction, Less, RateGreater, RecoveredFraction, Trend

from .frames import FACTORS, diverge, study

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
