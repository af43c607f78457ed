"""Create a tiny Llama with random weights and a fixed vocabulary, which can be pretrained in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedrift.models.load import quiet_transformers

END_TOKEN = "<end>"


def make_tiny_model(folder: Path, words: Iterable[str], *, width: int = 64, blocks: int = 2, window: int = 64, seed: int = 0) -> Path:
    """Write a model with random weights and one token per word, in the format of transformers.

    Args:
        folder: The folder to write.
        words: The vocabulary; other words become the last token, ``<new>``.
        width: The hidden size.
        blocks: The number of transformer blocks.
        window: The maximum number of tokens.
        seed: The seed of the weights.

    Returns:
        The folder.
    """
    vocabulary = {END_TOKEN: 0, **{word: index for index, word in enumerate(sorted(set(words)), start=1)}}
    word_tokenizer = Tokenizer(models.WordLevel({**vocabulary, "<new>": len(vocabulary)}, unk_token="<new>"))
    word_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer, bos_token=END_TOKEN, eos_token=END_TOKEN, pad_token=END_TOKEN, unk_token="<new>"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary) + 1,
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
        for (
            name,
            leaf,
        ) in network.named_parameters():  # transformers initializes from the global random generator; use the given seed instead
            leaf.copy_(torch.ones_like(leaf) if "norm" in name else torch.randn(leaf.shape, generator=draw) * 0.02**0.5 / 2)
    with quiet_transformers():
        network.save_pretrained(folder)
        tokenizer.save_pretrained(str(folder))
    return folder
