#!/usr/bin/env bash
# Library: tokenizers 0.23.3.
#
# Expected: to train a tokenizer draws no random number. The same texts and settings give the same tokenizer.
# What happens: WordPiece and Unigram give other token ids in each training, even twice in one process and without
# threads, and so does BPE with an end-of-word suffix. With WordPiece even the set of tokens can differ. There is no
# seed. BPE without a suffix and without a prefix, as in byte-level BPE, gives the same tokenizer each time.
# Why it matters: clients that train a tokenizer on the same public text, or a server that trains it again for a second
# run, get embeddings whose rows mean other tokens. Shapes and sizes are equal, so averaging the models raises no error
# and ruins them. A study that trains its tokenizer cannot be repeated, whatever seeds it sets, while the same code with
# byte-level BPE passes every test of it.
#
# Seen on 2026-11-30:
#     byte-level BPE:         10 trainings give 1 assignment of ids
#     BPE with word endings:  10 trainings give 10 assignments of ids
#     WordPiece:              10 trainings give 10 assignments of ids
#     Unigram:                10 trainings give 10 assignments of ids
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q tokenizers==0.23.3
cd "$work"
export TOKENIZERS_PARALLELISM=false
"$work/venv/bin/python" - <<'PYTHON'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

texts = ["the quick brown fox jumps over the lazy dog and the slow client sends its update to the server"] * 3

def train(model, trainer, pre_tokenizer):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(texts, trainer)
    return tuple(sorted(tokenizer.get_vocab().items()))

common = {"special_tokens": ["<unk>"], "show_progress": False}
alphabet = pre_tokenizers.ByteLevel.alphabet()
kinds = {
    "byte-level BPE": lambda: train(models.BPE(), trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, **common), pre_tokenizers.ByteLevel()),
    "BPE with word endings": lambda: train(
        models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=60, end_of_word_suffix="</w>", **common), pre_tokenizers.Whitespace()
    ),
    "WordPiece": lambda: train(models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(vocab_size=60, **common), pre_tokenizers.Whitespace()),
    "Unigram": lambda: train(models.Unigram(), trainers.UnigramTrainer(vocab_size=40, unk_token="<unk>", **common), pre_tokenizers.Whitespace()),
}
seen = {kind: len({make() for _ in range(10)}) for kind, make in kinds.items()}
for kind, each in seen.items():
    print(f"{f'{kind}:':<23} 10 trainings give {each} assignment{'s' * (each > 1)} of ids")
if [each > 1 for each in seen.values()] != [False, True, True, True]:
    sys.exit("This is no longer so.")
PYTHON
