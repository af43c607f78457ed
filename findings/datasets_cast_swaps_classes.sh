#!/usr/bin/env bash
# Library: datasets 5.2.0.
#
# Expected: two data sets with the classes neg and pos in another order can be joined after one was cast to the features
# of the other, and "neg" stays "neg".
# What happens: concatenate_datasets refuses the pair, as it should. cast(), the natural next step, is accepted and
# keeps the numbers, not the names: every neg becomes a pos and every pos a neg, without a warning. Only
# align_labels_with_mapping keeps the meaning.
# Why it matters: every client of a federation encodes its own labels (class_encode_column numbers the names that it
# sees), so the orders differ. After the cast the clients' classes are permuted, which looks just like label skew, the
# thing under study.
#
# Seen on 2026-11-29:
#     concatenate_datasets:           ValueError: The features can't be aligned be
#     the second client's labels:     ['pos', 'neg']
#     after cast(one.features):       ['neg', 'pos']
#     after align_labels_with_mapping: ['pos', 'neg']
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0
cd "$work"
export HF_HOME="$work/hf" HF_DATASETS_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import sys

from datasets import ClassLabel, Dataset, Features, concatenate_datasets

def named(data):
    return [data.features["label"].int2str(each) for each in data["label"]]

one = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=["neg", "pos"])}))
two = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=["pos", "neg"])}))
try:
    concatenate_datasets([one, two])
    joined = "accepted"
except ValueError as error:
    joined = f"ValueError: {str(error)[:32]}"
cast, aligned = two.cast(one.features), two.align_labels_with_mapping({"neg": 0, "pos": 1}, "label")
print(f"concatenate_datasets:           {joined}")
print(f"the second client's labels:     {named(two)}")
print(f"after cast(one.features):       {named(cast)}")
print(f"after align_labels_with_mapping: {named(aligned)}")
if named(two) != ["pos", "neg"] or named(cast) != ["neg", "pos"] or named(aligned) != named(two) or joined == "accepted":
    sys.exit("This is no longer so.")
PYTHON
