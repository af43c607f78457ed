#!/usr/bin/env bash
# Libraries: transformers 5.23.0, tokenizers 0.23.3 (no torch needed).
#
# Expected: to call a tokenizer leaves it as it was, and save_pretrained writes the tokenizer.
# What happens: the truncation (and padding) of the last call stays in the Rust tokenizer and is written to
# tokenizer.json. Whoever opens that file with tokenizers.Tokenizer.from_file gets texts cut to the length of that call.
# AutoTokenizer sets it back in each call, so a test with AutoTokenizer shows nothing.
# Why it matters: a server tokenizes a few short samples, saves the tokenizer for the clients, and light clients read
# tokenizer.json with tokenizers alone (as llama.cpp converters and Rust servers do). They train on the first few tokens
# of each document.
#
# Seen on 2026-11-29:
#     saved before the call: 8 tokens with tokenizers, 8 with AutoTokenizer, truncation in the file: None
#     saved after a call with max_length=3: 3 tokens with tokenizers, 8 with AutoTokenizer, truncation in the file: 3
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
cd "$work"
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import json
import pathlib
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

words = {word: i for i, word in enumerate("<pad> <unk> the clients send their weights to server".split())}
inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")
text = "the clients send their weights to the server"

def read_back(folder):
    tokenizer.save_pretrained(folder)
    bare = len(Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text).ids)
    return bare, len(AutoTokenizer.from_pretrained(folder)(text)["input_ids"]), json.loads(pathlib.Path(folder, "tokenizer.json").read_text())["truncation"]

before = read_back("before")
tokenizer(text, truncation=True, max_length=3)
after = read_back("after")
for name, (bare, auto, cut) in (("before the call", before), ("after a call with max_length=3", after)):
    print(f"saved {name}: {bare} tokens with tokenizers, {auto} with AutoTokenizer, truncation in the file: {cut and cut['max_length']}")
if before[:2] != (8, 8) or after[:2] != (3, 8):
    sys.exit("This is no longer so.")
PYTHON
