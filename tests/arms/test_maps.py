"""The map of where clustering can help, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from fedrift.arms.maps import REGIMES, Map, mapped, sizes
from fedrift.arms.page import map_parts, markdown
from fedrift.cli.app import app
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


def test_the_command_teaches_and_lists_before_it_runs(asked, world, tmp_path):
    file, runner = tmp_path / "one.yaml", CliRunner()
    file.write_text(yaml.safe_dump(asked.said))
    assert "mitigation.yaml" in runner.invoke(app, ["mitigate", "--help"]).output
    shared = ["--seeds", "1", "--encoder", "hashing", "--arms", "text,random,oracle", "--runs", str(tmp_path / "runs")]
    listed = runner.invoke(app, ["mitigate", str(file), *shared, "--dry-run"])
    assert listed.exit_code == 0 and "5 runs, 0 of them done" in listed.output, listed.output
    said = runner.invoke(app, ["mitigate", str(file), *shared, "--json", "--out", str(tmp_path / "table.html")])
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout.strip().splitlines()[-1])
    assert [row["arm"] for row in told["arms"]] == ["vanilla", "text", "random", "oracle", "iid"] and told["seeds"] == [0]
    assert "<table>" in (tmp_path / "table.html").read_text()
