"""Test the id of a run: equal experiments have equal ids, and every change that can affect a result gives another id."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from fedrift.algorithms import FedAvg, FedProx
from fedrift.config.loader import dump_value
from fedrift.config.schema import (
    REGISTRY,
    SCHEMA_VERSION,
    EvaluationConfig,
    ExperimentConfig,
    ForkConfig,
    TrainingConfig,
    compute_id,
    diff_stored_configs,
    edit_config,
    iid_baseline,
    parse_config,
    parse_stored_config,
)
from fedrift.core.errors import UserError
from fedrift.core.optimizers import Sgd
from fedrift.data import DatasetConfig, SyntheticConfig
from fedrift.models.trainable import Lora
from fedrift.partition import Dirichlet, Style, TopicMix

RESULTS = Path(__file__).resolve().parents[1] / "studies" / "results"
# Digests of the defaults of all classes of an experiment, by schema version. With a changed default the same YAML is another experiment:
# raise SCHEMA_VERSION and add a line. A new class or field needs no new version, only the new digest.
DEFAULTS = {4: "2666aa5eb8a9"}


def defaults() -> dict[str, object]:
    """Return every field of every class of an experiment with its default as it is written."""
    classes = {ExperimentConfig, TrainingConfig, EvaluationConfig, ForkConfig, DatasetConfig, SyntheticConfig}
    classes |= {kind for room in REGISTRY.modules for kind in (REGISTRY.choices(room) or {}).values()}
    found = {}
    for kind in sorted(classes, key=lambda kind: f"{kind.__module__}.{kind.__name__}"):
        for f in fields(kind):
            default = f.default_factory() if callable(f.default_factory) else None if f.default is MISSING else f.default
            found[f"{kind.__name__}.{f.name}"] = dump_value(default, REGISTRY) if is_dataclass(default) else repr(default)
    return found


def test_a_changed_default_raises_the_schema_version():
    digest = sha256(json.dumps(defaults(), sort_keys=True).encode()).hexdigest()[:12]
    assert DEFAULTS.get(SCHEMA_VERSION) == digest, (
        f"the defaults' digest is {digest}. If a default was changed, raise SCHEMA_VERSION in fedrift/config/schema.py and pin this digest "
        "for the new version; if classes or fields were added and no default was changed, pin it for the present one"
    )


def test_every_value_is_in_the_id_although_it_is_the_default(monkeypatch):
    asked = parse_config({"dataset": "bbc"})
    before = asked.id
    assert compute_id({**asked.to_stored_dict(), "schema": SCHEMA_VERSION + 1}) != before
    training = next(f for f in fields(ExperimentConfig) if f.name == "training")
    monkeypatch.setattr(training, "default", TrainingConfig(local_steps=1))
    assert parse_config({"dataset": "bbc", "training": {"num_rounds": 30}}).training.local_steps == 1
    assert parse_config({"dataset": "bbc", "training": {"num_rounds": 30}}).id != before
    synthetic = parse_config({"dataset": "synthetic"}).to_stored_dict()
    assert synthetic["dataset"]["synthetic"]["num_domains"] == 4
    for path in ("overlap", "num_domains"):
        changed = {**synthetic, "dataset": {**synthetic["dataset"], "synthetic": {**synthetic["dataset"]["synthetic"], path: 3}}}
        assert compute_id(changed) != compute_id(synthetic)


def test_the_id_is_computed_from_the_stored_experiment():
    asked = parse_config(
        {"dataset": "bbc", "algorithm": {"type": "FedProx", "mu": 0.1}, "training": {"client_optimizer": {"type": "Sgd", "lr": 1}}}
    )
    stored = json.loads(json.dumps({**asked.to_stored_dict(), "id": asked.id, "partition_table": {"tokens": [[1]]}}))
    assert compute_id(stored) == asked.id
    assert parse_stored_config(stored) == asked
    assert compute_id({"schema": 1, "dataset": {"name": "a"}, "rounds": 3.0, "id": "x"}) == "15063fb9cff3"
    assert diff_stored_configs(asked.to_stored_dict(), stored) == []
    other = edit_config(asked, {"training__local_steps": 1, "algorithm": FedAvg()})
    assert diff_stored_configs(other.to_stored_dict(), stored) == [
        'algorithm.type is "FedProx" in the stored run and "FedAvg" in the requested run',
        "training.local_steps is 5 in the stored run and 1 in the requested run",
        "algorithm.mu is 0.1 in the stored run and missing in the requested run",
        'algorithm.proximal is "gradient" in the stored run and missing in the requested run',
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.zip")))
def test_runs_of_committed_studies_keep_their_ids(name):
    with zipfile.ZipFile(RESULTS / f"{name}.zip") as archive:
        members = [member for member in archive.namelist() if member.endswith("/experiment.json")]
        assert members
        for member in members[:: max(1, len(members) // 6)]:
            stored = json.loads(archive.read(member))
            assert stored["schema"] <= SCHEMA_VERSION
            assert compute_id(stored) == stored["id"] == member.split("/")[0]
            assert compute_id({**stored, "seed": stored["seed"] + 1}) != stored["id"]


BASE = parse_config(
    {"dataset": "bbc", "partition": {"type": "Dirichlet", "severity": 0.0}, "training": {"client_optimizer": {"type": "Sgd", "lr": 1.0}}}
)


@pytest.mark.parametrize(
    ("path", "equal"),
    [
        ("partition__severity", [0, 0.0, -0.0, np.float64(0), np.float32(0), np.int64(0), np.array(0)]),
        ("training__client_optimizer__lr", [1, 1.0, np.float32(1), np.int8(1)]),
        ("training__max_grad_norm", [2, 2.0, np.float64(2)]),
        ("seed", [3, 3.0, np.int64(3), np.uint8(3)]),
        ("evaluation__probes", [("updates", "language"), ["updates", "language"], np.array(["updates", "language"])]),
        ("dataset__limit", [50, np.int32(50)]),
        ("algorithm", [FedProx(mu=1), FedProx(mu=1.0), FedProx(mu=np.float32(1), server_optimizer=Sgd(1)), {"type": "FedProx", "mu": 1}]),
        ("trainable", [Lora(target_modules=["q_proj"], lora_alpha=16), Lora(target_modules=("q_proj",))]),
        ("partition", [Style(styles=["formal", "slang"], homogeneous=np.bool_(False)), Style(styles=("formal", "slang"))]),
    ],
)
def test_equal_values_have_one_id_and_one_form(path, equal):
    made = [edit_config(BASE, {path: value}) for value in equal]
    head, *rest = path.split("__")
    if len(rest) < 2:
        made += [replace(BASE, **{head: replace(getattr(BASE, head), **{rest[0]: value}) if rest else value}) for value in equal]
    assert len({each.id for each in made}) == 1
    assert len({json.dumps(each.to_stored_dict()) for each in made}) == 1
    assert parse_stored_config(json.loads(json.dumps(made[0].to_stored_dict()))).id == made[0].id


def test_an_experiment_with_severity_0_is_the_iid_baseline():
    skewed = parse_config({"dataset": "bbc"})
    assert edit_config(skewed, {"partition__severity": 0}).id == iid_baseline(skewed).id
    assert edit_config(skewed, {"partition__severity": 1}).id == skewed.id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__num_rounds": -5}, "training.num_rounds: expected a whole number from 0 to 1,000,000, got -5"),
        ({"partition__severity": 7.5}, "partition.severity: expected a number from 0 to 1, got 7.5"),
        ({"partition": TopicMix(severity=-1)}, "partition.severity"),
        ({"algorithm": FedProx(mu=-1)}, "algorithm.mu"),
        ({"training__participation_rate": 0.01}, "rounds to no client"),
        ({"evaluation__probes": ("langage",)}, "did you mean 'language'"),
        ({"algorithm": Sgd()}, "algorithm: expected FedAvg, got Sgd"),
        ({"partition": Sgd()}, "partition: expected Partitioner, got Sgd"),
        ({"training": EvaluationConfig()}, "training: expected TrainingConfig, got EvaluationConfig"),
        ({"fork": ForkConfig("abc", 0)}, "fork.from_round"),
        ({"dataset": DatasetConfig("bbc", limit=0)}, "dataset.limit"),
    ],
)
def test_experiments_made_in_python_are_validated_like_files(changes, message):
    with pytest.raises(UserError, match=message):
        edit_config(BASE, changes)
    ((path, value),) = changes.items()
    head, *rest = path.split("__")
    part = replace(getattr(BASE, head), **{rest[0]: value}) if rest else value
    with pytest.raises(UserError, match=message):
        replace(BASE, **{head: part})
    with pytest.raises(UserError, match=message):
        ExperimentConfig(**{"dataset": DatasetConfig("bbc"), head: part})


def test_changes_are_applied_together_and_all_mistakes_reported():
    few = edit_config(
        BASE,
        {
            "training__participation_rate": 0.1,
            "partition__num_clients": 2,
            "training__num_rounds": 3,
            "partition": Dirichlet(num_clients=20),
        },
    )
    assert few.partition == Dirichlet(num_clients=20)
    alone = edit_config(
        edit_config(BASE, {"training__participation_rate": 0.1}), {"partition__num_clients": 2, "training__participation_rate": 1}
    )
    assert (alone.partition.num_clients, alone.training.participation_rate) == (2, 1.0)
    with pytest.raises(UserError) as raised:
        edit_config(BASE, {"training__num_rounds": -5, "partition__severity": 7.5})
    assert len(str(raised.value).splitlines()) == 2


OWN = """
from dataclasses import dataclass
from fedrift.algorithms import FedAvg

