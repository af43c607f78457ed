#!/usr/bin/env bash
# Library: sacrebleu 2.6.0.
#
# Expected: answers that equal their references word for word have a BLEU of 100.
# What happens: corpus_bleu of a set of answers that all have fewer than four tokens is 0.0, although each is perfect.
# sentence_bleu of the same answers is 100, since it alone limits the order of the n-grams to the length ("effective
# order").
# Why it matters: clients of a federation differ in length. A client whose task has short answers (labels, names, dates)
# scores 0 whatever it learned, and the average over clients says that the model fails there.
#
# Seen on 2026-11-29:
#     corpus_bleu of perfect short answers:   0.0
#     sentence_bleu of the same answers:      [100.0, 100.0, 100.0]
#     corpus_bleu of perfect longer answers:  100.0
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q sacrebleu==2.6.0
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import sacrebleu

def score(answers):
    return sacrebleu.corpus_bleu(answers, [answers]).score

short, long = ["blue whale", "on Tuesday", "in New York"], ["the whale is very blue", "it is due on Tuesday"]
sentences = [sacrebleu.sentence_bleu(each, [each]).score for each in short]
print(f"corpus_bleu of perfect short answers:   {score(short):.1f}")
print(f"sentence_bleu of the same answers:      {[round(each, 1) for each in sentences]}")
print(f"corpus_bleu of perfect longer answers:  {score(long):.1f}")
if score(short) != 0 or round(min(sentences)) != 100 or round(score(long)) != 100:
    sys.exit("This is no longer so.")
PYTHON
