"""Test the public interface: what ``import fedrift`` provides, its calls, callbacks, and extensions outside the package."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import subprocess
import sys
import textwrap

import pandas as pd
import pytest

import fedrift
from fedrift.core import registry
from fedrift.engine.callbacks import RoundEnd
from tests.small_experiment import documents, experiment, make_cache, model_folder

FEW = ("training.num_rounds=2", "evaluation.final_blocks_per_domain=0", "evaluation.probes=[]")


@pytest.fixture
def restore_registry(monkeypatch):
    """Remove registrations after the test."""
    monkeypatch.setattr(registry, "_registered", {kind: dict(restore_registry) for kind, restore_registry in registry._registered.items()})


def write(path, code):
    path.write_text(textwrap.dedent(code))
    return path


def test_importing_fedrift_needs_no_torch():
    code = "import sys, fedrift; fedrift.register; print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_public_name_exists_and_has_a_docstring():
    for name in fedrift.__all__:
        thing = getattr(fedrift, name)
        assert name == "__version__" or (thing.__doc__ or "").strip(), name
    for package in (fedrift.algorithms, fedrift.clustering, fedrift.partition):
        assert set(package.__all__) <= set(fedrift.__all__), "every part that a configuration can name is public"
    assert {"Runtime", "ResourceCache"} <= set(fedrift.__all__), "``fedrift.run`` takes them"
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        fedrift.walk  # noqa: B018


def test_runs_can_be_started_diagnosed_and_compared(tmp_path, caplog):
    config = fedrift.load_config(experiment(tmp_path, *FEW), ["algorithm=scaffold"])
    assert type(config.algorithm) is fedrift.Scaffold
    run = fedrift.run(config, runs_dir=tmp_path / "runs")
    base = fedrift.run(config.iid_baseline(), runs_dir=tmp_path / "runs")
    diagnoses = {each.failure: each.grade for each in fedrift.diagnose(run, baseline=base)}
    assert diagnoses["dead model"] == "none" and len(diagnoses) > 10
    assert {each.failure: each.grade for each in fedrift.diagnose(run)} == diagnoses  # the baseline is found in the same folder
    with pytest.raises(fedrift.UserError, match="is not the IID baseline of these runs"):
        fedrift.diagnose(run, baseline=run)
    table = fedrift.compare(run, base)
    assert isinstance(table, pd.DataFrame) and "loss" in set(table.metric)
    assert set(run.metrics().columns) == {"round", "metric", "domain", "client", "value"}
    assert fedrift.load_run(run.id[:6], tmp_path / "runs").id == run.id
    with caplog.at_level(logging.INFO, logger="fedrift"):
        assert fedrift.run(config, runs_dir=tmp_path / "runs").id == run.id  # a finished run is not run again
    assert "not computed again" in caplog.text


def test_a_dictionary_a_file_and_a_configuration_are_the_same_experiment(tmp_path):
    config = experiment(tmp_path, *FEW)
    file = write(tmp_path / "e.yaml", "")
    from fedrift.config.loader import dump_yaml

    file.write_text(dump_yaml(config.to_dict()))
    assert fedrift.load_config(file).id == fedrift.load_config(config.to_dict()).id == fedrift.load_config(config).id == config.id
    with pytest.raises(fedrift.UserError, match="unknown runtime option 'devise': did you mean 'device'"):
        fedrift.run(config, runs_dir=tmp_path / "runs", devise="cpu")


def test_a_study_of_one_cell_can_be_run(tmp_path):
    config = experiment(tmp_path, *FEW)
    manifest = fedrift.study({"name": "small", "base": config.to_dict(), "metrics": ["loss"]}, runs_dir=tmp_path / "runs")
    roles = [entry["role"] if isinstance(entry, dict) else entry.role for entry in manifest.read()["runs"]]
    assert sorted(roles) == ["iid_baseline", "run"]


class RecordingCallback(fedrift.Callback):
    def __init__(self, stop_at=None):
        self.heard, self.stop_at = [], stop_at

    def on_run_begin(self, event):
        self.heard.append(("begin", event.state.round, event.num_rounds))

    def on_round_end(self, event):
        self.heard.append(("round", event.round, event.value("loss")))
        assert event.run.records()[-1].round == event.round  # the rows are already stored
        return event.round == self.stop_at

    def on_run_end(self, run):
        self.heard.append(("end", run.is_finished))


def test_a_study_is_found_by_its_name(tmp_path):
    with pytest.raises(fedrift.UserError, match="unknown runtime option 'devise'"):  # the study has been read before
        fedrift.study("small", runs_dir=tmp_path / "runs", devise="cpu")


def test_callbacks_are_called_at_start_rounds_and_end_and_can_stop_a_run(tmp_path, caplog):
    listens = RecordingCallback(stop_at=1)
    run = fedrift.run(experiment(tmp_path, *FEW), runs_dir=tmp_path / "runs", callbacks=[listens])
    assert [each[0] for each in listens.heard] == ["begin", "round", "end"] and listens.heard[0] == ("begin", 0, 2)
    assert listens.heard[1][2] == run.trajectory().curve("loss")[-1] and run.read_json("finished")["rounds"] == 1
    (event,) = [each for each in run.events() if each["kind"] == "stopped early"]
    assert event["message"] == "stopped after round 1 of 2 by RecordingCallback"
    with caplog.at_level(logging.INFO, logger="fedrift"):  # callbacks are not part of the id
        assert fedrift.run(experiment(tmp_path, *FEW), runs_dir=tmp_path / "runs").read_json("finished")["rounds"] == 1
    assert "stopped early after round 1 of 2" in caplog.text


def test_early_stopping_waits_for_its_patience_and_counts_what_was_recorded_before(tmp_path):
    Row = fedrift.Record
    stops = fedrift.EarlyStopping(patience=2, min_delta=0.1)
    losses = [5.0, 4.0, 3.95]
    event = type("Event", (), {"records": [Row(k, "loss", "", -1, v) for k, v in enumerate(losses)]})
    stops.on_run_begin(event)
    assert stops.waited == 1 and stops.best == 4.0

    def round_end(*losses: float) -> RoundEnd:
        return RoundEnd(None, None, [Row(4, "loss", "", -1, value) for value in losses], 9)

    assert [stops.on_round_end(round_end(*losses)) for losses in ((), (3.94,))] == [False, True]  # the first one was not evaluated
    highest = fedrift.EarlyStopping(patience=1, mode="max")
    assert [highest.on_round_end(round_end(value)) for value in (1.0, 2.0, 2.0)] == [False, False, True]
    dead = fedrift.EarlyStopping(patience=2)
    assert [dead.on_round_end(round_end(math.nan)) for _ in range(2)] == [False, True]  # a loss of NaN is no improvement


MY_AVG = """
    from dataclasses import dataclass
    from fedrift import FedAvg

    @dataclass(frozen=True)
    class MyAvg(FedAvg):
        '''FedAvg whose server takes only a part of the step.'''

        part: float = 0.5

        def server_update(self, server, update):
            after = super().server_update(server, update)
            from dataclasses import replace
            return replace(after, params=server.params + (after.params - server.params) * self.part)
