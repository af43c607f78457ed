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

from .frames import FACTORS, diverge, study


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
    assert found.sentence == "half is void: the baseline gained only 0.1 nats in arm=plain, and 0.15 were needed."
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
