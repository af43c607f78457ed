#!/usr/bin/env bash
# Libraries: model2vec 0.10.0, tokenizers 0.23.3, numpy 2.4.6.
#
# Expected: encode(text, max_length=512) embeds the first 512 tokens of a text, as its documentation says ("maximum length
# in tokens", which is the default). A text of 512 tokens is therefore embedded completely.
# What happens: the text is cut before it is tokenized, to max_length times the median length of a vocabulary entry, in
# characters. Spaces between words are counted, the entries' lengths do not include them, and frequent words need not have
# the median length. With a vocabulary of four-letter words, 409 of 512 tokens are embedded. With mostly short entries and
# a text of its longer words it is 51 of 512. encode_as_sequence, and max_length=None, embed all 512. No warning appears.
# Why it matters: embeddings of long documents, and clusters of clients by their text, describe the beginning only, and
# how much of it depends on the language and on the tokenizer. Clients with long words are described by the least text.
#
# Seen on 2026-12-01:
#     words of 4 letters in a vocabulary of them: median 4, encode 409 of 512, max_length=None 512, encode_as_sequence 512
#     words of 9 letters among more entries of 1: median 1, encode 51 of 512, max_length=None 512, encode_as_sequence 512
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q model2vec==0.10.0 tokenizers==0.23.3 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
from model2vec import StaticModel
from tokenizers import Tokenizer, models, pre_tokenizers

def word(number, length):
    return "".join(chr(97 + number // 26**place % 26) for place in range(length))

def embedded(words, others):
    entries = {each: number for number, each in enumerate(["[UNK]", *words, *others])}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = StaticModel(np.eye(len(entries), dtype=np.float32), tokenizer, normalize=False)  # one dimension for each token
    text = " ".join(words)
    default, unlimited = (int((each > 0).sum()) for each in (model.encode(text), model.encode(text, max_length=None)))
    return model.median_token_length, default, unlimited, len(model.encode_as_sequence(text))

cases = {
    "words of 4 letters in a vocabulary of them": embedded([word(number, 4) for number in range(512)], []),
    "words of 9 letters among more entries of 1": embedded([word(number, 9) for number in range(512)], [chr(0x4E00 + n) for n in range(600)]),
}
for name, (median, default, unlimited, sequence) in cases.items():
    print(f"{name}: median {median}, encode {default} of 512, max_length=None {unlimited}, encode_as_sequence {sequence}")
if any(default >= 450 or unlimited != 512 or sequence != 512 for _, default, unlimited, sequence in cases.values()):
    sys.exit("This is no longer so.")
PYTHON
