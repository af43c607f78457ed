"""Test reading a study file: factors, stages, seeds and tuning, and refused mistakes with their places."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedrift.config.schema import PROBE_GROUPS, parse_config
from fedrift.core.errors import UserError
from fedrift.studies import load_study, parse_study
from fedrift.studies.outcomes import RECORDED_BY
from fedrift.studies.plan import is_at_boundary, list_tuning_groups, pick_best_settings, plan_trials, sample_settings
from fedrift.studies.spec import apply_changes, expand_cells, label_levels, parse_factors
from tests.studies.small import TUNED, study, study_values


def test_a_level_is_named_by_its_value_or_its_class_and_settings():
    assert label_levels([0.5, True, "FedAvg", None]) == [0.5, True, "FedAvg", "none"]
    assert label_levels([{"type": "FedProx", "mu": 0.1}, "FedAvg"]) == ["FedProx", "FedAvg"]
    assert label_levels([{"type": "FedProx", "mu": 0.1}, {"type": "FedProx", "mu": 1}]) == ["FedProx mu=0.1", "FedProx mu=1"]
    assert label_levels([["q_proj", "v_proj"]]) == ["q_proj, v_proj"]


def test_a_named_level_changes_several_settings_and_a_path_one():
    found = parse_factors(
        {
            "regime": {"topic": {"partition.type": "TopicMix"}, "style": {"partition.type": "Style", "seed": 3}},
            "partition.type": ["TopicMix", "Style"],
        }
    )
    assert list(found) == ["regime", "partition"]
    assert found["regime"].levels["style"] == {"partition.type": "Style", "seed": 3}


def test_shorter_paths_are_set_first_and_no_setting_twice():
    base = {"algorithm": "FedAvg", "partition": {"type": "TopicMix", "num_clients": 4}}
    got = apply_changes(base, [{"algorithm.mu": 0.3, "partition.severity": 1}, {"algorithm": "FedProx", "partition.type": "Style"}])
    assert got == {"algorithm": {"type": "FedProx", "mu": 0.3}, "partition": {"type": "Style", "num_clients": 4, "severity": 1}}
    with pytest.raises(UserError, match="let only one factor set it"):
        apply_changes(base, [{"seed": 1}, {"seed": 2}])


def test_cells_are_ordered_by_seed_so_that_an_interrupted_study_has_complete_seeds(tmp_path):
    every = expand_cells(study(tmp_path, seeds=[7, 3]))
    assert [cell.seed for cell in every] == [7] * 4 + [3] * 4
    assert every[0].factors == {"algorithm": "FedAvg", "partition.severity": 0.5}
    assert every[0].raw_config["seed"] == 7
    assert {tuple(cell.factors.values()) for cell in every[:4]} == {tuple(cell.factors.values()) for cell in every[4:]}


def test_stages_change_only_their_own_settings(tmp_path):
    every = expand_cells(
        study(
            tmp_path,
            stages=[
                {"name": "screen", "design": {"type": "OneFactorAtATime"}, "seeds": 1},
                {
                    "name": "confirm",
                    "overrides": {"training.num_rounds": 3},
                    "factors": {"partition.severity": [1.0]},
                    "iid_baselines": False,
                },
            ],
        )
    )
    assert [(cell.stage, cell.with_iid_baseline) for cell in every] == [("screen", True)] * 3 + [("confirm", False)] * 2
    assert {cell.raw_config["training"]["num_rounds"] for cell in every if cell.stage == "confirm"} == {3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": {"regime": ["a"], "seed": {"x": 3}}}, "factors.seed: each named level must be"),
        ({"factors": {"algorithm": "FedAvg"}}, "factors.algorithm: must be a list"),
        ({"factors": {"algorithm": ["FedAvg", "FedAvg"]}}, "two levels are the same"),
        ({"name": "../x"}, "cannot name a folder"),
        ({"desgn": {}}, "did you mean 'design'"),
        ({"design": {"type": "Grid"}}, "FullGrid"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "two stages have the name 'a'"),
        ({"stages": [{"name": "a", "seds": 3}]}, "unknown key 'seds'"),
        ({"seeds": [0, 1000], **{"tuning": {**TUNED["tuning"], "seeds": [1000]}}}, "use other seeds"),
        ({"tuning": {"trials": 3}}, "tuning.space: this key is required"),
        ({"tuning": {"space": {"training.local_steps": []}}}, "tuning.space: has 0 combinations"),
        (
            {"tuning": {"space_by_level": {"FedProx": {"a": list(range(1000)), "b": list(range(1000))}}}},
            "tuning.space_by_level.FedProx: has 1000000 combinations",
        ),
        ({"factors": {f"training.{k}": list(range(10)) for k in range(20)}}, "factors: the stage 'main' has 200000000000000000000"),
        ({"seeds": 10**9}, "seeds: expected a whole number from 1 to 10,000 or a list"),
        ({"seeds": []}, "at least one, got "),
        ({"seeds": [True]}, "seeds.0.: expected a whole number"),
        ({"iid_baselines": "yes"}, "iid_baselines: expected true or false"),
        ({"factors": {"regime": {"a": {1: 2}}}}, "each named level must be"),
        ({"overrides": {1: 2}}, "overrides: expected keys that are text, got 1"),
        ({"factors": {"a": [{"type": [1]}, {"type": [1]}]}}, "two levels are the same"),
        ({"name": "x" * 5000}, "name: expected text of 1 to 100"),
        (
            {"hypotheses": [{"type": "Equivalent", "name": "a", "margin": float("inf")}]},
            r"hypotheses.0..margin: expected a number from 1e-30",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_place(tmp_path, changes, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        study(tmp_path, **changes)


def test_the_base_can_be_a_file_and_overrides_change_any_part(tmp_path):
    whole = study_values(tmp_path)
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(whole["base"]))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**whole, "base": "e.yaml"}))
    got = load_study(tmp_path / "s.yaml", ["base.training.num_rounds=9", "seeds=1"])
    assert (got.base["training"]["num_rounds"], got.seeds) == (9, 1)


def test_every_algorithm_gets_the_same_number_of_trials_from_its_own_grid(tmp_path):
    tuned = study(tmp_path, **TUNED)
    every = plan_trials(tuned)
    assert [trial.condition for trial in every] == ["algorithm=FedAvg"] * 2 + ["algorithm=FedProx"] * 2
    assert all(set(trial.settings) == {"training.client_optimizer.lr", "algorithm.mu"} for trial in every[2:])
    assert {trial.raw_config["evaluation"]["split"] for trial in every} == {"validation"}
    assert {trial.seed for trial in every} == {100}
    assert [trial.settings for trial in plan_trials(tuned)] == [trial.settings for trial in every]
    wanting = study(tmp_path, tuning={**TUNED["tuning"], "trials": 4})
    with pytest.raises(UserError, match="3 combinations of values for 4 trials"):
        plan_trials(wanting)


def test_the_lowest_mean_is_selected_and_edges_are_reported(tmp_path):
    tuned = study(tmp_path, tuning={"trials": 3, "seeds": [100, 101], "space": {"training.client_optimizer.lr": [0.1, 0.5, 1.0]}})
    assert len(list_tuning_groups(tuned, parse_factors(tuned.factors))) == 2
    score = {
        "algorithm=FedAvg": {0.1: [3.0, 3.0], 0.5: [2.0, 2.2], 1.0: [1.0, float("nan")]},
        "algorithm=FedProx": {0.1: [1.0, 9.0], 0.5: [4.0, 3.0], 1.0: [2.0, 2.0]},
    }
    done = [
        (trial, score[trial.condition][trial.settings["training.client_optimizer.lr"]][trial.seed - 100]) for trial in plan_trials(tuned)
    ]
    avg, prox = pick_best_settings(tuned, done)
    assert (avg.settings, avg.at_search_boundary, avg.score) == ({"training.client_optimizer.lr": 0.5}, (), pytest.approx(2.1))
    assert (prox.settings, prox.at_search_boundary) == ({"training.client_optimizer.lr": 1.0}, ("training.client_optimizer.lr",))
    assert len(avg.trials) == 3
    nothing = pick_best_settings(tuned, [(trial, float("nan")) for trial, _ in done])[0]
    assert (nothing.settings, nothing.score) == ({}, float("inf"))
    assert not is_at_boundary("a", ["a", "b"])
    assert len(sample_settings(tuned, {"algorithm": "FedAvg"})) == 3


def test_a_study_and_its_tables_are_read_without_torch():
    code = "import sys\nimport fedrift.studies\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_project_is_valid(path):
    asked = load_study(path)
    for cell in [*plan_trials(asked), *expand_cells(asked)]:
        parse_config(cell.raw_config)


def test_a_level_can_be_tuned_on_the_iid_baseline(tmp_path):
    tuned = study(tmp_path, tuning={**TUNED["tuning"], "baseline_levels": ["FedAvg"]})
    severities = {trial.condition: trial.raw_config["partition"]["severity"] for trial in plan_trials(tuned)}
    assert severities == {"algorithm=FedAvg": 0.0, "algorithm=FedProx": 0.5}
    with pytest.raises(UserError, match="baseline_levels"):
        plan_trials(study(tmp_path, tuning={**TUNED["tuning"], "baseline_levels": ["FedAvgg"]}))


def test_a_study_states_which_conditions_count(tmp_path):
    gated = study(tmp_path, gate={"min": 0.2})
    assert gated.gate is not None and (gated.gate.metric, gated.gate.min, gated.gate.action) == ("baseline.gain", 0.2, "void")
    assert parse_study(gated.to_dict()) == gated and study(tmp_path).gate is None


def test_an_empty_or_missing_study_has_a_message_that_says_what_a_study_is(tmp_path):
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(UserError, match=r"contains no study: expected keys and values such as `base: my\.yaml`, got nothing"):
        load_study(tmp_path / "empty.yaml")
    with pytest.raises(UserError, match=r"No such file or directory; give the YAML file of a study, e\.g\. studies/small\.yaml"):
        load_study(tmp_path / "missing.yaml")


def greater(metric: str, **more) -> dict:
    return {"hypotheses": [{"type": "Greater", "name": "H", "metric": metric, **more}]}


def tune(metric: str, **more) -> dict:
    return {"tuning": {**TUNED["tuning"], "metric": metric, **more}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (greater("gapp"), "no metric (hypotheses[0].metric) 'gapp': did you mean 'gap'?"),
        (greater("gap:mean"), "'gap:mean' does not exist, because gap is one number per run"),
        (greater("movement@sports"), "movement is one number per run"),
        (greater("loss:median"), "unknown suffix 'median'"),
        (greater("rounds.to:low"), "needs a loss after the colon"),
        (greater("bytes.to:low"), "needs a number above 0"),
        (greater("syntax.accuracy"), "add syntax to evaluation.probes"),
        (greater("gap", where={}) | {"iid_baselines": False}, "no stage has iid_baselines: true"),
        (greater("loss", contrast="iid_baseline") | {"iid_baselines": False}, "no stage has iid_baselines: true"),
        ({"hypotheses": [{"type": "All", "name": "H", "parts": greater("loss")["hypotheses"] + greater("gapp")["hypotheses"]}]}, "'gapp'"),
        (
            {
                "hypotheses": [
                    {"type": "MatchedDifference", "name": "H", "metric": "loss", "match": "updat.norm", "group": {}, "reference": {}}
                ]
            },
            "did you mean 'update'?",
        ),
        ({"metrics": ["loss", "loss:median"]}, "unknown suffix 'median'"),
        ({"metrics": ["gap:mean"]}, "gap is one number per run"),
        ({"gate": {"metric": "baseline.gains"}}, "'baseline.gains': did you mean 'baseline.gain'?"),
        (tune("gap"), "tuning.metric: a trial does not have 'gap'"),
        (tune("gap.relative"), "a trial does not have 'gap.relative'"),
        (tune("baseline.gain"), "a trial does not have 'baseline.gain'"),
        (tune("loss.under:seconds=3"), "its seconds are not repeatable"),
        (tune("seconds.to:4.2"), "its seconds are not repeatable"),
        (tune("diverged"), "a trial does not have 'diverged'"),
        (tune("lossss"), "did you mean 'loss'?"),
        (tune("fair.gap", overrides={"evaluation.probes": ["language"]}), "add fairness to evaluation.probes"),
    ],
)
def test_a_metric_that_no_run_can_have_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError) as refused:
        study(tmp_path, **changes)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        greater("diverged"),
        greater("loss@sports:max"),
        greater("update.norm:mean"),
        greater("cost.up"),
        greater("syntax.accuracy") | {"stages": [{"name": "a"}, {"name": "b", "overrides": {"evaluation.probes": ["syntax"]}}]},
        greater("syntax.accuracy") | {"factors": {"p": {"a": {"evaluation.probes": ["syntax"]}, "b": {}}}},
        greater("mine.value") | {"overrides": {"evaluation.probes": ["my_probe.py:probes"]}},
        greater("mine.value") | {"factors": {"algorithm": ["FedAvg", "my_file.py:MyAvg"]}},
        greater("gap") | {"stages": [{"name": "a", "iid_baselines": False}, {"name": "b"}]},
        tune("loss.under:bytes=2e6"),
        {"tuning": {"metric": "gap"}},
    ],
)
def test_a_metric_that_a_run_can_have_is_accepted(tmp_path, changes):
    assert study(tmp_path, **changes).name == "tiny"


def test_every_documented_metric_is_known():
    text = (Path(__file__).parents[2] / "docs" / "probes.md").read_text().split("## Reference: metrics")[1].split("### Sources")[0]
    columns = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    names = [name for column in columns for name in re.findall(r"`([a-z][\w.]*)`", column)]
    assert len(names) > 80 and {name.split(".")[0] for name in names} <= set(RECORDED_BY)
    assert set(filter(None, RECORDED_BY.values())) <= set(PROBE_GROUPS)


@pytest.mark.parametrize(("metric", "best"), [("loss", 0.1), ("syntax.accuracy", 1.0), ("gain", 1.0)])
def test_the_good_end_of_the_metric_wins(tmp_path, metric, best):
    tuned = study(
        tmp_path,
        tuning={"trials": 4, "metric": metric, "space": {"training.client_optimizer.lr": [0.1, 0.5, 1.0, 2.0]}},
        overrides={"evaluation.probes": ["language", "syntax"]},
    )
    score = {0.1: 0.1, 0.5: 0.5, 1.0: 0.9, 2.0: float("nan")}
    scored = [(trial, score[trial.settings["training.client_optimizer.lr"]]) for trial in plan_trials(tuned)]
    for result in pick_best_settings(tuned, scored):
        assert (result.settings, result.score) == ({"training.client_optimizer.lr": best}, score[best])
    nothing = pick_best_settings(tuned, [(trial, float("nan")) for trial, _ in scored])[0]
    assert (nothing.settings, nothing.score) == ({}, float("inf"))
