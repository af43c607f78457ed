"""The map of where clustering can help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrift.arms.maps import REGIMES, Map, mapped, sizes
from fedrift.arms.page import markdown
from fedrift.arms.parts import map_parts
from fedrift.study.conduct import conduct, foreseen


def test_the_map_has_every_regime_severity_and_seed_and_forces_the_clusters(asked, world):
    plan, _ = foreseen(Map(asked).study(), world)
    cells = [entry for entry in plan.entries if entry.stage == "map"]
    assert len(cells) == 4 * 3 * 3 * 2 and {entry.factors["regime"] for entry in cells} == set(REGIMES)
    kinds = {(said.partition.__class__.__name__, type(said.mitigation).__name__) for said in plan.experiments.values()}
    assert {(regime, arm) for regime in REGIMES.values() for arm in ("Vanilla", "ByText", "AtRandom")} <= kinds
    assert {entry.factors["arm"] for entry in plan.entries if entry.stage == "starved"} == {
        "1 cluster", "2 clusters", "3 clusters", "5 clusters", "6 clusters"}
    assert sizes(7, 3) == [3, 2, 2]


def test_a_map_tells_the_gain_beside_what_the_descriptors_know(asked, world):
    little = Map(replace(asked, asked=replace(asked.asked, clusters=3)), regimes=("topic",), severities=(0.0, 1.0))
    gains, starved = mapped(conduct(little.study(), world))
    gains = gains.set_index("severity")
    assert gains.loc[1.0, "p"] == 0.01 < gains.loc[0.0, "p"] and gains.loc[1.0, "counted"] == 3
    assert gains.loc[1.0, "identified"] > 0.35 > gains.loc[0.0, "identified"] and gains.loc[1.0, "chance"] == pytest.approx(1 / 6)
    assert gains.loc[1.0, "random.effect"] < gains.loc[0.0, "random.effect"] and gains.loc[1.0, "random.seeds"] == 2
    assert starved["k"].tolist() == [2, 3, 5, 6] and np.isfinite(starved["effect"]).all()
    assert "What fewer clients to a model cost" in markdown(map_parts(gains.reset_index(), starved))
