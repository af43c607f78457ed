"""Small random networks of the three architectures that the presets use."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

KINDS = ("llama", "gpt2", "qwen2", "untied")


def network(kind: str, dtype: torch.dtype = torch.float64, vocabulary: int = 61) -> nn.Module:
    torch.manual_seed(7)
    common = dict(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=16,
                n_layer=3,
                n_head=4,
                n_positions=64,
                bos_token_id=0,
                eos_token_id=0,
                resid_pdrop=0.1,
                embd_pdrop=0.1,
                attn_pdrop=0.1,
            )
        )
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common, tie_word_embeddings=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**common, tie_word_embeddings=kind == "llama"))
    with torch.no_grad():  # away from the symmetric initial values, at which biases are 0 and norms 1
        for leaf in model.parameters():
            leaf.add_(torch.randn_like(leaf) * 0.05)
    for module in model.modules():
        if dtype == torch.float64 and type(module).__name__.endswith("RMSNorm"):
            vars(module)["forward"] = MethodType(norm_in_input_precision, module)
    return model.to(dtype).eval()


def norm_in_input_precision(self: Any, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm in the precision of its input; transformers computes it in float32 for every input."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * self.weight


def batch(clients: int, sequences: int = 3, length: int = 10, vocabulary: int = 61, seed: int = 0) -> dict:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, vocabulary, (clients, sequences, length), generator=draw)
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[0, -1, length // 2 :] = False  # one padded sequence
    tokens[0, -1, length // 2 :] = 1
    return {"tokens": tokens, "loss_mask": keep}