@dataclass(frozen=True)
class Own(FedAvg):
    gamma: float = 0.5

class Hidden(FedAvg):
    def __init__(self, gamma):
        super().__init__()
        object.__setattr__(self, "gamma", gamma)

class Deal:
    num_clients, severity = 10, 0.5
    def __call__(self, corpus, rng): ...
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def load(text=OWN):
        (tmp_path / "own_algorithms.py").write_text(text)
        sys.modules.pop("own_algorithms", None)
        importlib.invalidate_caches()
        return importlib.import_module("own_algorithms")

    yield load
    sys.modules.pop("own_algorithms", None)


def test_a_users_own_class_is_in_the_id_by_its_path_and_its_source(own):
    first = replace(BASE, algorithm=own().Own())
    stored = first.to_stored_dict()
    assert stored["algorithm"]["type"] == "own_algorithms:Own"
    assert compute_id(json.loads(json.dumps(stored))) == first.id != BASE.id
    assert replace(BASE, algorithm=own().Own(gamma=1)).id == replace(BASE, algorithm=own().Own(gamma=1.0)).id != first.id
    assert replace(BASE, algorithm=own().Own()).id == first.id
    edited = replace(BASE, algorithm=own(OWN + "\n# edited\n").Own())
    assert edited.id != first.id
    assert diff_stored_configs(edited.to_stored_dict(), stored)[0].startswith("algorithm.source is")
    derived = own(OWN.replace("gamma: float = 0.5", "gamma: float = 0.5\n    def local_regularizer(self): return None"))
    assert replace(BASE, algorithm=derived.Own()).id not in (first.id, edited.id)


