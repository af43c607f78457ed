"""Test the reading of experiments: every mistake is refused with its place, and valid files are read back after writing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from fedrift import load_config
from fedrift.algorithms import FedAvg, FedAvgM, FedProx, Scaffold
from fedrift.config.loader import Registry, dump_value, parse_yaml, plain_type
from fedrift.config.loader.parsing import Parser
from fedrift.config.schema import (
    REGISTRY,
    EvaluationConfig,
    ExperimentConfig,
    ForkConfig,
    TrainingConfig,
    edit_config,
    iid_baseline,
    parse_config,
)
from fedrift.core.errors import UserError, quote_value
from fedrift.core.optimizers import AdamW, Sgd
from fedrift.data import DatasetConfig
from fedrift.data.synthetic import SyntheticConfig
from fedrift.flower.config import FlowerConfig
from fedrift.partition import Dirichlet, TopicMix
from fedrift.report.format import format_strength
from fedrift.studies import Study, executors
from fedrift.studies.executors import Executor
from fedrift.studies.spec import REGISTRY as STUDY_REGISTRY
from fedrift.studies.spec import Tuning


def refusal_of(said: dict, *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        parse_config({"dataset": "bbc", **said}, overrides)
    return str(raised.value)


def test_only_the_dataset_is_required():
    experiment = parse_config({"dataset": "bbc"})
    assert experiment.model == "pocket"
    assert experiment.partition == TopicMix()
    assert refusal_of({"dataset": None}).startswith("dataset: ")
    with pytest.raises(UserError, match="dataset: this key is required"):
        parse_config({})


def test_keys_without_a_type_change_the_default_and_keep_its_other_values():
    """In an earlier version `server_optimizer: {momentum: 0.9}` changed the server's rate from 1 to 0.1 without a warning."""
    assert parse_config({"dataset": "bbc"}, ["algorithm.server_optimizer.momentum=0.9"]).algorithm.server_optimizer == Sgd(
        1.0, momentum=0.9
    )
    changed = parse_config({"dataset": "bbc", "algorithm": {"type": "fedavgm", "server_optimizer": {"momentum": 0.5}}}).algorithm
    assert changed == FedAvgM(Sgd(1.0, momentum=0.5))
    typed = {"type": "FedAvg", "server_optimizer": {"type": "Sgd", "momentum": 0.5}}
    assert parse_config({"dataset": "bbc", "algorithm": typed}).algorithm == FedAvg(Sgd(0.1, momentum=0.5))  # a type has its own defaults
    assert "Yogi has no such key" in refusal_of({"algorithm": {"type": "FedYogi", "server_optimizer": {"type": "Sgd"}}})


def test_classes_are_given_by_type_or_by_name_only():
    assert parse_config({"dataset": "bbc", "algorithm": "Scaffold"}).algorithm == Scaffold()
    said = {"type": "FedProx", "mu": 0.3, "server_optimizer": {"type": "Sgd", "lr": 0.5}}
    assert parse_config({"dataset": "bbc", "algorithm": said}).algorithm == FedProx(mu=0.3, server_optimizer=Sgd(0.5))
    assert parse_config({"dataset": "bbc", "partition": {"num_clients": 4}}).partition == TopicMix(num_clients=4)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"algoritm": "FedAvg"}, "algoritm: ExperimentConfig has no such key: did you mean 'algorithm'?"),
        ({"algorithm": "fedprix"}, "no algorithm 'fedprix': did you mean 'FedProx'?"),
        ({"algorithm": {"type": "FedProx", "my": 1}}, "algorithm.my: FedProx has no such key: did you mean 'mu'?"),
        ({"partition": {"type": "TopicMix", "severity": 1.5}}, "partition.severity: expected a number from 0 to 1, got 1.5"),
        ({"partition": {"type": "TopicMix", "num_clients": 0}}, "partition.num_clients: expected a whole number from 1 to 100,000, got 0"),
        ({"partition": {"type": "Topicmax"}}, "did you mean 'TopicMix'?"),
        ({"training": {"client_optimizer": {"type": "SDG"}}}, "no client_optimizer 'SDG': did you mean 'Sgd'?"),
        (
            {"training": {"client_optimizer": {"type": "Sgd", "lr": -1}}},
            "training.client_optimizer.lr: expected a number from 1e-30 to 1e+30, got -1",
        ),
        ({"training": {"num_rounds": "many"}}, "training.num_rounds: expected a whole number from 0 to 1,000,000, got 'many'"),
        ({"training": {"participation_rate": 0.01}}, "training.participation_rate: 0.01 of 10 clients rounds to no client"),
        ({"training": 3}, "training: expected TrainingConfig as keys and values, got 3"),
        ({"trainable": {"type": "Lora", "r": 0}}, "trainable.r: expected a whole number from 1 to 16,384, got 0"),
        ({"algorithm": 7}, "algorithm: choose a class with `type:`"),
        ({"evaluation": {"split": "train"}}, "evaluation.split: expected 'validation' or 'test', got 'train'"),
    ],
)
def test_a_mistake_is_refused_with_its_place_and_a_correction(said, told):
    assert told in refusal_of(said)


