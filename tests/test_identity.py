"""The id of a run: equal experiments have one id, and whatever can change a result changes it."""

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
from fedrift.config import write
from fedrift.corpus import Sandbox, Source
from fedrift.errors import UserError
from fedrift.experiment import (
    ROOMS,
    SCHEMA,
    Evaluate,
    Experiment,
    Fork,
    Plan,
    differences,
    edit,
    grid,
    identify,
    parse,
    parse_stored,
    twin,
)
from fedrift.models.tune import Lora
from fedrift.optimizers import Sgd
from fedrift.partition import Dirichlet, Style, TopicMix

RESULTS = Path(__file__).resolve().parents[1] / "studies" / "results"
# The defaults of every class that an experiment is made of, by schema version. A changed default is another experiment under the
# same YAML: raise SCHEMA and add a line. A class or a field that is new needs no new version, only the new digest.
DEFAULTS = {1: "080816962091", 2: "080816962091"}  # 2: weighting "examples" is n_k by data held


def defaults() -> dict[str, object]:
    """Every field of every class that an experiment may hold, with its default as it is written."""
    classes = {Experiment, Plan, Evaluate, Fork, Source, Sandbox}
    classes |= {kind for room in ROOMS.rooms for kind in (ROOMS.choices(room) or {}).values()}
    found = {}
    for kind in sorted(classes, key=lambda kind: f"{kind.__module__}.{kind.__name__}"):
        for f in fields(kind):
            default = f.default_factory() if callable(f.default_factory) else None if f.default is MISSING else f.default
            found[f"{kind.__name__}.{f.name}"] = write(default, ROOMS) if is_dataclass(default) else repr(default)
    return found


def test_a_changed_default_raises_the_schema_version():
    digest = sha256(json.dumps(defaults(), sort_keys=True).encode()).hexdigest()[:12]
    assert DEFAULTS.get(SCHEMA) == digest, (
        f"the defaults' digest is {digest}. If a default was changed, raise SCHEMA in fedrift/experiment.py and pin this digest "
        "for the new version; if classes or fields were added and no default was changed, pin it for the present one")


def test_every_value_is_in_the_id_though_it_is_the_default(monkeypatch):
    asked = parse({"corpus": "bbc"})
    before = asked.id
    assert identify({**asked.stored(), "schema": SCHEMA + 1}) != before
    monkeypatch.setattr(Plan.__init__, "__defaults__", tuple(
        1 if f.name == "steps" else value for f, value in zip(fields(Plan), Plan.__init__.__defaults__, strict=True)))
    assert parse({"corpus": "bbc", "plan": {"rounds": 30}}).plan.steps == 1
    assert parse({"corpus": "bbc", "plan": {"rounds": 30}}).id != before
    sandbox = parse({"corpus": "sandbox"}).stored()
    assert sandbox["corpus"]["sandbox"]["domains"] == 4
    for path in ("overlap", "domains"):
        changed = {**sandbox, "corpus": {**sandbox["corpus"], "sandbox": {**sandbox["corpus"]["sandbox"], path: 3}}}
        assert identify(changed) != identify(sandbox)


def test_the_id_is_made_of_what_is_stored():
    asked = parse({"corpus": "bbc", "algorithm": {"is": "FedProx", "mu": 0.1}, "plan": {"optimizer": {"is": "Sgd", "lr": 1}}})
    stored = json.loads(json.dumps({**asked.stored(), "id": asked.id, "partition_table": {"tokens": [[1]]}}))
    assert identify(stored) == asked.id
    assert parse_stored(stored) == asked
    assert identify({"schema": 1, "corpus": {"name": "a"}, "rounds": 3.0, "id": "x"}) == "1e1ee561e096"
    assert differences(asked.stored(), stored) == []
    other = edit(asked, {"plan__steps": 1, "algorithm": FedAvg()})
    assert differences(other.stored(), stored) == [
        'algorithm.is is "FedProx" in the stored run and "FedAvg" in what is asked',
        "plan.steps is 5 in the stored run and 1 in what is asked",
        "algorithm.mu is 0.1 in the stored run and not there in what is asked",
        'algorithm.form is "loss" in the stored run and not there in what is asked']


