"""Test the expensive probes in whole runs: they record their metrics, survive a kill, and change nothing."""

from __future__ import annotations

import json

import pytest
from pandas.testing import assert_frame_equal

from fedrift.engine.run import run_experiment
from fedrift.storage.checkpoint import Checkpoint
from tests import small_experiment

DEEP = "[hidden, attention, barriers, adapters, general, syntax]"
ALL = (f"evaluation.probes={DEEP}", "evaluation.expensive_interval=2", "evaluation.minimal_pairs=5")
NAMES = ("hidden.", "attention.", "barrier.", "adapters.angle", "adapters.rank", "adapters.error.loss", "general.", "syntax.")


@pytest.fixture
def experiment_folder(tmp_path, monkeypatch):
    """A small experiment with a second corpus for the general text; it has few minimal pairs because its tokens are single letters."""
    small_experiment.experiment(tmp_path)
    other = tmp_path / "data" / "dbpedia"
    other.mkdir(parents=True)
    with (other / "train.csv").open("w") as file:
        file.write(
            "text,label,source\n"
            + "".join(f"an article of number {number} about the late match and the new chip,x,y\n" for number in range(40))
        )
    monkeypatch.setenv("FEDRIFT_DATA", str(tmp_path / "data"))
    return tmp_path


def frame(run):
    return run.trajectory().to_frame().sort_values(["round", "metric", "domain", "client"]).reset_index(drop=True)


def select_expensive_metrics(table):
    return table.metric.str.startswith(NAMES)


def test_all_groups_evaluate_when_due_and_change_nothing(experiment_folder):
    plain = frame(run_experiment(small_experiment.experiment(experiment_folder), small_experiment.make_cache(experiment_folder)))
    run = run_experiment(small_experiment.experiment(experiment_folder, *ALL), small_experiment.make_cache(experiment_folder))
    seen = frame(run)
    shared = ~select_expensive_metrics(seen) & seen.metric.isin(plain.metric)
    assert_frame_equal(seen[shared].reset_index(drop=True), plain[plain.metric.isin(seen.metric)].reset_index(drop=True))
    new = seen[select_expensive_metrics(seen)]
    assert set(new["round"]) == {0, 2, 4}
    start = new[new["round"] == 0].set_index(["metric", "domain"]).value
    for name in ("hidden.cka.pretrained", "hidden.cosine.pretrained", "hidden.rank.ratio"):
        assert start[name, ""] == pytest.approx(1)
    assert start["attention.shift", ""] == 0 and start["general.loss", ""] > 0
    end = new[new["round"] == 4]
    assert end.value.notna().all()
    assert set(end[end.client >= 0].metric) == {"hidden.cka.server", "hidden.cosine.server", "barrier.server"}
    assert {
        "hidden.cka.clients",
        "hidden.cosine.clients",
        "adapters.error.loss",
        "hidden.anisotropy",
        "attention.entropy",
        "barrier.clients",
        "adapters.rank",
        "adapters.angle",
        "adapters.rank.stable",
        "general.bits",
        "syntax.accuracy",
        "syntax.margin",
    } <= set(end.metric)
    assert "layer 01 head 03" in set(end[end.metric == "attention.shift"].domain)
    assert len(end[end.metric == "syntax.accuracy"]) >= 9


def test_a_killed_and_resumed_run_has_the_same_values(experiment_folder, monkeypatch):
    experiment = small_experiment.experiment(experiment_folder, *ALL)
    whole = frame(run_experiment(experiment, small_experiment.make_cache(experiment_folder)))
    (experiment_folder / "runs").rename(experiment_folder / "unbroken")
    stored, save = [], Checkpoint.save

    def dying(checkpoint, state):
        stored.append(state.round)
        if state.round == 3:
            raise KeyboardInterrupt
        save(checkpoint, state)

    monkeypatch.setattr(Checkpoint, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, small_experiment.make_cache(experiment_folder))
    monkeypatch.setattr(Checkpoint, "save", save)
    assert_frame_equal(whole, frame(run_experiment(experiment, small_experiment.make_cache(experiment_folder))))
    assert stored == [0, 1, 2, 3]


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "other",
    [
        "algorithm={type: FedAvg, aggregator: FedEx}",
        "trainable={type: LastBlocks, num_blocks: 1}",
        "trainable=All",
        "algorithm=LocalOnly",
        "algorithm=Ditto",
    ],
    ids=lambda text: text.partition(":")[2].strip(" }") or text,
)
def test_every_kind_of_model_can_be_inspected(experiment_folder, other):
    table = frame(
        run_experiment(
            small_experiment.experiment(experiment_folder, *ALL, "training.num_rounds=2", other),
            small_experiment.make_cache(experiment_folder),
        )
    )
    end = table[select_expensive_metrics(table) & (table["round"] == 2)]
    assert end.value.notna().all()
    assert ("adapters.rank" in set(end.metric)) == ("trainable" not in other)


def test_gpt2_can_be_inspected(experiment_folder):
    table = frame(
        run_experiment(
            small_experiment.experiment(experiment_folder, *ALL, "training.num_rounds=2", kind="gpt2"),
            small_experiment.make_cache(experiment_folder),
        )
    )
    assert {"attention.shift", "hidden.rank"} <= set(table.metric) and table[select_expensive_metrics(table)].value.notna().all()


def test_a_run_without_general_text_has_a_warning(experiment_folder, monkeypatch):
    monkeypatch.delenv("FEDRIFT_DATA")
    run = run_experiment(
        small_experiment.experiment(experiment_folder, "evaluation.probes=[general]", "training.num_rounds=1"),
        small_experiment.make_cache(experiment_folder),
    )
    assert "general.loss" not in set(frame(run).metric)
    said = [event for event in run.events() if "general text" in json.dumps(event)]
    assert len(said) == 1 and "evaluation.general_dataset" in json.dumps(said[0])


@pytest.mark.slow
def test_the_synthetic_corpus_has_its_own_minimal_pairs(experiment_folder):
    run = run_experiment(
        small_experiment.experiment(
            experiment_folder,
            "evaluation.probes=[syntax]",
            "training.num_rounds=1",
            "dataset=synthetic",
            "dataset.synthetic.num_documents=60",
        ),
        small_experiment.make_cache(experiment_folder),
    )
    table = frame(run)
    assert "agreement in a relative clause" in set(table[table.metric == "syntax.accuracy"].domain)
