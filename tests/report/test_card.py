"""Test the exported models and their model cards."""

from __future__ import annotations

import json

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedrift.core.errors import UserError
from fedrift.engine.run import run_experiment
from fedrift.report.model_card import export_models
from fedrift.storage import Run
from tests.small_experiment import experiment, make_cache


@pytest.fixture(scope="module")
def runs_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cards")


@pytest.fixture(scope="module")
def personal(runs_cache):
    return run_experiment(experiment(runs_cache, "algorithm.type=Ditto", "training.num_rounds=2"), make_cache(runs_cache))


def test_global_and_personalized_models_are_exported_and_differ(personal, runs_cache, tmp_path):
    folders = export_models(personal, tmp_path / "out", "someone/model", "apache-2.0")
    names = [folder.relative_to(tmp_path / "out").as_posix() for folder in folders]
    assert names == [".", "clients/0", "clients/1", "clients/2"]

    def peft_parameters(folder):
        base = AutoModelForCausalLM.from_pretrained(personal.config["model"])
        return {name: leaf for name, leaf in PeftModel.from_pretrained(base, folder).state_dict().items() if "lora_B" in name}

    shared, own = peft_parameters(folders[0]), peft_parameters(folders[1])
    assert any((shared[name] != own[name]).any() for name in shared)


def test_the_card_states_the_experiment_and_its_results(personal, tmp_path):
    folder = export_models(personal, tmp_path / "out", "someone/model", "apache-2.0")[1]
    card = ModelCard.load(folder / "README.md")
    head = card.data.to_dict()
    assert (head["base_model"], head["license"], head["library_name"]) == ("someone/model", "apache-2.0", "peft")
    assert "client 0" in card.text and "Ditto" in card.text and personal.id in card.text
    loss = personal.trajectory().curve("loss")
    assert f"{loss[0]:.3f} before training, {loss[-1]:.3f} after training" in card.text
    said = yaml.safe_load(card.text.split("```yaml")[1].split("```")[0])
    assert said["training"]["num_rounds"] == 2 and "partition_table" not in said


def test_every_cluster_has_its_model(runs_cache, tmp_path):
    run = run_experiment(experiment(runs_cache, "clustering.type=OracleClustering", "training.num_rounds=1"), make_cache(runs_cache))
    folders = export_models(run, tmp_path / "out")
    assert [folder.name for folder in folders] == ["0", "1", "2"]
    assert "cluster 1" in (folders[1] / "README.md").read_text()


def test_a_model_changed_after_its_run_is_not_exported(personal, tmp_path):
    path = next((personal.folder / "model").rglob("*.safetensors"))
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(UserError, match="has changed since the run finished"):
        export_models(personal, tmp_path / "out")
    path.write_bytes(sound)
    assert export_models(personal, tmp_path / "out")


def test_existing_files_are_kept_and_an_unfinished_run_is_refused(personal, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        export_models(personal, tmp_path / "out")
    begun = Run(tmp_path, "0" * 12)
    begun.folder.mkdir()
    (begun.folder / "experiment.json").write_text(json.dumps(personal.config))
    with pytest.raises(UserError, match="no models yet"):
        export_models(begun, tmp_path / "else")
