"""Test that models are loaded from folders, and which errors an unreachable hub gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

import fedrift.models.presets
from fedrift.core.errors import UserError
from fedrift.models.load import LanguageModel, load_model, quiet_transformers
from fedrift.models.presets import POCKET_FILES, PRESETS, fingerprint_model, pocket_folder
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora
from tests.models.tiny import KINDS, WINDOW, plain_tokenizer, random_model

TOKENIZER_FOLDERS = {"gpt2": "gpt2", "qwen2": "qwen2", "llama": "llama2-tinyllama"}  # preset: folder of its real tokenizer


def save_model(model: LanguageModel, folder: Path) -> Path:
    with quiet_transformers():
        model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, dtype: str = "float32") -> LanguageModel:
    return load_model(str(folder), cache_dir=folder / "no-cache-needed", dtype=dtype)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_model(random_model("llama"), tmp_path / "llama")


def test_a_tiny_model_depends_on_its_seed_only():
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    one, same, other = (random_model("llama", seed=seed).network.lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.rand(1), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_back_the_same_model(kind, tmp_path):
    model = random_model(kind, seed=3)
    back = load(save_model(model, tmp_path))
    ids = torch.arange(24).view(2, 12)
    assert torch.equal(back.network(ids).logits, model.network(ids).logits)
    assert type(back.network) is type(model.network)
    assert back.context_length == WINDOW
    assert back.tokenizer("w3 w1 w4").input_ids == [3, 1, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_frozen_in_eval_mode_float32_and_sdpa(kind, tmp_path):
    network = load(save_model(random_model(kind, dtype=torch.float16), tmp_path)).network
    assert not network.training
    assert not network.config.use_cache
    assert network.config._attn_implementation == "sdpa"
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_another_dtype_can_be_chosen_and_an_unknown_one_is_refused(llama):
    assert load(llama, "float64").network.dtype == torch.float64
    with pytest.raises(UserError, match="no dtype 'flaot32': did you mean 'float32'"):
        load(llama, "flaot32")


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS)
def test_real_tokenizers_are_saved_and_loaded_with_their_architecture(kind, tmp_path, shared_data):
    folder = shared_data.parent / "tokenizers" / TOKENIZER_FOLDERS[kind]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    back = load(save_model(random_model(kind, tokenizer), tmp_path))
    text = "Der Prozeß — naïve café, 3.14 \U0001f642\n\n  def f(x):\treturn x\n"
    ids = back.tokenizer(text).input_ids
    assert ids == tokenizer(text).input_ids
    assert back.tokenizer.decode(ids, skip_special_tokens=True).strip() == text.strip()
    assert back.tokenizer.eos_token_id == tokenizer.eos_token_id
    assert back.tokenizer.pad_token_id is not None
    rows = max(tokenizer.get_vocab().values()) + 1
    assert back.network(torch.tensor([ids])).logits.shape == (1, len(ids), rows)


def test_a_missing_pad_token_becomes_the_end_token_and_an_existing_one_stays(tmp_path):
    tokenizer = plain_tokenizer(20)
    assert load(save_model(random_model("gpt2", tokenizer), tmp_path / "without")).tokenizer.pad_token == "<end>"
    tokenizer.pad_token = "w7"
    assert load(save_model(random_model("gpt2", tokenizer), tmp_path / "with")).tokenizer.pad_token == "w7"


def test_a_folder_without_a_model_is_refused_with_expected_and_existing_files(tmp_path):
    (tmp_path / "holiday.txt").write_text("sun")
    with pytest.raises(UserError, match=r"(?s)read config.json .*Expected files: .*; the folder contains holiday.txt"):
        load(tmp_path)


@pytest.mark.parametrize(("gone", "told"), [("model.safetensors", "cannot read the weights"), ("config.json", "cannot read config.json")])
def test_a_folder_with_a_missing_file_is_refused_with_its_name(llama, gone, told):
    (llama / gone).unlink()
    with pytest.raises(UserError, match=told):
        load(llama)


def test_a_folder_without_tokenizer_is_refused(llama):
    for path in llama.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load(llama)


def test_truncated_weights_are_refused(llama):
    weights = llama / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(UserError, match="cannot read the weights"):
        load(llama)


def test_weights_with_another_shape_than_in_the_config_are_refused(llama):
    edit(llama / "config.json", intermediate_size=64)
    with pytest.raises(UserError, match="cannot read the weights"):
        load(llama)


def test_weights_of_more_blocks_than_the_config_has_are_refused(llama):
    edit(llama / "config.json", num_hidden_layers=1)
    with pytest.raises(UserError, match=r"hold \d+ tensors of blocks that the model does not have, including model\.layers\.1"):
        load(llama)


def test_weights_that_are_not_finite_are_told(llama):
    leaves = load_file(llama / "model.safetensors")
    next(leaf for name, leaf in leaves.items() if "layers.0" in name).flatten()[0] = torch.nan
    save_file(leaves, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="hidden states that are not finite: its weight files are damaged"):
        StackedModel(load(llama).network, Lora(r=2))


def test_a_format_that_needs_another_package_is_told(llama, monkeypatch):
    def refuse(*args, **options):
        raise ImportError("Loading a GPTQ quantized model requires optimum")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(UserError, match=r"cannot read the weights of the model in .* requires optimum"):
        load(llama)


def test_a_model_without_a_head_is_refused(tmp_path):
    model = random_model("llama")
    save_model(model, tmp_path)
    LlamaModel(model.network.config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"contains LlamaModel, which is not .* use LlamaForCausalLM"):
        load(tmp_path)
    edit(tmp_path / "config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(UserError, match=r"lack 1 of the model's tensors, including lm_head.weight"):
        load(tmp_path)


def test_an_encoder_and_an_encoder_decoder_are_refused(tmp_path):
    bert = BertConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="contains BertForMaskedLM, which is not a causal language model"):
        load(tmp_path / "bert")
    t5 = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match="contains T5ForConditionalGeneration, which is not"):
        load(tmp_path / "t5")


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(llama):
    plain_tokenizer(98).save_pretrained(llama)
    with pytest.raises(UserError, match="ids up to 97, but the embedding of the model has only 97 rows"):
        load(llama)


def test_a_tokenizer_without_an_end_token_is_refused(llama):
    tokenizer = plain_tokenizer(97)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(llama)
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        load(llama)


def test_an_end_token_outside_the_vocabulary_is_refused(tmp_path):
    folder = save_model(random_model("llama", 97), tmp_path)
    edit(folder / "tokenizer_config.json", eos_token="</s>")
    with pytest.raises(UserError, match=r"ids up to 97|end-of-sequence token '</s>'"):  # its id is above the last row of the embedding
        load(folder)
    weights = load(save_model(random_model("llama", 97), tmp_path / "b")).network
    weights.resize_token_embeddings(128)  # additional rows, as many published models have
    weights.save_pretrained(folder)
    with pytest.raises(UserError, match=r"end-of-sequence token '</s>' .* is not in its vocabulary"):
        load(folder)
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"97": {"content": "</s>", "special": True}})
    assert load(folder).tokenizer.eos_token_id == 97


def test_a_model_folder_that_holds_an_adapter_is_refused_before_anything_is_loaded(llama):
    (llama / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "gpt2"}')
    for read in (load, lambda folder: fingerprint_model(str(folder))):
        with pytest.raises(UserError, match=r"contains a PEFT adapter .*merge_and_unload"):
            read(llama)


@pytest.mark.slow
def test_an_unreachable_hub_is_refused_with_alternatives(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom fedrift.core.errors import UserError\n"
        "from fedrift.models.load import load_model\n"
        "for name in 'distilgpt2', 'somebody/some-model':\n"
        "    try:\n        load_model(name, cache_dir=Path(sys.argv[1]))\n"
        "    except UserError as error:\n        print(str(error).replace('\\n', ' '))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    told = done.stdout.splitlines()
    assert len(told) == 2
    for hub, line in zip([PRESETS["distilgpt2"].hub_id, "somebody/some-model"], told, strict=True):
        assert line.startswith(f"model {hub!r} must be downloaded from the model hub, which cannot be reached")
        assert "model: path/to/folder" in line
        assert "model: pocket" in line


POCKET = Path(fedrift.models.presets.__file__).with_name("pocket")


def test_missing_weights_of_pocket_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(fedrift.models.presets, "__file__", str(tmp_path / "pocket.py"))
    with pytest.raises(UserError, match=r"lacks the files config.json, model.safetensors"):
        load_model("pocket", cache_dir=tmp_path)


def test_pocket_is_part_of_the_package_and_has_the_numbers_of_its_preset(tmp_path):
    model = load_model("pocket", cache_dir=tmp_path)
    assert model.network.num_parameters() == PRESETS["pocket"].num_parameters
    assert model.context_length == 512
    assert model.network.dtype == torch.float32
    assert sum((POCKET / part).stat().st_size for part in POCKET_FILES) < 9e6
    assert (POCKET / "model.safetensors").stat().st_size < 8e6
    assert len(model.tokenizer) == model.network.config.vocab_size
    assert pocket_folder() == POCKET
    assert not list(tmp_path.iterdir())
    assert "FILL" not in (POCKET / "README.md").read_text()
