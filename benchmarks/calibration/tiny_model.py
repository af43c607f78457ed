"""A language model small enough to be raised in seconds: a tiny Llama that knows a closed list of words, and nothing yet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedrift.models.load import quiet_transformers

END_TOKEN = "<end>"


def make_tiny_model(folder: Path, words: Iterable[str], *, width: int = 64, blocks: int = 2, window: int = 64, seed: int = 0) -> Path:
    """A model of random weights with one token a word, as transformers saves one; what it does not know is its last word."""
    known = {END_TOKEN: 0, **{word: number for number, word in enumerate(sorted(set(words)), start=1)}}
    plain = Tokenizer(models.WordLevel({**known, "<new>": len(known)}, unk_token="<new>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token=END_TOKEN, eos_token=END_TOKEN, pad_token=END_TOKEN, unk_token="<new>"
    )
    config = LlamaConfig(
        vocab_size=len(known) + 1,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    network = LlamaForCausalLM(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, leaf in network.named_parameters():  # transformers draws from the global stream: not here
            leaf.copy_(torch.ones_like(leaf) if "norm" in name else torch.randn(leaf.shape, generator=draw) * 0.02**0.5 / 2)
    with quiet_transformers():
        network.save_pretrained(folder)
        tokenizer.save_pretrained(str(folder))
    return folder