def test_settings_of_a_user_class_that_cannot_be_in_the_id_are_refused(own):
    module = own()
    with pytest.raises(UserError, match=r"algorithm\.gamma: no field of the dataclass Hidden"):
        replace(BASE, algorithm=module.Hidden(0.5))
    with pytest.raises(UserError, match="partition: Deal is no dataclass"):
        replace(BASE, partition=module.Deal())

    @dataclass(frozen=True)
    class Function(FedAvg):
        rule: object = len

    with pytest.raises(UserError, match=r"algorithm\.rule is a builtin_function"):
        _ = replace(BASE, algorithm=Function()).id


def test_a_class_without_readable_source_is_refused():
    kind = type("Own", (FedAvg,), {"__module__": "nowhere"})
    with pytest.raises(UserError, match=r"source of nowhere\.Own cannot be read"):
        _ = replace(BASE, algorithm=kind()).id


FILE = """
from dataclasses import dataclass
from fedrift.partition import TopicMix

@dataclass(frozen=True)
class Mine(TopicMix):
    alpha: float = 0.5

def probes(context):
    return []
"""


def test_a_file_is_identified_by_its_path_and_not_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("token.py", "fedrift.py", "a/dup.py", "b/dup.py")  # a standard module, this package, and two files of one name
    for number, name in enumerate(names):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{FILE}# {number}")
        stored = parse_config({"dataset": "bbc", "partition": f"{name}:Mine"}).to_dict()["partition"]
        assert (stored["type"], stored["source"]) == (f"{name}:Mine", sha256(file.read_bytes()).hexdigest())
    assert Path(importlib.import_module("token").__file__).parent != tmp_path


def test_an_own_partition_with_an_alpha_has_an_iid_baseline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_alpha.py").write_text(FILE)
    iid = iid_baseline(parse_config({"dataset": "bbc", "partition": "own_alpha.py:Mine"}))
    assert (iid.partition.severity, iid.partition.alpha) == (0.0, 0.5)
    assert iid_baseline(parse_config({"dataset": "bbc", "partition": {"type": "Dirichlet", "alpha": 0.5}})).partition == Dirichlet(
        severity=0.0
    )
