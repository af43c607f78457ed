"""Reading a study: factors, stages, seeds and tuning; mistakes are told where they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedrift.errors import UserError
from fedrift.experiment import parse
from fedrift.study import load_study
from fedrift.study.cells import cells
from fedrift.study.factors import changed, factors, labels
from fedrift.study.tuning import choose, drawn, groups, on_edge, trials
from tests.study.small import TUNED, said, study


def test_a_level_is_called_by_its_value_or_its_class_and_its_settings_where_two_share_one():
    assert labels([0.5, True, "FedAvg", None]) == [0.5, True, "FedAvg", "none"]
    assert labels([{"is": "FedProx", "mu": 0.1}, "FedAvg"]) == ["FedProx", "FedAvg"]
    assert labels([{"is": "FedProx", "mu": 0.1}, {"is": "FedProx", "mu": 1}]) == ["FedProx mu=0.1", "FedProx mu=1"]
    assert labels([["q_proj", "v_proj"]]) == ["q_proj, v_proj"]


def test_a_named_level_makes_many_changes_and_a_path_one():
    found = factors({"regime": {"topic": {"partition.is": "TopicMix"}, "style": {"partition.is": "Style", "seed": 3}},
                     "partition.is": ["TopicMix", "Style"]})
    assert list(found) == ["regime", "partition"]
    assert found["regime"].levels["style"] == {"partition.is": "Style", "seed": 3}


def test_shorter_paths_are_set_first_and_nothing_is_set_twice():
    base = {"algorithm": "FedAvg", "partition": {"is": "TopicMix", "clients": 4}}
    got = changed(base, [{"algorithm.mu": 0.3, "partition.severity": 1}, {"algorithm": "FedProx", "partition.is": "Style"}])
    assert got == {"algorithm": {"is": "FedProx", "mu": 0.3}, "partition": {"is": "Style", "clients": 4, "severity": 1}}
    with pytest.raises(UserError, match="let one factor set it"):
        changed(base, [{"seed": 1}, {"seed": 2}])


def test_cells_come_seed_by_seed_so_that_a_study_cut_short_has_whole_blocks(tmp_path):
    every = cells(study(tmp_path, seeds=[7, 3]))
    assert [cell.seed for cell in every] == [7] * 4 + [3] * 4
    assert every[0].factors == {"algorithm": "FedAvg", "partition.severity": 0.5}
    assert every[0].said["seed"] == 7
    assert {tuple(cell.factors.values()) for cell in every[:4]} == {tuple(cell.factors.values()) for cell in every[4:]}


def test_stages_differ_from_the_whole_in_what_they_say(tmp_path):
    every = cells(study(tmp_path, stages=[
        {"name": "screen", "design": {"is": "OneFactor"}, "seeds": 1},
        {"name": "confirm", "set": {"plan.rounds": 3}, "factors": {"partition.severity": [1.0]}, "twins": False}]))
    assert [(cell.stage, cell.twin) for cell in every] == [("screen", True)] * 3 + [("confirm", False)] * 2
    assert {cell.said["plan"]["rounds"] for cell in every if cell.stage == "confirm"} == {3}


@pytest.mark.parametrize(("changes", "told"), [
    ({"factors": {"regime": ["a"], "seed": {"x": 3}}}, "factors.seed: a named level is"),
    ({"factors": {"algorithm": "FedAvg"}}, "factors.algorithm: wanted a list"),
    ({"factors": {"algorithm": ["FedAvg", "FedAvg"]}}, "two levels are the same"),
    ({"name": "../x"}, "names a folder"),
    ({"desgn": {}}, "did you mean 'design'"),
    ({"design": {"is": "Grid"}}, "FullGrid"),
    ({"stages": [{"name": "a"}, {"name": "a"}]}, "two are called 'a'"),
    ({"stages": [{"name": "a", "seds": 3}]}, "no such key 'seds'"),
    ({"seeds": [0, 1000], **{"tuning": {**TUNED["tuning"], "seeds": [1000]}}}, "must not share"),
    ({"tuning": {"trials": 3}}, "tuning.space: must be said"),
    ({"tuning": {"space": {"plan.steps": []}}}, "tuning.space: 0 combinations"),
    ({"tuning": {"more": {"FedProx": {"a": list(range(1000)), "b": list(range(1000))}}}},
     "tuning.more.FedProx: 1000000 combinations"),
    ({"factors": {f"plan.{k}": list(range(10)) for k in range(20)}}, "factors: 200000000000000000000"),
    ({"seeds": 10**9}, "seeds: wanted a whole number from 1 to 10,000 or a list"), ({"seeds": []}, "at least one, got "),
    ({"seeds": [True]}, "seeds.0.: wanted a whole number"), ({"twins": "yes"}, "twins: wanted true or false"),
    ({"factors": {"regime": {"a": {1: 2}}}}, "a named level is"), ({"set": {1: 2}}, "set: wanted keys that are words, got 1"),
    ({"factors": {"a": [{"is": [1]}, {"is": [1]}]}}, "two levels are the same"),
    ({"name": "x" * 5000}, "name: wanted text of 1 to 100"),
    ({"hypotheses": [{"is": "Equivalent", "name": "a", "within": float("inf")}]},
     r"hypotheses.0..within: wanted a number from 1e-30"),
])
def test_a_mistake_is_told_with_its_place(tmp_path, changes, told):
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        study(tmp_path, **changes)


def test_the_base_may_be_a_file_and_any_part_is_changed_on_the_command_line(tmp_path):
    whole = said(tmp_path)
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(whole["base"]))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**whole, "base": "e.yaml"}))
    got = load_study(tmp_path / "s.yaml", ["base.plan.rounds=9", "seeds=1"])
    assert (got.base["plan"]["rounds"], got.seeds) == (9, 1)


def test_every_algorithm_gets_the_same_number_of_trials_from_its_own_grid(tmp_path):
    tuned = study(tmp_path, **TUNED)
    every = trials(tuned)
    assert [trial.arm for trial in every] == ["algorithm=FedAvg"] * 2 + ["algorithm=FedProx"] * 2
    assert all(set(trial.settings) == {"plan.optimizer.lr", "algorithm.mu"} for trial in every[2:])
    assert {trial.said["evaluate"]["split"] for trial in every} == {"validation"}
    assert {trial.seed for trial in every} == {100}
    assert [trial.settings for trial in trials(tuned)] == [trial.settings for trial in every]
    wanting = study(tmp_path, tuning={**TUNED["tuning"], "trials": 4})
    with pytest.raises(UserError, match="3 combinations for 4 trials"):
        trials(wanting)


def test_the_lowest_mean_wins_what_diverged_never_does_and_edges_are_told(tmp_path):
    tuned = study(tmp_path, tuning={"trials": 3, "seeds": [100, 101], "space": {"plan.optimizer.lr": [0.1, 0.5, 1.0]}})
    assert len(groups(tuned, factors(tuned.factors))) == 2
    score = {"algorithm=FedAvg": {0.1: [3.0, 3.0], 0.5: [2.0, 2.2], 1.0: [1.0, float("nan")]},
             "algorithm=FedProx": {0.1: [1.0, 9.0], 0.5: [4.0, 3.0], 1.0: [2.0, 2.0]}}
    done = [(trial, score[trial.arm][trial.settings["plan.optimizer.lr"]][trial.seed - 100]) for trial in trials(tuned)]
    avg, prox = choose(tuned, done)
    assert (avg.settings, avg.edges, avg.score) == ({"plan.optimizer.lr": 0.5}, (), pytest.approx(2.1))
    assert (prox.settings, prox.edges) == ({"plan.optimizer.lr": 1.0}, ("plan.optimizer.lr",))
    assert len(avg.tried) == 3
    nothing = choose(tuned, [(trial, float("nan")) for trial, _ in done])[0]
    assert (nothing.settings, nothing.score) == ({}, float("inf"))
    assert not on_edge("a", ["a", "b"])
    assert len(drawn(tuned, {"algorithm": "FedAvg"})) == 3


def test_a_study_is_read_and_its_tables_opened_without_torch():
    code = "import sys\nimport fedrift.study\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_project_can_be_begun(path):
    asked = load_study(path)
    for cell in [*trials(asked), *cells(asked)]:
        parse(cell.said)
