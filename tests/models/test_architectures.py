"""Test that networks of other architectures than the presets train as in transformers, or are refused in one line."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BertGenerationConfig, XLMConfig

from fedrift.core.errors import UserError
from fedrift.engine.build import build_run
from fedrift.models.export import check_peft_compatible, save_network
from fedrift.models.head import LogitTransform, PerClientHeadLoss, frozen_head_losses
from fedrift.models.load import load_model
from fedrift.models.prefix_cache import count_frozen_blocks
from fedrift.models.stacked_model import StackedModel, generate_tokens, read_logits
from fedrift.models.trainable import All, LastBlocks, Lora, find_blocks
from tests.models.networks import network
from tests.small_experiment import experiment, make_cache

ALL = Lora(r=2, target_modules=("all",))
PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


@pytest.fixture
def architectures(monkeypatch):
    """The script that makes the table of docs/models.md."""
    monkeypatch.syspath_prepend(str(PAGE.parents[1] / "benchmarks"))
    import architectures

    return architectures


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.125, None), (1.0, 3.0), (-1.7, 2.0)])
def test_the_head_and_its_gradients_equal_the_plain_formula(scale, cap, bias):
    draw = torch.Generator().manual_seed(0)
    hidden, weight, offset = (
        torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in ((2, 7, 5), (2, 11, 5), (2, 11))
    )
    target, slope = torch.randint(11, (2, 7), generator=draw), torch.randn(2, 7, generator=draw, dtype=torch.float64)
    logits = scale * (hidden @ weight.mT + (offset.unsqueeze(1) if bias else 0))
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(2, 7)
    wanted = torch.autograd.grad((plain * slope).sum(), [hidden, weight, *([offset] if bias else [])])

    to_logits = LogitTransform(scale, cap)
    own = PerClientHeadLoss.apply(hidden, weight, target, offset if bias else None, to_logits)
    assert torch.allclose(own, plain, atol=1e-10, rtol=0)
    with torch.no_grad():
        again = PerClientHeadLoss.apply(hidden, weight, target, offset if bias else None, to_logits)
    assert torch.allclose(again, plain, atol=1e-10, rtol=0)
    found = torch.autograd.grad((own * slope).sum(), [hidden, weight, *([offset] if bias else [])])
    assert all(torch.allclose(one, other, atol=1e-10, rtol=0) for one, other in zip(found, wanted, strict=True))
    for client in range(2):  # one frozen head for all clients
        frozen = frozen_head_losses(
            hidden[client], weight[client].detach(), target[client], offset[client].detach() if bias else None, to_logits
        )
        assert torch.allclose(frozen, plain[client], atol=1e-10, rtol=0)
        (to_hidden,) = torch.autograd.grad((frozen * slope[client]).sum(), [hidden])
        assert torch.allclose(to_hidden[client], wanted[0][client], atol=1e-10, rtol=0)


class NetworkWithChangedLogits(nn.Module):
    """A network that changes the logits after its head, or the states before it."""

    def __init__(self, plain: nn.Module, logits=lambda z: z, states=lambda h: h) -> None:
        super().__init__()
        self.plain, self.logits, self.states = plain, logits, states
        self.config, self.base_model = plain.config, plain.base_model

    def get_output_embeddings(self):
        return self.plain.get_output_embeddings()

    def forward(self, **named):
        states = self.base_model(**named).last_hidden_state
        return type("Out", (), {"logits": self.logits(self.get_output_embeddings()(self.states(states)))})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, (1.0, None)),
        ({"logits": lambda z: z * 0.3}, (0.3, None)),
        ({"states": lambda h: h / 16}, (1 / 16, None)),
        ({"logits": lambda z: 30 * torch.tanh(z / 30)}, (1.0, 30.0)),
        ({"logits": lambda z: 30 * torch.tanh(0.5 * z / 30)}, (0.5, 30.0)),
    ],
)
def test_factor_and_soft_cap_of_logits_are_detected(change, found, dtype):
    plain = network("untied").to(dtype)
    plain.config.update({"final_logit_softcapping": 30.0, "logits_scaling": 0.3, "attn_logit_softcapping": 50.0})
    seen = read_logits(NetworkWithChangedLogits(plain, **change))
    # tolerance of a factor that the configuration does not contain
    exact = 1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 1e-2
    assert seen.scale == pytest.approx(found[0], rel=exact if found[0] in (0.5, 1 / 16) else 1e-12)
    assert seen.cap == found[1]


@pytest.mark.parametrize(
    "change",
    [
        {"logits": lambda z: z + 0.01 * torch.linspace(-1, 1, 61)},
        {"logits": lambda z: z + z.square() * 1e-3},
        {"states": lambda h: h * torch.linspace(0.99, 1.01, 16)},
        {"states": torch.tanh},
        {"logits": lambda z: z[..., :-1]},
        {"logits": lambda z: 100 * torch.tanh(z / 100)},
    ],
    ids=["bias", "square", "scales", "squashed", "cut", "cap without configuration"],
)
def test_logits_with_unknown_changes_are_refused(change):
    with pytest.raises(UserError, match="in a way that fedrift does not support"):
        read_logits(NetworkWithChangedLogits(network("untied", torch.float32), **change))


@pytest.mark.parametrize(
    "config",
    [
        BertGenerationConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16),
        XLMConfig(vocab_size=50, emb_dim=16, n_layers=2, n_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_sees_later_tokens_is_refused(config):
    with pytest.raises(UserError, match="lets a token see the tokens after it"):
        read_logits(AutoModelForCausalLM.from_config(config).eval())


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "kind", ["llama", "phi", "gptj", "gemma2", "cohere", "granite", "gpt_neo", "bloom", "falcon", "opt", "mamba", "olmoe", "bart"]
)
def test_loss_and_gradient_equal_those_of_plain_transformers(kind, architectures):
    row = architectures.make_row(kind)
    assert row.pop("kind") == kind
    if kind == "mamba":
        assert row.pop("lora_all").startswith("refused: MambaForCausalLM: PEFT")
    assert set(row.values()) == {"yes"}


def test_adapters_that_peft_would_not_load_are_refused_before_training(architectures):
    for kind, tune, told in (
        ("deepseek_v3", ALL, r"would not load \d+ of the \d+ .* remove down_proj, gate_proj, up_proj from trainable.target_modules$"),
        ("mamba2", ALL, r"PEFT .* refuses these adapters, .*out_proj"),
        ("mamba2", Lora(r=2), ""),
    ):
        model = StackedModel(architectures.make_network(kind), tune)
        if not told:
            check_peft_compatible(model, tune)
            continue
        with pytest.raises(UserError, match=told):
            check_peft_compatible(model, tune)


def test_a_linear_map_without_forward_pass_gets_no_adapter_and_is_refused_by_name(architectures):
    model = StackedModel(architectures.make_network("mamba"), ALL)
    assert not any("dt_proj" in path for path in model.modules)
    assert "does not call the forward pass of dt_proj" in model.warnings[-1]
    with pytest.raises(UserError, match=r"adapter would have no effect: remove dt_proj from trainable.target_modules$"):
        StackedModel(architectures.make_network("mamba"), Lora(r=2, target_modules=("dt_proj", "in_proj")))


def test_experts_without_an_adapter_have_a_warning(architectures):
    warnings = StackedModel(architectures.make_network("mixtral"), ALL).warnings
    assert any(re.search(r"MixtralExperts \(\d+\.\d % of the model's weights\) gets no adapter", line) for line in warnings)
    assert StackedModel(architectures.make_network("mixtral"), Lora(r=2)).warnings == []
    assert StackedModel(network("llama"), ALL).warnings == []


def test_a_quantized_folder_trains_adapters_only(architectures):
    quantised = network("llama")
    quantised.config.quantization_config = {"quant_method": "bitsandbytes"}
    for tune in (LastBlocks(1), All()):
        with pytest.raises(UserError, match=r"are quantized .*use trainable: {type: Lora}"):
            StackedModel(quantised, tune)


def test_other_errors_of_a_network_are_refused_in_one_line():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("two\nlines")

    plain = network("llama")
    plain.model.layers[1].mlp = Broken()
    with pytest.raises(UserError) as told:
        StackedModel(plain, Lora(r=2))
    assert "does not work with trainable: {type: Lora} (ValueError: two)" in str(told.value)
    assert "\n" not in str(told.value)


def test_blocks_are_the_outermost_list_of_the_configured_length():
    plain = network("llama")
    plain.model.extra = nn.ModuleList(nn.Identity() for _ in range(9))
    plain.model.layers[0].experts = nn.ModuleList(nn.Identity() for _ in range(8))
    assert find_blocks(plain)[0] == "model.layers"
    assert count_frozen_blocks(plain, LastBlocks(1).select_modules(plain)) == 2


def test_a_tied_head_with_a_bias_trains_the_bias_and_generates_with_it(architectures):
    config = architectures.small_config("phi")
    config.tie_word_embeddings = True
    plain = AutoModelForCausalLM.from_config(config).eval()
    nn.init.normal_(plain.lm_head.bias)
    plain.generation_config.eos_token_id = None
    kept = copy.deepcopy(plain)
    assert architectures.compare(plain, All())[0] < 1e-5
    model = StackedModel(copy.deepcopy(kept), All())
    assert {"lm_head.bias", "model.embed_tokens.weight"} <= model.init_params().keys()
    assert "lm_head.weight" not in model.init_params()
    prompt = torch.arange(3, 9)[None]
    expected = kept.generate(prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)[:, 6:]
    assert torch.equal(generate_tokens(model, model.init_params(), prompt, 4), expected)


@pytest.mark.parametrize(
    ("kind", "tune"),
    [("phi", All()), ("gpt_neox", All()), ("mixtral", All()), ("mamba", LastBlocks(1)), ("opt", All()), ("gemma2", LastBlocks(2))],
    ids=str,
)
def test_the_saved_model_equals_the_trained_one(kind, tune, architectures, tmp_path):
    config = architectures.small_config(kind)
    config.tie_word_embeddings = kind in ("phi", "gpt_neox", "opt")
    plain = AutoModelForCausalLM.from_config(config).eval()
    model = StackedModel(copy.deepcopy(plain), tune)
    draw = torch.Generator().manual_seed(0)
    params = model.init_params().map(lambda leaf: leaf[0] + 0.1 * torch.randn(leaf[0].shape, generator=draw))
    save_network(tmp_path, params, model)
    back = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.arange(3, 15).view(2, 6)
    expected = torch.func.functional_call(plain, dict(params), (), {"input_ids": tokens}).logits
    assert torch.allclose(back(input_ids=tokens).logits, expected, atol=1e-5)


def test_a_run_refuses_adapters_that_peft_cannot_load_and_reports_maps_without_one(architectures, tmp_path):
    asked = experiment(tmp_path, "trainable.target_modules=[all]", "trainable.r=2")
    tokenizer = load_model(asked.model, cache_dir=tmp_path).tokenizer
    for kind in ("deepseek_v3", "mixtral"):
        config = architectures.small_config(kind)
        config.vocab_size = len(tokenizer)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
    there = make_cache(tmp_path)
    with pytest.raises(UserError, match=r"DeepseekV3ForCausalLM: PEFT .* would not load"):
        build_run(replace(asked, model=str(tmp_path / "deepseek_v3")), there)
    assert any("MixtralExperts" in line for line in build_run(replace(asked, model=str(tmp_path / "mixtral")), there).warnings)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("gemma3", "last", "yes"),  # the blocks of the text model, not of the image encoder
        ("reformer", "last", "refused: the loss of ReformerModelWithLMHead does not depend on the weights"),
        ("recurrent_gemma", "last", "refused: RecurrentGemmaForCausalLM does not work with trainable: {type: LastBlocks}"),
    ],
)
def test_parameters_without_gradient_are_refused_before_training(kind, name, expected, architectures):
    assert architectures.judge_architecture(kind, name).startswith(expected)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama4_text", "lora"),  # transformers' base_model is the whole network, with the head
        ("llama4_text", "lora_all"),  # the router is derived from Linear and returns two tensors
        ("mllama", "full"),
        ("phimoe", "lora_all"),
    ],
)
def test_modules_that_are_not_what_their_class_says_are_trained_like_plain_transformers(kind, name, architectures):
    assert architectures.judge_architecture(kind, name) == "yes"
