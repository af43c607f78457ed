"""Reading experiments: every mistake is told with its place and the way out, and what is right survives the round trip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedrift.algorithms import FedProx, Scaffold
from fedrift.errors import UserError
from fedrift.experiment import Experiment, edit, grid, load_experiment, parse, twin
from fedrift.optimizers import AdamW, Sgd
from fedrift.partition import Dirichlet, TopicMix


def wrong(said: dict, *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        parse({"corpus": "bbc", **said}, overrides)
    return str(raised.value)


def test_a_corpus_is_all_that_must_be_said():
    experiment = parse({"corpus": "bbc"})
    assert experiment.model == "pocket"
    assert experiment.partition == TopicMix()
    assert wrong({"corpus": None}).startswith("corpus: ")
    with pytest.raises(UserError, match="corpus: must be said"):
        parse({})


def test_classes_are_named_by_is_or_by_their_name_alone():
    assert parse({"corpus": "bbc", "algorithm": "Scaffold"}).algorithm == Scaffold()
    said = {"is": "FedProx", "mu": 0.3, "server": {"is": "Sgd", "lr": 0.5}}
    assert parse({"corpus": "bbc", "algorithm": said}).algorithm == FedProx(mu=0.3, server=Sgd(0.5))
    assert parse({"corpus": "bbc", "partition": {"clients": 4}}).partition == TopicMix(clients=4)


@pytest.mark.parametrize(("said", "told"), [
    ({"algoritm": "FedAvg"}, "algoritm: Experiment has no such key: did you mean 'algorithm'?"),
    ({"algorithm": "fedprox"}, "no algorithm 'fedprox': did you mean 'FedProx'?"),
    ({"algorithm": {"is": "FedProx", "my": 1}}, "algorithm.my: FedProx has no such key: did you mean 'mu'?"),
    ({"partition": {"is": "TopicMix", "severity": 1.5}}, "partition.severity: input should be less than or equal to 1, got 1.5"),
    ({"partition": {"is": "TopicMix", "clients": 0}}, "partition.clients: input should be greater than or equal to 1, got 0"),
    ({"partition": {"is": "Topicmix"}}, "did you mean 'TopicMix'?"),
    ({"plan": {"optimizer": {"is": "SGD"}}}, "no optimizer 'SGD': did you mean 'Sgd'?"),
    ({"plan": {"optimizer": {"is": "Sgd", "lr": -1}}}, "plan.optimizer.lr: input should be greater than 0, got -1"),
    ({"plan": {"rounds": "many"}}, "plan.rounds: input should be a valid integer"),
    ({"plan": {"participation": 0.01}}, "plan.participation: 0.01 of 10 clients rounds to no client"),
    ({"plan": 3}, "plan: wanted Plan as keys and values, got 3"),
    ({"tune": {"is": "Lora", "rank": 0}}, "tune.rank: input should be greater than or equal to 1"),
    ({"algorithm": 7}, "algorithm: say which one with `is:`"),
    ({"evaluate": {"split": "train"}}, "evaluate.split: input should be 'validation' or 'test'"),
])
def test_a_mistake_is_told_with_its_place_and_the_way_out(said, told):
    assert told in wrong(said)


def test_all_mistakes_are_told_at_once():
    told = wrong({"partition": {"severity": 2, "clients": 0}, "sed": 3})
    assert len(told.splitlines()) == 3


def test_overrides_change_one_key_each():
    experiment = parse({"corpus": "bbc", "algorithm": "FedProx"}, [
        "algorithm.mu=0.5", "plan.optimizer.is=Sgd", "plan.optimizer.lr=1e-2", "corpus.limit=100", "seed=7"])
    assert experiment.algorithm == FedProx(mu=0.5)
    assert experiment.plan.optimizer == Sgd(0.01)
    assert (experiment.corpus.name, experiment.corpus.limit, experiment.seed) == ("bbc", 100, 7)
    assert "written path=value" in wrong({}, "plan.rounds")


@pytest.mark.parametrize("said", [
    {}, {"algorithm": "Scaffold"}, {"tune": {"is": "LastK", "blocks": 2}}, {"partition": {"is": "Dirichlet", "severity": 0.3}},
    {"plan": {"optimizer": {"is": "Sgd", "momentum": 0.9}, "epochs": 1.5, "clip": None}}])
def test_what_is_written_down_is_read_back_the_same(said):
    experiment = parse({"corpus": "bbc", **said})
    again = parse(experiment.written())
    assert again == experiment
    assert again.id == experiment.id


def test_the_dials_of_the_sandbox_are_written_where_they_are_turned_and_nowhere_else():
    assert "sandbox" not in parse({"corpus": "bbc"}).written()["corpus"]
    turned = parse({"corpus": {"name": "sandbox", "sandbox": {"overlap": 0.2, "styles": ["plain", "slang"]}}})
    assert turned.written()["corpus"]["sandbox"]["overlap"] == 0.2
    assert parse(yaml.safe_load(yaml.safe_dump(turned.written()))) == turned


def test_reading_yaml_needs_no_torch():
    code = "import sys; import fedrift.config, fedrift.cli.deals; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_id_is_of_what_can_change_a_result():
    assert parse({"corpus": "bbc"}).id == parse({"corpus": "bbc", "seed": 0, "plan": {"rounds": 30}}).id
    assert len({parse({"corpus": "bbc", **said}).id for said in (
        {}, {"seed": 1}, {"algorithm": "Scaffold"}, {"algorithm": "FedProx"}, {"model": "smollm2-135m"},
        {"partition": {"severity": 0.5}}, {"plan": {"clip": None}}, {"corpus": {"name": "bbc", "limit": 5}})}) == 8


def test_the_twin_differs_in_severity_alone():
    experiment = parse({"corpus": "bbc", "partition": {"is": "Dirichlet", "clients": 4, "severity": 0.7}, "seed": 2})
    assert twin(experiment).partition == Dirichlet(clients=4, severity=0.0)
    assert edit(twin(experiment), {"partition__severity": 0.7}) == experiment


def test_a_grid_is_every_combination():
    found = grid(parse({"corpus": "bbc"}), partition__severity=[0.0, 1.0], seed=range(3))
    assert len(found) == 6
    assert len({experiment.id for experiment in found}) == 6
    with pytest.raises(UserError, match="did you mean 'severity'"):
        grid(found[0], partition__severty=[1])


def test_the_learning_rate_goes_down_the_cosine_by_round():
    plan = parse({"corpus": "bbc", "plan": {"rounds": 10, "schedule": "cosine"}}).plan
    assert [plan.factor(round) for round in (0, 5)] == pytest.approx([1.0, 0.5])
    assert plan.optimizer == AdamW()


@pytest.mark.parametrize(("content", "told"), [
    (b"", "holds no experiment"), (b"- a\n- b", "holds no experiment"), (b"corpus: [", "is not YAML"),
    (b"\xff\xfe\x00", "not a text file")])
def test_a_file_that_is_no_experiment_says_so(tmp_path, content, told):
    path = tmp_path / "e.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told):
        load_experiment(path)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_experiment(tmp_path / "none.yaml")


EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_experiment_that_comes_with_fedrift_is_valid(path):
    assert isinstance(load_experiment(path), Experiment)