def configurable_classes() -> list[tuple[str, type]]:
    """Return every class in an experiment, a study, a backend or an executor, by the path of its key."""
    found = [
        ("training", TrainingConfig),
        ("evaluation", EvaluationConfig),
        ("fork", ForkConfig),
        ("dataset", DatasetConfig),
        ("synthetic", SyntheticConfig),
        ("tuning", Tuning),
        ("backend", FlowerConfig),
        ("study", Study),
    ]
    for rooms in (REGISTRY, STUDY_REGISTRY, Registry({Executor: executors})):
        found += [(kind.__name__.lower(), each) for kind in rooms.modules for each in rooms.choices(kind).values()]
    return found


def numeric_fields() -> list[tuple[str, type, str, type]]:
    """Return ``(where, class, field, int or float)`` for each numeric field of ``configurable_classes``; None may be allowed."""
    return [
        (where, kind, field.name, plain_type(get_type_hints(kind, include_extras=True)[field.name]))
        for where, kind in configurable_classes()
        for field in fields(kind)
        if plain_type(get_type_hints(kind, include_extras=True)[field.name]) in (int, float)
    ]


def refusal(kind: type, name: str, value: object) -> str:
    """Return the refusal of one value of one field of a class, or "" if it is accepted."""
    parser = Parser(REGISTRY)
    parser.parse(get_type_hints(kind, include_extras=True)[name], value, name)
    return "\n".join(parser.errors)


def test_every_numeric_field_refuses_invalid_and_extreme_numbers():
    assert {
        "lr",
        "max_grad_norm",
        "mu",
        "alpha",
        "local_epochs",
        "seed",
        "r",
        "batch_size",
        "local_steps",
        "num_blocks",
        "severity",
        "round_timeout_s",
    } <= {name for _, _, name, _ in numeric_fields()}
    for _, kind, name, number in numeric_fields():
        for bad in (
            float("inf"),
            float("-inf"),
            float("nan"),
            True,
            False,
            "1",
            "0.5",
            [1],
            {},
            10**5000,
            10**23 if number is int else 1e31,
            1e-320,
            1.5 if number is int else 10**31,
        ):
            said = refusal(kind, name, bad)
            assert said.startswith(f"{name}: expected {'a whole number' if number is int else 'a number'}"), (kind, name, bad, said)
            assert said.endswith(f", got {quote_value(bad)}") and len(said.splitlines()) == 1


