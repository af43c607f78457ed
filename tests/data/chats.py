"""A small tokenizer with chat templates, and the same conversations in each format."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|end|>", "<s>", "<|im_start|>", "<|im_end|>"]
HEADER = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
FOOTER = "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML = HEADER + "{{ message['content'] + '<|im_end|>' }}" + FOOTER
MARKED = (
    HEADER + "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}" + FOOTER
)
CHATS = [
    [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}],
    [
        {"role": "system", "content": "the end"},
        {"role": "user", "content": "cat?"},
        {"role": "assistant", "content": "mat"},
        {"role": "user", "content": "on the?"},
        {"role": "assistant", "content": "the cat sat"},
    ],
]
PAIRS = [{"prompt": "the cat", "completion": " sat on the mat"}, {"prompt": "on the ", "completion": "mat, the end"}]
ALPACA = [{"instruction": "the cat", "input": "", "output": "sat"}, {"instruction": "the cat", "input": "on the mat", "output": "the end"}]


def train_bpe(special: list[str]) -> Tokenizer:
    """Train a byte-level BPE of 300 entries."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        ["the cat sat on the mat, the end"],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return bpe


def chat_tokenizer(template: str | None = None, bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 300 entries; with ``bos`` it starts each text with ``<s>``, as those of Llama and Gemma do."""
    bpe = train_bpe(SPECIAL)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = template
    return tokenizer
