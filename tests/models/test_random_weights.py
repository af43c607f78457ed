"""Test networks with random weights in the shapes of the presets."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fedrift.models.load import make_random_network
from fedrift.models.presets import PRESETS

SMALL = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4},
    **{
        kind: {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
        for kind in ("llama", "qwen2")
    },
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_network_without_weights_has_the_structure_that_transformers_builds(name):
    preset = PRESETS[name]
    small = {**SMALL[preset.architecture["model_type"]], "vocab_size": 97}
    ours = make_random_network(preset, **small)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**preset.architecture, **small})).eval()
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))  # rotary frequencies
    tied = ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    assert tied == preset.architecture.get("tie_word_embeddings", True)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.arange(24).view(2, 12)
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), make_random_network(preset, **small).parameters(), strict=True))
    assert not any(leaf.requires_grad for leaf in ours.parameters())
    assert make_random_network(preset, dtype=torch.bfloat16, **small).dtype == torch.bfloat16