@pytest.mark.parametrize("name", ["first", "failures", "smollm2"])
def test_runs_of_committed_studies_keep_the_ids_that_they_had(name):
    with zipfile.ZipFile(RESULTS / f"{name}.zip") as archive:
        members = [member for member in archive.namelist() if member.endswith("/experiment.json")]
        assert members
        for member in members[::max(1, len(members) // 6)]:
            stored = json.loads(archive.read(member))
            assert "schema" not in stored
            assert identify(stored) == stored["id"] == member.split("/")[0]
            assert identify({**stored, "seed": stored["seed"] + 1}) != stored["id"]


BASE = parse({"corpus": "bbc", "partition": {"is": "Dirichlet", "severity": 0.0},
              "plan": {"optimizer": {"is": "Sgd", "lr": 1.0}}})


@pytest.mark.parametrize(("path", "equal"), [
    ("partition__severity", [0, 0.0, -0.0, np.float64(0), np.float32(0), np.int64(0), np.array(0)]),
    ("plan__optimizer__lr", [1, 1.0, np.float32(1), np.int8(1)]),
    ("plan__clip", [2, 2.0, np.float64(2)]),
    ("seed", [3, 3.0, np.int64(3), np.uint8(3)]),
    ("evaluate__panel", [("updates", "language"), ["updates", "language"], np.array(["updates", "language"])]),
    ("corpus__limit", [50, np.int32(50)]),
    ("algorithm", [FedProx(mu=1), FedProx(mu=1.0), FedProx(mu=np.float32(1), server=Sgd(1)), {"is": "FedProx", "mu": 1}]),
    ("tune", [Lora(targets=["q_proj"], alpha=16), Lora(targets=("q_proj",))]),
    ("partition", [Style(styles=["formal", "slang"], everybody=np.bool_(False)), Style(styles=("formal", "slang"))]),
])
def test_equal_values_have_one_id_and_one_form(path, equal):
    made = grid(BASE, **{path: equal})
    head, *rest = path.split("__")
    if len(rest) < 2:
        made += [replace(BASE, **{head: replace(getattr(BASE, head), **{rest[0]: value}) if rest else value}) for value in equal]
    assert len({each.id for each in made}) == 1
    assert len({json.dumps(each.stored()) for each in made}) == 1
    assert parse_stored(json.loads(json.dumps(made[0].stored()))).id == made[0].id


def test_the_grid_of_the_docstring_holds_the_iid_baseline():
    skewed = parse({"corpus": "bbc"})
    iid, one = grid(skewed, partition__severity=[0, 1])
    assert iid.id == twin(skewed).id
    assert one.id == skewed.id


@pytest.mark.parametrize(("changes", "told"), [
    ({"plan__rounds": -5}, "plan.rounds: wanted a whole number from 0 to 1,000,000, got -5"),
    ({"partition__severity": 7.5}, "partition.severity: wanted a number from 0 to 1, got 7.5"),
    ({"partition": TopicMix(severity=-1)}, "partition.severity"),
    ({"algorithm": FedProx(mu=-1)}, "algorithm.mu"),
    ({"plan__participation": 0.01}, "rounds to no client"),
    ({"evaluate__panel": ("langage",)}, "did you mean 'language'"),
    ({"algorithm": Sgd()}, "algorithm: wanted FedAvg, got Sgd"),
    ({"partition": Sgd()}, "partition: wanted Partitioner, got Sgd"),
    ({"plan": Evaluate()}, "plan: wanted Plan, got Evaluate"),
    ({"fork": Fork("abc", 0)}, "fork.round"),
    ({"corpus": Source("bbc", limit=0)}, "corpus.limit"),
])
def test_edited_replaced_and_built_experiments_are_checked_as_files_are(changes, told):
    with pytest.raises(UserError, match=told):
        edit(BASE, changes)
    with pytest.raises(UserError, match=told):
        grid(BASE, **{path: [value] for path, value in changes.items()})
    (path, value), = changes.items()
    head, *rest = path.split("__")
    part = replace(getattr(BASE, head), **{rest[0]: value}) if rest else value
    with pytest.raises(UserError, match=told):
        replace(BASE, **{head: part})
    with pytest.raises(UserError, match=told):
        Experiment(**{"corpus": Source("bbc"), head: part})


def test_changes_are_made_together_and_all_mistakes_are_told():
    few = edit(BASE, {"plan__participation": 0.1, "partition__clients": 2, "plan__rounds": 3, "partition": Dirichlet(clients=20)})
    assert few.partition == Dirichlet(clients=20)
    alone = edit(edit(BASE, {"plan__participation": 0.1}), {"partition__clients": 2, "plan__participation": 1})
    assert (alone.partition.clients, alone.plan.participation) == (2, 1.0)
    with pytest.raises(UserError) as raised:
        edit(BASE, {"plan__rounds": -5, "partition__severity": 7.5})
    assert len(str(raised.value).splitlines()) == 2


OWN = '''
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
    clients, severity = 10, 0.5
    def __call__(self, corpus, rng): ...
'''


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
    stored = first.stored()
    assert stored["algorithm"]["is"] == "own_algorithms.Own"
    assert identify(json.loads(json.dumps(stored))) == first.id != BASE.id
    assert replace(BASE, algorithm=own().Own(gamma=1)).id == replace(BASE, algorithm=own().Own(gamma=1.0)).id != first.id
    assert replace(BASE, algorithm=own().Own()).id == first.id
    edited = replace(BASE, algorithm=own(OWN + "\n# edited\n").Own())
    assert edited.id != first.id
    assert differences(edited.stored(), stored)[0].startswith("algorithm.source is")
    derived = own(OWN.replace("gamma: float = 0.5", "gamma: float = 0.5\n    def penalty(self): return None"))
    assert replace(BASE, algorithm=derived.Own()).id not in (first.id, edited.id)


def test_settings_of_a_users_own_class_that_would_not_be_in_the_id_are_refused(own):
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
