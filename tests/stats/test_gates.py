"""Test linear contrasts, matched differences and the gate on studies of known truth."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fedrift import stats as s
from fedrift.config.loader import Registry, dump_value, parse_value
from fedrift.core.errors import UserError
from fedrift.stats import hypotheses
from fedrift.stats.hypotheses import All, ContrastTerm, Equivalent, Greater, Hypothesis, Interaction, LinearContrast, MatchedDifference
from fedrift.stats.verdicts import Gate, evaluate_gated, find_void_conditions, list_used_conditions

from .frames import FACTORS, diverge, make_arms, study, with_baselines


def make_gap_runs(gaps: dict[str, float], seeds: int = 8, noise: float = 0.005) -> pd.DataFrame:
    """Return one run of each condition with the given gap in each seed."""
    rng = np.random.default_rng(2)
    rows = [
        {"run": f"{arm} {seed}", "seed": seed, "iid": False, "diverged": False, "stage": "main", "condition": f"arm={arm}", "arm": arm,
         "gap": gap + rng.normal(0, noise)}
        for arm, gap in gaps.items()
        for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def half_contrast(direction: str = "less", **more) -> LinearContrast:
    terms = ({"weight": 1.0, "select": {"arm": "damped"}}, {"weight": -0.5, "select": {"arm": "plain"}})
    said = {"type": "LinearContrast", "name": "half", "metric": "gap", "terms": list(terms), "direction": direction, **more}
    return parse_value(Hypothesis, said, Registry({Hypothesis: hypotheses}), "hypothesis")


@pytest.mark.parametrize(("left", "verdict"), [(0.05, "supported"), (0.15, "refuted"), (0.1, "inconclusive")])
def test_a_remedy_leaves_at_most_half_of_the_gap(left, verdict):
    found = s.evaluate_hypotheses([half_contrast()], make_gap_runs({"plain": 0.2, "damped": left}, noise=0.01), ["arm"])[0]
    assert found.verdict == verdict and found.seeds == 8
    assert found.effect == pytest.approx(left - 0.1, abs=0.02)


def test_a_linear_contrast_is_equivalent_within_its_margin_and_needs_seeds():
    runs = make_gap_runs({"plain": 0.2, "damped": 0.1})
    assert s.evaluate_hypotheses([half_contrast("equivalent", margin=0.02)], runs, ["arm"])[0].verdict == "supported"
    assert s.evaluate_hypotheses([half_contrast("equivalent", margin=0.02)], runs[runs["seed"] < 3], ["arm"])[0].verdict == "inconclusive"
    five = s.evaluate_hypotheses([half_contrast()], make_gap_runs({"plain": 0.2, "damped": 0.0}, seeds=5), ["arm"])[0]
    assert five.verdict == "inconclusive" and five.min_attainable_p == 2 / 2**5


def test_a_negative_margin_states_non_inferiority():
    runs = make_gap_runs({"plain": 0.2, "damped": 0.105})
    assert s.evaluate_hypotheses([half_contrast("less", margin=-0.02)], runs, ["arm"])[0].verdict == "supported"
    assert s.evaluate_hypotheses([half_contrast("less")], runs, ["arm"])[0].verdict != "supported"


def test_a_linear_contrast_counts_diverged_and_missing_runs():
    runs = make_gap_runs({"plain": 0.2, "damped": 0.0})
    lost = runs[~((runs["arm"] == "plain") & (runs["seed"] == 3))]
    found = s.evaluate_hypotheses([half_contrast()], lost, ["arm"])[0]
    assert found.seeds == 7 and found.incomplete == 1
    worst = runs.assign(diverged=(runs["arm"] == "damped") & (runs["seed"] == 1))
    found = s.evaluate_hypotheses([half_contrast()], worst, ["arm"])[0]
    assert dict(found.points)[1] == math.inf and found.diverged == 1
    assert s.evaluate_hypotheses([half_contrast()], runs[runs["arm"] == "plain"], ["arm"])[0].verdict == "inconclusive"


def test_a_main_effect_of_cells_that_share_no_levels():
    """Two factors of three levels form a Latin square, in which no pair of cells differs in only one factor."""
    rows = [
        {"run": f"{a}{b}{c}{seed}", "seed": seed, "iid": False, "diverged": False, "a": a, "b": b, "c": c,
         "loss": 0.1 * (a == 2) + b + c + 0.01 * np.sin(seed + a + b)}
        for seed in range(8) for a in range(3) for b in range(3) for c in [(a + b) % 3]
    ]  # fmt: skip
    said = LinearContrast(
        name="a", metric="loss",
        terms=(ContrastTerm(weight=1.0, select={"a": 2}), ContrastTerm(weight=-1.0, select={"a": 0})),
    )  # fmt: skip
    found = s.evaluate_hypotheses([said], pd.DataFrame(rows), ["a", "b", "c"])[0]
    assert found.verdict == "supported" and found.effect == pytest.approx(0.1, abs=0.01)


def make_norm_ladder(offset: float, norms=(0.5, 1.0, 2.0), at: float = 0.8) -> pd.DataFrame:
    """Return runs in which the loss of FedAvg is 3 - log(norm), and that of FedProx is higher by ``offset``."""
    rng = np.random.default_rng(1)
    rows = []
    for seed in range(8):
        for arm, norm, more in [*((f"rate {norm}", norm, 0.0) for norm in norms), ("FedProx", at, offset)]:
            size = norm * math.exp(0.02 * rng.normal())
            rows.append(
                {"run": f"{arm} {seed}", "seed": seed, "iid": False, "diverged": False, "arm": arm, "update.norm": size,
                 "loss": 3 - math.log(size) + more + rng.normal(0, 0.003)}
            )  # fmt: skip
    return pd.DataFrame(rows)


def matched(direction: str = "equivalent", margin: float = 0.02) -> MatchedDifference:
    rates = ["rate 0.5", "rate 1.0", "rate 2.0"]
    return MatchedDifference(
        name="P4",
        metric="loss",
        match="update.norm",
        group={"arm": "FedProx"},
        reference={"arm": rates},
        direction=direction,
        margin=margin,
    )


def test_a_smaller_step_is_distinguished_from_another_algorithm():
    assert s.evaluate_hypotheses([matched()], make_norm_ladder(0.0), ["arm"])[0].verdict == "supported"
    found = s.evaluate_hypotheses([matched(), matched("less", 0.0)][1:], make_norm_ladder(-0.1), ["arm"])[0]
    assert found.verdict == "supported" and found.effect == pytest.approx(-0.1, abs=0.02)
    assert s.evaluate_hypotheses([matched()], make_norm_ladder(-0.1), ["arm"])[0].verdict == "refuted"


def test_norms_outside_the_measured_range_are_not_extrapolated():
    found = s.evaluate_hypotheses([matched()], make_norm_ladder(0.0, at=4.0), ["arm"])[0]
    assert found.verdict == "inconclusive" and found.incomplete == 8
    with pytest.raises(UserError, match=r"update\.norn"):
        s.evaluate_hypotheses(
            [MatchedDifference(name="x", metric="loss", match="update.norn", group={}, reference={})], make_norm_ladder(0), ["arm"]
        )


def gated(gains: dict[str, float]) -> pd.DataFrame:
    runs = make_gap_runs({"plain": 0.2, "damped": 0.0})
    return runs.assign(**{"baseline.gain": runs["arm"].map(gains)})


def test_if_the_baseline_learned_too_little_nothing_is_supported():
    runs = gated({"plain": 0.1, "damped": 0.3})
    assert find_void_conditions(runs, Gate()) == {("main", "arm=plain"): pytest.approx(0.1)}
    found = evaluate_gated([half_contrast()], runs, ["arm"], Gate())[0]
    assert found.verdict == "void"
    assert found.sentence == "half is void: the baseline gained only 0.1 nats per token in arm=plain, and 0.15 were needed."
    assert found.effect == pytest.approx(-0.1, abs=0.01) and found.notes[0].startswith("half is supported.")
    assert evaluate_gated([half_contrast()], runs, ["arm"])[0].verdict == "supported"
    assert evaluate_gated([half_contrast()], runs, ["arm"], Gate(min=0.05))[0].verdict == "supported"
    alone = Greater(name="damped", metric="gap", group={"arm": "damped"})
    assert evaluate_gated([alone], runs, ["arm"], Gate())[0].verdict == "inconclusive"


def test_void_conditions_can_be_excluded():
    runs = gated({"plain": 0.3, "damped": 0.3})
    thin = make_gap_runs({"plain": 9.0}).assign(run=lambda rows: rows["run"] + " thin", condition="thin", **{"baseline.gain": 0.01})
    every = pd.concat([runs, thin], ignore_index=True)
    found = evaluate_gated([half_contrast()], every, ["arm"], Gate(action="drop"))[0]
    assert found.verdict == "supported" and "1 of 3 conditions are void" in found.notes[-1]
    assert evaluate_gated([half_contrast()], every, ["arm"], Gate())[0].verdict == "void"
    lost = evaluate_gated([half_contrast()], gated({"plain": 0.1, "damped": 0.1}), ["arm"], Gate(action="drop"))[0]
    assert lost.verdict == "void"


def test_a_missing_baseline_passes_the_gate_and_a_diverged_one_does_not():
    assert find_void_conditions(gated({"plain": math.nan, "damped": -math.inf}), Gate()) == {("main", "arm=damped"): -math.inf}


def test_the_conditions_of_every_kind_of_hypothesis_are_found():
    runs = study(lambda *arm: 0.0).assign(stage="main")
    runs["condition"] = runs["algorithm"] + " " + runs["partition.severity"].astype(str)
    names = lambda said: {name for _, name in list_used_conditions(said, runs)}  # noqa: E731
    side = {"algorithm": "FedAvg"}
    assert names(Greater(name="a", metric="loss", group=side)) == {"FedAvg 0.5", "FedAvg 1.0"}
    assert len(names(Greater(name="a", metric="loss", group=side, reference={"algorithm": "Scaffold"}))) == 4
    inside = Interaction(
        name="a", metric="loss", group=side, reference={"algorithm": "Scaffold"}, inside={"partition.severity": 1.0},
        outside={"partition.severity": 0.5}, where=side,
    )  # fmt: skip
    assert names(inside) == {"FedAvg 0.5", "FedAvg 1.0"}
    assert names(All(name="a", parts=(Equivalent(name="b", metric="loss", margin=0.1, where=side),))) == {"FedAvg 0.5", "FedAvg 1.0"}


def test_gates_are_read_from_yaml_and_handle_divergence():
    rooms = Registry({Hypothesis: hypotheses})
    for said in (half_contrast(), matched()):
        assert parse_value(Hypothesis, dump_value(said, rooms), rooms, "hypothesis") == said
    runs = study(lambda *arm: 0.0)
    contrast = LinearContrast(
        name="a", metric="loss", contrast="iid_baseline", terms=(ContrastTerm(weight=1.0, select={"algorithm": "FedAvg"}),)
    )
    broken = diverge(runs, (runs["algorithm"] == "FedAvg") & (runs["partition.severity"] == 1.0))
    assert s.evaluate_hypotheses([contrast], broken, FACTORS)[0].verdict == "supported"


def test_a_matched_run_that_diverged_ranks_last_and_is_not_excluded():
    runs = make_norm_ladder(0.0)
    lost = runs.assign(diverged=(runs["arm"] == "FedProx") & (runs["seed"] < 2))
    lost = lost.assign(loss=lost["loss"].mask(lost["diverged"]), **{"update.norm": lost["update.norm"].mask(lost["diverged"])})
    same, worse = (s.evaluate_hypotheses([said], lost, ["arm"])[0] for said in (matched(), matched("greater", 0.0)))
    assert same.verdict == "inconclusive" and "equivalence cannot be tested" in same.sentence and same.diverged == 2
    assert [value for _, value in worse.points[:2]] == [math.inf] * 2 and (worse.seeds, worse.incomplete) == (8, 0)
    unfinished = lost.assign(loss=lost["loss"].mask(lost["arm"].str.startswith("rate") & (lost["seed"] == 0)))
    assert s.evaluate_hypotheses([matched("greater", 0.0)], unfinished, ["arm"])[0].incomplete == 1
    every = lost.assign(diverged=lost["diverged"] | (lost["seed"] == 0))
    found = s.evaluate_hypotheses([matched("greater", 0.0)], every, ["arm"])[0]
    assert (found.seeds, found.incomplete, found.both_diverged) == (7, 0, 1)


@pytest.mark.parametrize(("at", "lost", "incomplete"), [(1.0, "rate 1.0", 8), (0.8, "rate 1.0", 8), (0.6, "rate 2.0", 0)])
def test_nothing_is_interpolated_across_a_rung_that_diverged(at, lost, incomplete):
    runs = make_norm_ladder(0.0, at=at)
    runs = runs.assign(diverged=runs["arm"] == lost)
    found = s.evaluate_hypotheses([matched()], runs.assign(loss=runs["loss"].mask(runs["diverged"])), ["arm"])[0]
    assert found.incomplete == incomplete and found.diverged == 8 and found.verdict == ("inconclusive" if incomplete else "supported")


def make_square(void: set[tuple[int, int]]) -> pd.DataFrame:
    """Return a Latin square of three factors in which the loss depends on ``b`` only; the baselines of the void cells gain too little."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"run": f"{a}{b}{seed}", "seed": seed, "iid": False, "diverged": False, "stage": "main", "condition": f"{a}{b}", "a": a, "b": b,
             "c": (a + b) % 3, "loss": 4 + 0.1 * b + 0.01 * rng.normal(), "baseline.gain": 0.05 if (a, b) in void else 0.3}
            for seed in range(8) for a in range(3) for b in range(3)
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("void", "verdict"),
    [({(0, 2), (1, 0)}, "void"), ({(0, 0)}, "void"), ({(2, 0)}, "inconclusive"), ({(0, 1), (1, 1)}, "void"), (set(), "inconclusive")],
)
@pytest.mark.parametrize("is_part", [False, True])
def test_a_main_effect_without_balance_is_void(void, verdict, is_part):
    """There is no effect of ``a``; without two cells its levels have other means of ``b``, or of ``c``."""
    said = LinearContrast(
        name="H", metric="loss", terms=(ContrastTerm(weight=1.0, select={"a": 1}), ContrastTerm(weight=-1.0, select={"a": 0}))
    )
    said = All(name="H", parts=(said,)) if is_part else said
    found = evaluate_gated([said], make_square(void), ["a", "b", "c"], Gate(action="drop"))[0]
    assert found.verdict == verdict
    assert ("not balanced over" in found.sentence) == (verdict == "void")


