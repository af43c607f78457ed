"""Test how model names are resolved, and the numbers and fingerprints of presets and folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fedrift.core.errors import UserError
from fedrift.models.presets import PRESETS, fingerprint_model, is_available, resolve_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of a model."""
    made = tmp_path / "model"
    made.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
        (made / name).write_text(f"{name} of the first day")
    return made


def test_the_presets_are_listed_without_torch_or_transformers():
    code = (
        "import sys, fedrift.models.presets as presets; presets.fingerprint_model('pocket');"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_preset_is_named_by_its_key_and_only_the_packaged_one_has_no_hub_id():
    assert all(name == preset.name for name, preset in PRESETS.items())
    assert [preset.name for preset in PRESETS.values() if not preset.hub_id] == ["pocket"]
    assert {preset.origin for preset in PRESETS.values()} == {"package", "pip", "hub"}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_an_architecture_has_the_number_of_parameters_of_its_preset(preset):
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**preset.architecture))
    assert network.num_parameters() == preset.num_parameters


def test_training_memory_consists_of_weights_activations_and_logits():
    preset = PRESETS["smollm2-135m"]
    kept = 512 * 30 * (14 * 576 + 5 * 1536)
    assert preset.training_memory() == 4 * (preset.num_parameters + kept) + (32 << 20)
    assert preset.training_memory(tokens=0, weight_bytes=2) == 2 * preset.num_parameters + (32 << 20)
    gpt2 = PRESETS["distilgpt2"]
    assert gpt2.training_memory(tokens=1) - gpt2.training_memory(tokens=0) == 4 * 6 * (14 * 768 + 5 * 4 * 768)


def test_local_models_are_listed_without_loading(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    here = {name: is_available(preset, tmp_path) for name, preset in PRESETS.items()}
    assert here == {name: name == "pocket" for name in PRESETS}
    (tmp_path / "models" / "smollm2-135m").mkdir(parents=True)
    assert is_available(PRESETS["smollm2-135m"], tmp_path)


def test_a_name_is_resolved_as_preset_folder_or_hub_id(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert resolve_model("distilgpt2") is PRESETS["distilgpt2"]
    assert resolve_model("model") == Path("model")
    assert resolve_model(str(folder)) == folder
    assert resolve_model("somebody/some-model") == "somebody/some-model"


def test_a_preset_has_priority_over_a_folder_unless_a_path_is_given(tmp_path, monkeypatch):
    (tmp_path / "pocket").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("pocket") is PRESETS["pocket"]
    assert resolve_model("./pocket") == Path("pocket")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pockt", "did you mean 'pocket'"),
        ("qwen-0.5B", "did you mean 'qwen-0.5b'"),
        ("", "no model ''"),
        ("./nowhere", "no folder './nowhere'"),
        ("/no/such/place", "no folder"),
        ("owner/", "no model"),
        ("a/b/c", "no folder"),
    ],
)
def test_an_unknown_name_is_refused_with_the_existing_ones(name, message):
    with pytest.raises(UserError, match=message):
        resolve_model(name)


def test_a_file_instead_of_a_folder_is_refused(folder):
    with pytest.raises(UserError, match="is a file: give the folder"):
        resolve_model(str(folder / "model.safetensors"))


def test_presets_and_hub_ids_have_no_fingerprint():
    assert fingerprint_model("pocket") == fingerprint_model("smollm2-135m") == fingerprint_model("somebody/some-model") == ""


@pytest.mark.parametrize(
    "changed", ["config.json", "tokenizer.json", "model.safetensors", "merges.txt", "tiktoken.model", "tekken.json", "spm.model"]
)
def test_a_folder_whose_files_changed_has_another_fingerprint(folder, changed):
    before = fingerprint_model(str(folder))
    assert len(before) == 64
    assert before == fingerprint_model(str(folder))
    (folder / changed).write_text("of the second day")
    assert fingerprint_model(str(folder)) != before


def test_the_fingerprint_does_not_depend_on_path_and_readme(folder):
    before = fingerprint_model(str(folder))
    (folder / "README.md").write_text("other words")
    assert fingerprint_model(str(folder.rename(folder.with_name("moved")))) == before


def test_other_shard_boundaries_change_the_fingerprint(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"p": "a.safetensors", "q": "b.safetensors"}}')
    for name, text in (("a.safetensors", "xy"), ("b.safetensors", "z")):
        (folder / name).write_text(text)
    before = fingerprint_model(str(folder))
    (folder / "a.safetensors").write_text("x")
    (folder / "b.safetensors").write_text("yz")
    assert fingerprint_model(str(folder)) != before
    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"lists 2 files, but 'b.safetensors' is not in the folder"):
        fingerprint_model(str(folder))


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "shard-1.bin", "own.safetensors"])
def test_the_fingerprint_depends_on_the_loaded_weights_only(folder, weights):
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")  # transformers does not load a file of this name
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"p": "shard-1.bin"}}')
    if weights == "own.safetensors":
        (folder / "config.json").write_text('{"transformers_weights": "own.safetensors"}')
    (folder / weights).write_text("of the first day")
    before = fingerprint_model(str(folder))
    (folder / weights).write_text("of the second day")
    after = fingerprint_model(str(folder))
    assert after != before
    (folder / "consolidated.safetensors").write_text("of the second day")
    assert fingerprint_model(str(folder)) == after


def test_a_folder_without_weights_has_no_fingerprint(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights .*it contains README.md, config.json, tokenizer.json"):
        fingerprint_model(str(folder))
