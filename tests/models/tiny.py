"""Tiny language models with random weights, of the architectures that the presets have."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fedrift.models.load import LanguageModel

KINDS = ("llama", "gpt2", "qwen2")
WINDOW = 64


def random_model(
    kind: str, tokenizer: PreTrainedTokenizerBase | int = 97, seed: int = 0, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """Return a model with two blocks, width 32 and four heads. ``tokenizer`` is a tokenizer, or the number of words of a plain one.

    The model is frozen, in eval mode and without cache, as `fedrift.models.load.load_model` returns it. The weights depend on the seed
    only, and later draws do not depend on them.
    """
    tokenizer = plain_tokenizer(tokenizer) if isinstance(tokenizer, int) else tokenizer
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    rows = max(tokenizer.get_vocab().values()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(kind, rows, ends)
    network.config.use_cache = False
    return LanguageModel(f"tiny-{kind}", network.to(dtype).requires_grad_(False).eval(), tokenizer, WINDOW)


def build(kind: str, rows: int, ends: dict[str, int | None]) -> PreTrainedModel:
    shape = dict(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        initializer_range=0.1,
        **ends,
    )
    match kind:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
        case "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(vocab_size=rows, n_embd=32, n_layer=2, n_head=4, n_positions=WINDOW, initializer_range=0.1, **ends)
            )
    raise ValueError(f"no kind {kind!r} of tiny model; there are {', '.join(KINDS)}")


def plain_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the words w1, w2, ... and an end token, 0."""
    vocabulary = {"<end>": 0, **{f"w{index}": index for index in range(1, words)}}
    by_word = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    by_word.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=by_word, bos_token="<end>", eos_token="<end>", unk_token="w1")