def test_an_interaction_without_balance_is_void():
    runs = pd.concat([make_square({(1, 0)}).assign(arm=arm, run=lambda one, arm=arm: one["run"] + arm) for arm in "xy"], ignore_index=True)
    runs["condition"] += runs["arm"]
    said = Interaction(name="H", metric="loss", group={"arm": "x"}, reference={"arm": "y"}, inside={"a": 1}, outside={"a": 0})
    assert evaluate_gated([said], runs, ["a", "b", "c", "arm"], Gate(action="drop"))[0].verdict == "void"
    paired = Greater(name="H", metric="loss", group={"arm": "x"}, reference={"arm": "y"})
    assert evaluate_gated([paired], runs, ["a", "b", "c", "arm"], Gate(action="drop"))[0].verdict == "inconclusive"


def test_the_gate_asks_the_baseline_and_not_the_run():
    """A run that diverged has an intact baseline; a baseline that diverged gains nothing, whatever it ended with."""
    runs = with_baselines(make_arms({"a": 0.3}, metric="baseline.gain"))
    assert find_void_conditions(runs.assign(diverged=runs["run"] == "a 0"), Gate()) == {}
    assert find_void_conditions(runs.assign(diverged=runs["run"] == "iid 0"), Gate()) == {("main", "a"): -math.inf}