def test_every_class_accepts_its_defaults():
    """They are also accepted as they are written, so ids and files of earlier runs stay valid."""
    for where, kind in configurable_classes():
        types = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            if default is not MISSING:
                rooms = Registry({**REGISTRY.modules, **STUDY_REGISTRY.modules})
                parser = Parser(rooms)
                assert (parser.parse(types[field.name], dump_value(default, rooms), where), parser.errors) == (default, [])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("training: {local_epochs: 1e-320}", "training.local_epochs: expected a number from 0.001 to 10,000 or null, got 1e-320"),
        ("trainable: {target_modules: []}", "control characters, at least one, got []"),
        ("trainable: {target_modules: ['']}", "trainable.target_modules[0]: expected text of 1 to 1,000"),
        ("trainable: {r: 1000000000}", "trainable.r: expected a whole number from 1 to 16,384, got 1000000000"),
        (
            "training: {batch_size: 100000000000000000000000}",
            "training.batch_size: expected a whole number from 1 to 16,384, got 1000000000000000",
        ),
        (
            "evaluation: {blocks_per_domain: 100000000000000000000000}",
            "evaluation.blocks_per_domain: expected a whole number from 1 to 1,000,000, got 1000000",
        ),
        ("dataset: ''", "dataset.name: expected text of 1 to"),
        ("algorithm: ''", "algorithm"),
        ("algorithm: {type: '_-'}", "algorithm"),
        ("model: ''", "model: expected text of 1 to"),
        ("dataset:", "dataset: expected DatasetConfig as keys and values, got null"),
        ("model: ~", "model: expected text"),
        ("model_fingerprint: zz", "model_fingerprint: expected an empty string or the 64 hexadecimal digits that a run wrote, got 'zz'"),
        ("dataset: {name: bbc, fingerprint: zz}", "dataset.fingerprint: expected an empty string or the 64 hexadecimal digits"),
        ("training: {local_steps: 1:30}", "training.local_steps: expected a whole number from 1 to 1,000,000, got '1:30'"),
        ("training: {local_steps: '5'}", "training.local_steps: expected a whole number from 1 to 1,000,000, got '5'"),
        ("seed: " + "1" * 5000, f"from 0 to 9,007,199,254,740,991, got '{'1' * 40}' and 4,960 more characters"),
        ("seed: -1", "seed: expected a whole number from 0"),
        ("model: " + "a" * 5000, "model: expected text of 1 to 1,000 characters"),
        ("algorithm: {type: [1, 2]}", "got {'type': [1, 2]}"),
        ("algorithm: {type: }", "got {'type': None}"),
        ("algorithm: {type: FedProx, mu: .inf}", "algorithm.mu: expected a number from 0 to 1e+30, got .inf"),
        ("training: {client_optimizer: {type: AdamW, betas: [0.9]}}", "training.client_optimizer.betas: expected a list of 2"),
        (
            "training: {client_optimizer: {type: AdamW, betas: [0.9, 1]}}",
            "training.client_optimizer.betas[1]: expected a number from 0 and below 1, got 1",
        ),
        ("partition: {type: Style, homogeneous: yes}", "partition.homogeneous: expected true or false, got 'yes'"),
        ("partition: {type: Style, homogeneous: 1}", "partition.homogeneous: expected true or false, got 1"),
        ("partition: {type: Style, styles: [formal, loud]}", "styles[1]: expected 'plain' or 'formal' or 'slang' or 'short', got 'loud'"),
        ("evaluation: test", "evaluation: expected EvaluationConfig as keys and values, got 'test'"),
        ("fork: 3", "fork: expected "),
        ("fork: {run: abc, from_round: 1, exclude_clients: [-1]}", "fork.exclude_clients[0]: expected a whole number from 0"),
        (
            "clustering: {type: TextClustering, num_clusters: [3]}",
            "num_clusters: expected a whole number from 1 to 1,000,000 or null, got [3]",
        ),
        (r'model: "a\0b"', "model: expected text of 1 to 1,000 characters without control characters, got 'a\\x00b'"),
        (r'model: "a\ud800b"', "without control characters"),
        ("1: x", "1: ExperimentConfig has no such key"),
        ("? " + "a" * 900 + "\n: x", f"'{'a' * 40}' and 860 more characters: ExperimentConfig has no such key"),
    ],
)
def test_an_invalid_value_is_refused_in_one_line_with_the_allowed_values(said, told):
    with pytest.raises(UserError) as raised:
        parse_config({"dataset": "bbc", **parse_yaml(said, "the file")})
    assert told in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_whole_number_may_be_written_with_an_exponent_and_a_rate_of_1e30_is_allowed():
    said = parse_yaml("training: {local_steps: 1e2, batch_size: 2.0, client_optimizer: {type: Sgd, lr: 1e30}}", "the file")
    plan = parse_config({"dataset": "bbc", **said}).training
    assert (plan.local_steps, plan.batch_size, plan.client_optimizer) == (100, 2, Sgd(1e30))
    assert isinstance(plan.batch_size, int)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.num_rounds", "written path=value"),
        ("=3", "written path=value"),
        ("training..num_rounds=3", "a path consists of keys"),
        ("training.=3", "a path"),
        (".=1", "a path"),
        ("seed.x=3", "'seed.x': seed is 7, which has no keys to change"),
        ("a." * 500 + "b=1", "a path consists of keys"),
        ("seed=[1", "is not valid YAML: line 1"),
        ("training.local_steps=true", "training.local_steps: expected a whole number"),
        ("seed=", "seed: expected a whole number"),
        ("x" * 5000, "and 4,960 more characters: an override"),
        ("training={local_steps: 1, local_steps: 2}", "the key 'local_steps' is given twice"),
    ],
)
def test_an_invalid_override_is_refused_in_one_line(override, told):
    said = refusal_of({"seed": 7}, override)
    assert told in said
    assert len(said.splitlines()) == 1


def test_of_very_many_mistakes_the_first_are_reported():
    told = refusal_of({"training": {f"key{k}": 1 for k in range(300)}}).splitlines()
    assert len(told) == 21
    assert told[-1] == "and 280 more mistakes"


def test_all_mistakes_are_reported_together():
    told = refusal_of({"partition": {"severity": 2, "num_clients": 0}, "sed": 3})
    assert len(told.splitlines()) == 3