"""


def test_an_algorithm_from_a_file_by_its_import_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my_avg.py", MY_AVG)
    config = fedrift.load_config(experiment(tmp_path, *FEW), ['algorithm={type: "my_avg.py:MyAvg", part: 0.25}'])
    assert config.algorithm.part == 0.25 and config.to_dict()["algorithm"]["type"] == "my_avg.py:MyAvg"
    run = fedrift.run(config, runs_dir=tmp_path / "runs")
    plain = fedrift.run(experiment(tmp_path, *FEW), runs_dir=tmp_path / "runs")
    assert run.trajectory().curve("loss")[1] != plain.trajectory().curve("loss")[1]
    asked = {key: value for key, value in run.config.items() if key not in ("id", "schema", "partition_table")}
    assert fedrift.load_config(asked).id == run.id
    write(tmp_path / "my_other.py", MY_AVG + "\n    OTHER = 1\n")
    other = fedrift.load_config(experiment(tmp_path, *FEW), ['algorithm={type: "my_other.py:MyAvg", part: 0.25}'])
    assert other.id != config.id and other.to_dict()["algorithm"]["source"] != config.to_dict()["algorithm"]["source"]


def test_an_algorithm_from_a_module_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my_module_of_averages.py", MY_AVG)
    config = fedrift.load_config(experiment(tmp_path, *FEW), ["algorithm=my_module_of_averages:MyAvg"])
    assert type(config.algorithm).__name__ == "MyAvg"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("nowhere:MyAvg", "cannot import nowhere"),
        ("no.py:MyAvg", "there is no such Python file"),
        ("my_avg.py:MyAverage", "did you mean 'MyAvg'"),
        ("my_avg.py:FUNCTION", "is no FedAvg"),
    ],
)
def test_a_wrong_import_path_is_refused(tmp_path, monkeypatch, path, error):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my_avg.py", MY_AVG + "\n    FUNCTION = len\n")
    with pytest.raises(fedrift.UserError, match=error):
        fedrift.load_config({"dataset": "bbc", "algorithm": {"type": path}})


@pytest.mark.parametrize(
    ("key", "name", "kind"),
    [
        ("algorithm", "fedprox", "FedProx"),
        ("algorithm", "SCAFFOLD", "Scaffold"),
        ("trainable", "last_blocks", "LastBlocks"),
        ("trainable", "all", "All"),
        ("partition", "topic_mix", "TopicMix"),
        ("clustering", "text", "TextClustering"),
        ("clustering", "ifca", "IFCA"),
        ("clustering", "none", "NoClustering"),
    ],
)
def test_names_are_found_in_any_case_with_or_without_underscores(key, name, kind):
    assert type(getattr(fedrift.load_config({"dataset": "bbc", key: name}), key)).__name__ == kind


def test_registered_classes_are_found_by_their_unique_names(tmp_path, monkeypatch, restore_registry):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my_avg.py", MY_AVG)
    found = registry.import_object("my_avg.py:MyAvg")
    assert fedrift.register("algorithm", "gentle")(found) is found
    config = fedrift.load_config({"dataset": "bbc", "algorithm": {"type": "gentle", "part": 0.75}})
    assert config.algorithm.part == 0.75 and config.to_dict()["algorithm"]["type"] == "gentle"
    with pytest.raises(fedrift.UserError, match="'gentle' is registered already"):
        fedrift.register("algorithm", "gentle")(fedrift.FedAvg)
    with pytest.raises(fedrift.UserError, match="did you mean 'algorithm'"):
        fedrift.register("algoritm")


def test_an_aggregator_of_ones_own_derives_from_the_base_class(restore_registry):
    from dataclasses import dataclass

    from fedrift.algorithms.aggregators import Mean
    from fedrift.algorithms.aggregators.base import Aggregator

    @fedrift.register("aggregator")
    @dataclass(frozen=True)
    class FirstClient(Aggregator):
        def aggregate(self, server, update):
            return update.delta.take(slice(0, 1))

    config = fedrift.load_config({"dataset": "bbc", "algorithm": {"type": "FedProx", "aggregator": "FirstClient"}})
    assert config.algorithm.aggregator == FirstClient() and not isinstance(config.algorithm.aggregator, Mean)
    with pytest.raises(TypeError, match="aggregate"):
        Aggregator()


def test_entry_points_of_installed_distributions_are_choices(tmp_path, monkeypatch, restore_registry):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "installed_averages.py", MY_AVG)
    monkeypatch.syspath_prepend(str(tmp_path))
    point = importlib.metadata.EntryPoint("FromADistribution", "installed_averages:MyAvg", "fedrift.algorithms")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "fedrift.algorithms" else [])
    registry._load_entry_points.cache_clear()
    try:
        assert type(fedrift.load_config({"dataset": "bbc", "algorithm": "FromADistribution"}).algorithm).__name__ == "MyAvg"
    finally:
        registry._load_entry_points.cache_clear()


def test_users_can_add_a_probe_a_detector_a_dataset_and_a_model(tmp_path, monkeypatch, restore_registry):
    from fedrift.diagnosis.finding import Finding, single_run_grade
    from fedrift.probes import MetricValues, ScheduledProbe  # noqa: F401

    seen = []

    @fedrift.register("probe", "cohort_size")
    def cohort_size(context):
        return [ScheduledProbe("cohort_size", lambda result: {"cohort.size": float(len(result.cohort))})]

    @fedrift.register("detector")
    def too_few(evidence):
        seen.append(evidence)
        return [Finding("too few clients", single_run_grade(True), "there are few clients", 1.0, 0.0, 0.0, "clients", is_positive=True)]

    @fedrift.register("dataset", "mine")
    def mine():
        return [{"text": text, "label": topic} for text, topic in documents()]

    @fedrift.register("model", "tiny")
    def tiny():
        return model_folder(tmp_path / "tiny") if not (tmp_path / "tiny").exists() else tmp_path / "tiny"

    config = fedrift.load_config(experiment(tmp_path, *FEW), ["dataset=mine", "model=tiny", "evaluation.probes=[cohort_size]"])
    run = fedrift.run(config, runs_dir=tmp_path / "runs")
    assert run.trajectory().curve("cohort.size")[1:].tolist() == [2, 2]
    assert "too few clients" in [each.failure for each in fedrift.diagnose(run)] and seen
    with pytest.raises(fedrift.UserError, match="did you mean 'cohort_size'"):
        fedrift.load_config(config, ["evaluation.probes=[cohort_sise]"])


@pytest.mark.parametrize(("training", "count"), [({"num_clients_per_round": 2}, 2), ({"participation_rate": 0.5}, 2), ({}, 4)])
def test_clients_per_round_can_be_a_number_or_a_rate(training, count):
    config = fedrift.load_config({"dataset": "bbc", "partition": {"num_clients": 4}, "training": training})
    assert config.training.cohort_size(4) == count


@pytest.mark.parametrize(
    ("training", "error"),
    [({"num_clients_per_round": 5}, "allowed: 1 to 4"), ({"num_clients_per_round": 2, "participation_rate": 0.5}, "give one of the two")],
)
def test_invalid_clients_per_round_are_refused(training, error):
    with pytest.raises(fedrift.UserError, match=error):
        fedrift.load_config({"dataset": "bbc", "partition": {"num_clients": 4}, "training": training})


def test_python_m_fedrift_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "fedrift", "--version"], capture_output=True, text=True, check=True)
    assert fedrift.__version__ in done.stdout


def test_resources_are_shared_between_runs(tmp_path):
    shared = make_cache(tmp_path)
    one = fedrift.run(experiment(tmp_path, *FEW), runs_dir=tmp_path / "one", resources=shared)
    again = fedrift.run(experiment(tmp_path, *FEW), runs_dir=tmp_path / "two", resources=shared)
    assert one.records() == again.records() or [*one.records()] == [*again.records()]
