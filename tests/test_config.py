"""Reading experiments: every mistake is told with its place and the way out, and what is right survives the round trip."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from fedrift.algorithms import FedProx, Scaffold
from fedrift.config import Rooms, _read, kind_of, parse_yaml, write
from fedrift.corpus import Source
from fedrift.corpus.sandbox import Sandbox
from fedrift.errors import UserError, quote
from fedrift.experiment import ROOMS, Evaluate, Experiment, Fork, Plan, edit, grid, load_experiment, parse, twin
from fedrift.flower.terms import Terms
from fedrift.optimizers import AdamW, Sgd
from fedrift.partition import Dirichlet, TopicMix
from fedrift.study import Study, executors
from fedrift.study.executors import Executor
from fedrift.study.study import ROOMS as STUDY_ROOMS
from fedrift.study.study import Tuning


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
    ({"partition": {"is": "TopicMix", "severity": 1.5}}, "partition.severity: wanted a number from 0 to 1, got 1.5"),
    ({"partition": {"is": "TopicMix", "clients": 0}}, "partition.clients: wanted a whole number from 1 to 100,000, got 0"),
    ({"partition": {"is": "Topicmix"}}, "did you mean 'TopicMix'?"),
    ({"plan": {"optimizer": {"is": "SGD"}}}, "no optimizer 'SGD': did you mean 'Sgd'?"),
    ({"plan": {"optimizer": {"is": "Sgd", "lr": -1}}}, "plan.optimizer.lr: wanted a number from 1e-30 to 1e+30, got -1"),
    ({"plan": {"rounds": "many"}}, "plan.rounds: wanted a whole number from 0 to 1,000,000, got 'many'"),
    ({"plan": {"participation": 0.01}}, "plan.participation: 0.01 of 10 clients rounds to no client"),
    ({"plan": 3}, "plan: wanted Plan as keys and values, got 3"),
    ({"tune": {"is": "Lora", "rank": 0}}, "tune.rank: wanted a whole number from 1 to 16,384, got 0"),
    ({"algorithm": 7}, "algorithm: say which one with `is:`"),
    ({"evaluate": {"split": "train"}}, "evaluate.split: wanted 'validation' or 'test', got 'train'"),
])
def test_a_mistake_is_told_with_its_place_and_the_way_out(said, told):
    assert told in wrong(said)


def settable() -> list[tuple[str, type]]:
    """Every class that stands in an experiment, a study, a fleet or an executor, by the path of its key."""
    found = [("plan", Plan), ("evaluate", Evaluate), ("fork", Fork), ("corpus", Source), ("sandbox", Sandbox), ("tuning", Tuning),
             ("fleet", Terms), ("study", Study)]
    for rooms in (ROOMS, STUDY_ROOMS, Rooms({Executor: executors})):
        found += [(kind.__name__.lower(), each) for kind in rooms.rooms for each in rooms.choices(kind).values()]
    return found


def numbers() -> list[tuple[str, type, str, type]]:
    """``(where, class, field, int or float)`` for each field of ``settable`` that is a number, None beside it or not."""
    return [(where, kind, field.name, kind_of(get_type_hints(kind, include_extras=True)[field.name]))
            for where, kind in settable() for field in fields(kind)
            if kind_of(get_type_hints(kind, include_extras=True)[field.name]) in (int, float)]


def refusal(kind: type, name: str, value: object) -> str:
    """What is said of one value of one field of a class, "" if it is taken."""
    wrong: list[str] = []
    _read(get_type_hints(kind, include_extras=True)[name], value, ROOMS, name, wrong)
    return "\n".join(wrong)


def test_no_number_of_any_class_takes_what_is_no_number_or_no_size_to_compute_with():
    assert {"lr", "clip", "mu", "alpha", "epochs", "seed", "rank", "batch", "steps", "blocks", "severity", "patience"} <= {
        name for _, _, name, _ in numbers()}
    for _, kind, name, number in numbers():
        for bad in (float("inf"), float("-inf"), float("nan"), True, False, "1", "0.5", [1], {}, 10**5000,
                    10**23 if number is int else 1e31, 1e-320, 1.5 if number is int else 10**31):
            said = refusal(kind, name, bad)
            assert said.startswith(f"{name}: wanted {'a whole number' if number is int else 'a number'}"), (kind, name, bad, said)
            assert said.endswith(f", got {quote(bad)}") and len(said.splitlines()) == 1


def test_the_defaults_of_every_class_are_values_that_it_takes():
    """Also as they are written down: ids and files of earlier runs stay what they were."""
    for where, kind in settable():
        types = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            if default is not MISSING:
                wrong: list[str] = []
                rooms = Rooms({**ROOMS.rooms, **STUDY_ROOMS.rooms})
                assert (_read(types[field.name], write(default, rooms), rooms, where, wrong), wrong) == (default, [])


@pytest.mark.parametrize(("said", "told"), [
    ("plan: {epochs: 1e-320}", "plan.epochs: wanted a number from 0.001 to 10,000 or null, got 1e-320"),
    ("tune: {targets: []}", "control characters, at least one, got []"),
    ("tune: {targets: ['']}", "tune.targets[0]: wanted text of 1 to 1,000"),
    ("tune: {rank: 1000000000}", "tune.rank: wanted a whole number from 1 to 16,384, got 1000000000"),
    ("plan: {batch: 100000000000000000000000}", "plan.batch: wanted a whole number from 1 to 16,384, got 1000000000000000"),
    ("evaluate: {blocks: 100000000000000000000000}", "evaluate.blocks: wanted a whole number from 1 to 1,000,000, got 1000000"),
    ("corpus: ''", "corpus.name: wanted text of 1 to"), ("model: ''", "model: wanted text of 1 to"),
    ("corpus:", "corpus: wanted Source as keys and values, got null"), ("model: ~", "model: wanted text"),
    ("model_content: zz", "model_content: wanted nothing, or the 64 hexadecimal digits that a run wrote, got 'zz'"),
    ("corpus: {name: bbc, content: zz}", "corpus.content: wanted nothing, or the 64 hexadecimal digits"),
    ("plan: {steps: 1:30}", "plan.steps: wanted a whole number from 1 to 1,000,000, got '1:30'"),
    ("plan: {steps: '5'}", "plan.steps: wanted a whole number from 1 to 1,000,000, got '5'"),
    ("seed: " + "1" * 5000, f"from 0 to 9,007,199,254,740,991, got '{'1' * 40}' and 4,960 more characters"),
    ("seed: -1", "seed: wanted a whole number from 0"), ("model: " + "a" * 5000, "model: wanted text of 1 to 1,000 characters"),
    ("algorithm: {is: [1, 2]}", "got {'is': [1, 2]}"), ("algorithm: {is: }", "got {'is': None}"),
    ("algorithm: {is: FedProx, mu: .inf}", "algorithm.mu: wanted a number from 0 to 1e+30, got .inf"),
    ("plan: {optimizer: {is: AdamW, betas: [0.9]}}", "plan.optimizer.betas: wanted a list of 2"),
    ("plan: {optimizer: {is: AdamW, betas: [0.9, 1]}}", "plan.optimizer.betas[1]: wanted a number from 0 and below 1, got 1"),
    ("partition: {is: Style, everybody: yes}", "partition.everybody: wanted true or false, got 'yes'"),
    ("partition: {is: Style, everybody: 1}", "partition.everybody: wanted true or false, got 1"),
    ("partition: {is: Style, styles: [formal, loud]}", "styles[1]: wanted 'plain' or 'formal' or 'slang' or 'short', got 'loud'"),
    ("evaluate: test", "evaluate: wanted Evaluate as keys and values, got 'test'"), ("fork: 3", "fork: wanted "),
    ("fork: {run: abc, round: 1, drop_client: [-1]}", "fork.drop_client[0]: wanted a whole number from 0"),
    ("mitigation: {is: ByText, clusters: [3]}", "clusters: wanted a whole number from 1 to 1,000,000 or null, got [3]"),
    (r'model: "a\0b"', "model: wanted text of 1 to 1,000 characters without control characters, got 'a\\x00b'"),
    (r'model: "a\ud800b"', "without control characters"), ("1: x", "1: Experiment has no such key"),
    ("? " + "a" * 900 + "\n: x", f"'{'a' * 40}' and 860 more characters: Experiment has no such key"),
])
def test_a_value_that_is_not_allowed_is_refused_in_one_line_that_says_what_is(said, told):
    with pytest.raises(UserError) as raised:
        parse({"corpus": "bbc", **parse_yaml(said, "the file")})
    assert told in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_whole_number_may_be_written_with_an_exponent_and_a_rate_of_1e30_is_allowed():
    said = parse_yaml("plan: {steps: 1e2, batch: 2.0, optimizer: {is: Sgd, lr: 1e30}}", "the file")
    plan = parse({"corpus": "bbc", **said}).plan
    assert (plan.steps, plan.batch, plan.optimizer) == (100, 2, Sgd(1e30))
    assert isinstance(plan.batch, int)


@pytest.mark.parametrize(("override", "told"), [
    ("plan.rounds", "written path=value"), ("=3", "written path=value"), ("plan..rounds=3", "a path is keys with dots"),
    ("plan.=3", "a path"), (".=1", "a path"), ("seed.x=3", "'seed.x': seed is 7, which has no keys to change"),
    ("a." * 500 + "b=1", "a path is keys with dots"), ("seed=[1", "is not YAML that can be read: line 1"),
    ("plan.steps=true", "plan.steps: wanted a whole number"), ("seed=", "seed: wanted a whole number"),
    ("x" * 5000, "and 4,960 more characters: an override"), ("plan={steps: 1, steps: 2}", "the key 'steps' is given twice")])
def test_an_override_that_cannot_be_made_is_refused_in_one_line(override, told):
    said = wrong({"seed": 7}, override)
    assert told in said
    assert len(said.splitlines()) == 1


def test_many_mistakes_are_told_as_the_first_of_them():
    told = wrong({"plan": {f"key{k}": 1 for k in range(300)}}).splitlines()
    assert len(told) == 21
    assert told[-1] == "and 280 more mistakes"


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