def test_overrides_change_one_key_each():
    experiment = parse_config(
        {"dataset": "bbc", "algorithm": "FedProx"},
        ["algorithm.mu=0.5", "training.client_optimizer.type=Sgd", "training.client_optimizer.lr=1e-2", "dataset.limit=100", "seed=7"],
    )
    assert experiment.algorithm == FedProx(mu=0.5)
    assert experiment.training.client_optimizer == Sgd(0.01)
    assert (experiment.dataset.name, experiment.dataset.limit, experiment.seed) == ("bbc", 100, 7)
    assert "written path=value" in refusal_of({}, "training.num_rounds")


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"algorithm": "Scaffold"},
        {"trainable": {"type": "LastBlocks", "num_blocks": 2}},
        {"partition": {"type": "Dirichlet", "severity": 0.3}},
        {"training": {"client_optimizer": {"type": "Sgd", "momentum": 0.9}, "local_epochs": 1.5, "max_grad_norm": None}},
    ],
)
def test_written_experiments_are_read_back_equal(said):
    experiment = parse_config({"dataset": "bbc", **said})
    again = parse_config(experiment.to_dict())
    assert again == experiment
    assert again.id == experiment.id


def test_parameters_of_the_synthetic_corpus_are_written_only_if_changed():
    assert "synthetic" not in parse_config({"dataset": "bbc"}).to_dict()["dataset"]
    turned = parse_config({"dataset": {"name": "synthetic", "synthetic": {"overlap": 0.2, "styles": ["plain", "slang"]}}})
    assert turned.to_dict()["dataset"]["synthetic"]["overlap"] == 0.2
    assert parse_config(yaml.safe_load(yaml.safe_dump(turned.to_dict()))) == turned


def test_reading_yaml_needs_no_torch():
    code = "import sys; import fedrift.config.loader, fedrift.cli.partition_data; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_id_depends_on_everything_that_can_change_a_result():
    assert parse_config({"dataset": "bbc"}).id == parse_config({"dataset": "bbc", "seed": 0, "training": {"num_rounds": 30}}).id
    assert (
        len(
            {
                parse_config({"dataset": "bbc", **said}).id
                for said in (
                    {},
                    {"seed": 1},
                    {"algorithm": "Scaffold"},
                    {"algorithm": "FedProx"},
                    {"model": "smollm2-135m"},
                    {"partition": {"severity": 0.5}},
                    {"training": {"max_grad_norm": None}},
                    {"dataset": {"name": "bbc", "limit": 5}},
                )
            }
        )
        == 8
    )


def test_the_iid_baseline_differs_in_severity_only():
    experiment = parse_config({"dataset": "bbc", "partition": {"type": "Dirichlet", "num_clients": 4, "severity": 0.7}, "seed": 2})
    assert iid_baseline(experiment).partition == Dirichlet(num_clients=4, severity=0.0)
    assert edit_config(iid_baseline(experiment), {"partition__severity": 0.7}) == experiment


def test_an_unknown_key_of_a_change_is_refused():
    with pytest.raises(UserError, match="did you mean 'severity'"):
        edit_config(parse_config({"dataset": "bbc"}), {"partition__severty": 1})


def test_the_learning_rate_follows_the_cosine_schedule():
    plan = parse_config({"dataset": "bbc", "training": {"num_rounds": 10, "lr_schedule": "cosine"}}).training
    assert [plan.lr_factor(round) for round in (0, 5)] == pytest.approx([1.0, 0.5])
    assert plan.client_optimizer == AdamW()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "contains no experiment"),
        (b"- a\n- b", "contains no experiment"),
        (b"dataset: [", "is not valid YAML"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_a_file_that_is_not_an_experiment_is_refused(tmp_path, content, told):
    path = tmp_path / "e.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "none.yaml")


EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_experiment_of_the_package_is_valid(path):
    assert isinstance(load_config(path), ExperimentConfig)


def test_nothing_after_the_equals_sign_is_the_empty_text_and_null_is_written():
    assert parse_config({"dataset": "bbc"}, ["dataset.label_column="]).dataset.label_column == ""
    for null in ("null", "~"):
        assert parse_config({"dataset": {"name": "bbc", "limit": 5}}, [f"dataset.limit={null}"]).dataset.limit is None


def test_the_name_of_a_dirichlet_run_has_its_alpha_in_place_of_the_severity():
    base = {"dataset": "bbc", "partition": {"type": "Dirichlet", "alpha": 0.1}}
    assert parse_config(base).name == "FedAvg bbc Dirichlet alpha 0.1 seed 0"
    assert iid_baseline(parse_config(base)).name == "FedAvg bbc Dirichlet 0 seed 0"
    assert parse_config({"dataset": "bbc", "partition": "Dirichlet"}).name == "FedAvg bbc Dirichlet 1 seed 0"
    stored = [parse_config({"dataset": "bbc", "partition": part}).to_dict()["partition"] for part in (base["partition"], "TopicMix")]
    assert [format_strength(each) for each in (*stored, {**stored[0], "severity": 0.0})] == ["alpha 0.1", "severity 1", "severity 0"]
